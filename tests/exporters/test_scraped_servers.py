"""Engines have the numbers of real servers whose workers are killed, reloaded, reset meanwhile."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from kits.engines import Engine, prometheus, victoria_metrics
from kits.servers import Server, serve, wait_until
from kits.workers import announced, kill

pytestmark = pytest.mark.timeout(400)

WORKERS = 4
OVERALL = "metricsmw_request_duration_seconds"
ROUTE = "http_server_request_duration_seconds"
REQUESTS = "metricsmw_requests_total"
ERRORS = ("metricsmw_request_errors_total", "metricsmw_route_errors_total")
OWN = ("orders_total", "payment_seconds")
COUNTERS = (OVERALL, ROUTE, REQUESTS, *ERRORS, *OWN)

WSGI, ASGI = "apps.sent:wsgi", "apps.sent:asgi"
SERVERS = {
    "gunicorn": ("gunicorn", WSGI, []),
    "gunicorn-preload": ("gunicorn", WSGI, ["--preload"]),
    "uvicorn": ("uvicorn", ASGI, []),
}
# With fewer samples too much of a rate is extrapolated.
LEAST_SAMPLES = 20


class Clients:
    """Sends latencies to all workers, and keeps what was sent since the last reset."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._chance = random.Random(7)
        self.sent: list[float] = []
        self.answered_by: set[bytes] = set()

    def send(self, number: int) -> None:
        """Have the server record so many latencies; returns when all are.

        They are so many that there are several in each bucket that a percentile lies in: within it
        Prometheus interpolates.
        """
        latencies = [round(self._chance.lognormvariate(3, 0.5), 3) for _ in range(number)]
        batches = [latencies[start : start + 150] for start in range(0, number, 150)]

        def one(batch: list[float]) -> bytes:
            answer = self._server.get(f"/sent?ms={','.join(map(repr, batch))}")
            assert answer.status == 200
            return answer.body

        with ThreadPoolExecutor(4) as pool:
            self.answered_by.update(pool.map(one, batches))
        self.sent += [latency / 1000 for latency in latencies]

    def exact(self, quantile: float) -> float:
        """The exact percentile of what was sent, in seconds."""
        ordered = sorted(self.sent)
        return ordered[math.ceil(quantile * len(ordered)) - 1]


def count(engine: Engine, name: str = REQUESTS) -> float | None:
    return engine.value(name)


def scraped(engines: Sequence[Engine], expected: int) -> None:
    """Wait until every engine has seen that count."""
    for engine in engines:
        wait_until(
            lambda: count(engine) == expected,  # noqa: B023
            f"{expected} requests in {engine.name}, which has {count(engine)}",
        )


def new_workers(server: Server, before: set[int]) -> None:
    """Wait until there are as many workers as ordered, none of them of before."""
    wait_until(
        lambda: len(pids := server.worker_pids()) == WORKERS and before.isdisjoint(pids),
        "new workers",
    )
    announced(server)


@pytest.mark.parametrize(("name", "app", "args"), SERVERS.values(), ids=SERVERS)
def test_what_prometheus_has_is_what_was_sent(name: str, app: str, args: Sequence[str]) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serve(name, app, workers=WORKERS, args=args))
        announced(server)
        engines = [
            stack.enter_context(
                prometheus(suite, {"app": server.port}, path="/api/metrics/prometheus")
            )
            for suite in ("trixie", "forky")
        ]
        clients = Clients(server)
        scraped(engines, 0)  # a counter is there before it counts
        began = time.time()
        for _ in range(4):
            clients.send(3_000)
            pid = server.worker_pids()[0]
            kill(pid)
            wait_until(lambda: len(server.worker_pids()) == WORKERS, "a worker in its place")
            announced(server)
            scraped(engines, len(clients.sent))
        assert len(clients.answered_by) > 1
        for _ in range(2):
            before = set(server.worker_pids())
            server.signal(signal.SIGHUP)
            clients.send(3_000)
            new_workers(server, before)
            clients.send(3_000)
            scraped(engines, len(clients.sent))

        for engine in engines:
            check_numbers(engine, clients, began)
        assert server.post("/api/metrics/reset").status == 200
        clients.sent.clear()
        clients.send(6_000)
        kill(server.worker_pids()[-1])
        clients.send(6_000)
        scraped(engines, len(clients.sent))
        for engine in engines:
            check_numbers(engine, clients, began, resets=1)
        if name == "gunicorn":
            by_text = "scrape_protocols: ['OpenMetricsText1.0.0']"
            engines += (
                stack.enter_context(
                    prometheus(
                        "forky",
                        {"app": server.port},
                        path="/api/metrics/prometheus",
                        scrape=by_text,
                    )
                ),
            )
        check_exemplars(server, engines)


@pytest.mark.parametrize(("name", "app"), [("gunicorn", WSGI), ("uvicorn", ASGI)])
def test_what_victoria_metrics_is_sent_is_what_was_sent(name: str, app: str) -> None:
    with victoria_metrics("forky") as engine, ExitStack() as stack:
        env = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{engine.url}/opentelemetry/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_SERVICE_NAME": "sent",
        }
        server = stack.enter_context(serve(name, app, workers=WORKERS, env=env))
        announced(server)
        clients = Clients(server)
        began = time.time()

        def arrived() -> bool:
            engine.ask("/internal/force_flush")
            return engine.value(REQUESTS, time.time() + 1) == len(clients.sent)

        # One of them leads: with all of them its successors do, too.
        for pid in server.worker_pids():
            clients.send(3_000)
            kill(pid)
            wait_until(lambda: len(server.worker_pids()) == WORKERS, "a worker in its place")
            announced(server)
            wait_until(arrived, f"{len(clients.sent)} requests in {engine.name}")
        at = time.time() + 1
        seconds = int(at - began) + 5
        assert engine.value(f"resets({REQUESTS}[{seconds}s])", at) == 0
        for quantile in (0.5, 0.95, 0.99):
            asked = f"histogram_quantile({quantile}, sum({OVERALL}_bucket) by (vmrange))"
            assert engine.value(asked, at) == pytest.approx(clients.exact(quantile), rel=0.011)


def check_numbers(engine: Engine, clients: Clients, began: float, resets: int = 0) -> None:
    """Counts, percentiles and rates of one engine against what was sent."""
    total = len(clients.sent)
    for name in OWN:  # which the app counts after the request's number
        wait_until(lambda: engine.value(name) == total, f"{total} {name} in {engine.name}")  # noqa: B023
    wait_until(
        lambda: (engine.value(f"count_over_time({REQUESTS}[1h])") or 0) >= LEAST_SAMPLES,
        f"enough samples in {engine.name}",
    )
    seconds = int(time.time() - began) + 5
    for name in COUNTERS:
        found = engine.query(f"resets({name}[{seconds}s])")
        assert found, f"{engine.name} has no {name}"
        expected = 0 if name in ERRORS else resets
        assert {sample.value for sample in found} == {expected}, name
    (overall,) = engine.query(OVERALL)
    (route,) = engine.query(f'{ROUTE}{{http_route="/sent"}}')
    for sample in (overall, route):
        assert sample.native is not None
        assert sample.native.count == total
        assert sample.native.sum == pytest.approx(sum(clients.sent), rel=0.022)
    for quantile in (0.5, 0.95, 0.99):
        value = engine.value(f"histogram_quantile({quantile}, sum({OVERALL}))")
        assert value == pytest.approx(clients.exact(quantile), rel=0.011)
    if resets:
        return
    # From the first sample, 0, to the last one, all that was sent came in. Up to 1.1 intervals of a
    # scrape are extrapolated on either side; for a counter not below 0, for a histogram even so.
    rate = engine.value(f"sum(rate({REQUESTS}[{seconds}s]))")
    native = engine.value(f"histogram_count(sum(rate({OVERALL}[{seconds}s])))")
    assert rate is not None
    assert native is not None
    assert rate * seconds == pytest.approx(total, rel=0.1)
    assert native * seconds == pytest.approx(total, rel=0.15)
    for quantile in (0.5, 0.95, 0.99):
        value = engine.value(f"histogram_quantile({quantile}, sum(rate({OVERALL}[{seconds}s])))")
        assert value == pytest.approx(clients.exact(quantile), rel=0.011)


def check_exemplars(server: Server, engines: Sequence[Engine]) -> None:
    """A slow request is the exemplar of the series that count it, under the client's trace id."""
    began = time.time()
    trace = random.Random().randbytes(16).hex()
    server.get("/slow", {"traceparent": f"00-{trace}-{'cd' * 8}-01"})
    took = time.time() - began
    for engine in engines:
        for name in (OVERALL, ROUTE):
            found: list[dict[str, Any]] = []

            def has_it() -> bool:
                exemplars = engine.ask(  # noqa: B023
                    "/api/v1/query_exemplars",
                    query=f'{{__name__=~"{name}(_bucket)?"}}',  # noqa: B023
                    start=str(began),
                    end=str(time.time() + 60),
                )
                all_ = [one for series in exemplars["data"] for one in series["exemplars"]]
                found[:] = [one for one in all_ if one["labels"]["trace_id"] == trace]  # noqa: B023
                return bool(found)  # noqa: B023

            wait_until(has_it, f"the exemplar of {name} in {engine.name}")
            assert {one["labels"]["span_id"] for one in found} == {"cd" * 8}
            assert {0.05 <= float(one["value"]) <= took for one in found} == {True}
            assert {began <= one["timestamp"] <= began + took + 1 for one in found} == {True}
