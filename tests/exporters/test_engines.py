"""Prometheus itself scrapes what the writers write."""

from __future__ import annotations

import math
import random
import re
import threading
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kits.engines import PROMETHEUS_SUITES, prometheus, promtool
from kits.expositions import AWKWARD
from kits.servers import wait_until

from metricsmw.engine.storage.histogram import index
from metricsmw.exporters import text
from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.negotiation import answer
from metricsmw.exporters.prometheus_rules import first_bytes

pytestmark = pytest.mark.timeout(180)

NAME = "http_server_request_duration_seconds"
# Lognormal latencies, some far apart from the others.
LATENCIES = sorted(
    [random.Random(1).lognormvariate(-4, 1) for _ in range(20_000)] + [300.0, 301.0, 1e-6]
)


TRACE = "0af7651916cd43dd8448eb211c80319c"
# Of /four, some were streams.
STREAMS, FIRST_BYTES = LATENCIES[-5_000:], [0.001] * 5_000


def point(
    attributes: dict[str, str], scale: int = 5, latencies: Sequence[float] = LATENCIES
) -> HistogramPoint:
    tally = Tally(index(seconds) for seconds in latencies)
    if scale == 4:
        halves: Tally[int] = Tally()
        for bucket, count in tally.items():
            halves[bucket + 1 >> 1] += count
        tally = halves
    first = min(tally)
    counts = [tally[bucket] for bucket in range(first, max(tally) + 1)]
    exemplar = Exemplar(latencies[-1], {"trace_id": TRACE}, 1.7e9)
    return HistogramPoint(attributes, scale, first, counts, sum(latencies), 1.6e9, [exemplar])


EXPOSITION = Exposition(
    {"service.name": "shop", "service.instance.id": "a"},
    [
        HistogramFamily(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            [point({"http.route": "/five"}), point({"http.route": "/four"}, scale=4)],
        ),
        *(
            HistogramFamily(name, "s", "Of streams.", [point({"http.route": "/four"}, 4, times)])
            for name, times in (
                ("metricsmw.stream.duration", STREAMS),
                ("metricsmw.stream.first_byte.duration", FIRST_BYTES),
            )
        ),
        CounterFamily("orders", "{order}", "Orders.", [NumberPoint({}, 7, 1.6e9)]),
        GaugeFamily(
            "awkward",
            "",
            'Values that must not break a scrape: \\ " \n \0',
            [NumberPoint({"kind": str(k), "v": v}, k) for k, v in enumerate(AWKWARD)]
            + [NumberPoint({"kind": "long", "v": "x" * 10_000}, -1.5)],
        ),
    ],
)


@contextmanager
def target(exposition: Exposition, classic: bool = False) -> Iterator[int]:
    """Serve families on a port for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            accept, encoding = self.headers["Accept"], self.headers["Accept-Encoding"]
            told = answer(exposition, accept, encoding, classic)
            self.send_response(200)
            self.send_header("Content-Type", told.content_type)
            if told.content_encoding:
                self.send_header("Content-Encoding", told.content_encoding)
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("suite", PROMETHEUS_SUITES)
def test_native_histograms_are_scraped_as_they_are(suite: str) -> None:
    with target(EXPOSITION) as port, prometheus(suite, {"app": port}) as engine:
        wait_until(lambda: engine.query(f"{NAME}"), "the first scrape")
        for route, scale in (("/five", 5), ("/four", 4)):
            (sample,) = engine.query(f'{NAME}{{http_route="{route}"}}')
            native = sample.native
            assert native is not None
            assert native.count == len(LATENCIES)
            assert native.sum == pytest.approx(sum(LATENCIES))
            expected = point({}, scale)
            populated = [
                (expected.first + place, count)
                for place, count in enumerate(expected.counts)
                if count
            ]
            found = [
                (round(math.log2(bucket.upper) * 2**scale), bucket.count)
                for bucket in native.buckets
            ]
            assert found == populated
            for bucket in native.buckets:  # whose bounds are those of that schema
                assert bucket.upper / bucket.lower == pytest.approx(2 ** (1 / 2**scale))
            error = 2 ** (1 / 2 ** (scale + 1)) - 1  # half a bucket
            for quantile in (0.5, 0.95, 0.99):
                value = engine.value(
                    f'histogram_quantile({quantile}, {NAME}{{http_route="{route}"}})'
                )
                exact = LATENCIES[math.ceil(quantile * len(LATENCIES)) - 1]
                assert value == pytest.approx(exact, rel=2 * error)
        times = sorted([*LATENCIES, *LATENCIES[:-5_000], *FIRST_BYTES])
        asked = re.sub(r"rate\((\w+)\[5m\]\)", r"\1", first_bytes("", "5m", "by (job)"))
        for quantile in (0.1, 0.5, 0.95):
            value = engine.value(f"histogram_quantile({quantile}, {asked})")
            assert value == pytest.approx(times[math.ceil(quantile * len(times)) - 1], rel=0.044)
        assert engine.value("orders_total") == 7
        assert engine.query("target_info")[0].labels["service_name"] == "shop"
        assert len(engine.query("awkward")) == len(AWKWARD) + 1
        assert engine.value('awkward{kind="long"}') == -1.5
        exemplars = engine.ask(
            "/api/v1/query_exemplars", query=NAME, start="1600000000", end="1800000000"
        )
        traces = {
            series["seriesLabels"]["http_route"]: [
                found["labels"]["trace_id"] for found in series["exemplars"]
            ]
            for series in exemplars["data"]
        }
        assert traces == {
            route: ["0af7651916cd43dd8448eb211c80319c"] for route in ("/five", "/four")
        }
        health = engine.ask("/api/v1/targets")["data"]["activeTargets"][0]
        assert (health["health"], health["lastError"]) == ("up", "")


@pytest.mark.parametrize(
    ("suite", "setting"),
    [
        pytest.param("trixie", "scrape_classic_histograms: true", id="2.53"),
        pytest.param("forky", "always_scrape_classic_histograms: true", id="3.5"),
    ],
)
def test_classic_buckets_are_scraped_beside_native_ones(suite: str, setting: str) -> None:
    with (
        target(EXPOSITION, classic=True) as port,
        prometheus(suite, {"app": port}, scrape=setting) as engine,
    ):
        wait_until(lambda: engine.query(f"{NAME}_bucket"), "the first scrape")
        (sample,) = engine.query(f'{NAME}{{http_route="/five"}}')
        assert sample.native is not None
        for bound in (0.0078125, 0.5, 64.0):
            value = engine.value(f'{NAME}_bucket{{http_route="/five",le="{bound}"}}')
            assert value == sum(seconds <= bound for seconds in LATENCIES)


@pytest.mark.parametrize("suite", PROMETHEUS_SUITES)
@pytest.mark.parametrize("form", ["PrometheusText0.0.4", "OpenMetricsText1.0.0"])
def test_text_is_scraped_with_classic_buckets(suite: str, form: str) -> None:
    setting = f"scrape_protocols: ['{form}']"
    with target(EXPOSITION) as port, prometheus(suite, {"app": port}, scrape=setting) as engine:
        wait_until(lambda: engine.query(f"{NAME}_bucket"), "the first scrape")
        value = engine.value(f'{NAME}_bucket{{http_route="/five",le="0.5"}}')
        assert value == sum(seconds <= 0.5 for seconds in LATENCIES)
        assert engine.value(f'{NAME}_count{{http_route="/five"}}') == len(LATENCIES)
        assert len(engine.query("awkward")) == len(AWKWARD) + 1
        assert engine.value("orders_total") == 7


@pytest.mark.parametrize("suite", PROMETHEUS_SUITES)
def test_promtool_has_no_complaint(suite: str) -> None:
    status, said = promtool(suite, "check", "metrics", stdin=text.write(EXPOSITION))
    assert (status, said.strip()) == (0, "")
