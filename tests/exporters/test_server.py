"""What is exported of a server: names, attributes, and numbers that only grow."""

from __future__ import annotations

import gzip
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.metric_families import buckets, parse
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from metricsmw import MetricsMonitor
from metricsmw.adapters import prometheus_app
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request, Response
from metricsmw.adapters.auth import public, token
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.definitions import RESERVED_NAMES
from metricsmw.engine.storage.histogram import index
from metricsmw.exporters import negotiation, openmetrics, protobuf, text
from metricsmw.exporters.model import HistogramFamily, HistogramPoint
from metricsmw.exporters.names import metric_name
from metricsmw.exporters.otlp import metrics_data
from metricsmw.exporters.resource import parse_attributes
from metricsmw.exporters.server import exposition
from metricsmw.exporting import write_prometheus

ROUTES_NAME = "http_server_request_duration_seconds"
PROTOBUF = negotiation.PROTOBUF.content_type
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


def samples(monitor: MetricsMonitor) -> Samples:
    """All samples of the text format: name, labels, value."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.write(exposition(monitor)).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def record(
    monitor: MetricsMonitor, seconds: float, method: str, route: str | None, status: int
) -> None:
    monitor.recorder.observe_route(seconds, status >= 400, route, method, status)


# --- names and attributes -------------------------------------------------------------------------


def test_routes_have_the_conventions_attributes(monitor: MetricsMonitor) -> None:
    for status in (200, 404, 500, 500):
        record(monitor, 0.1, "GET", "/items/{id}", status)
    record(monitor, 0.1, "BREW", None, 404)
    monitor.recorder.fail(monitor.recorder.begin(), 500, "/items/{id}", "GET", "shop.SoldOut")
    found = samples(monitor)[f"{ROUTES_NAME}_count"]
    method, route = ("http_request_method", "GET"), ("http_route", "/items/{id}")
    code = "http_response_status_code"
    assert found == {
        (method, (code, "200"), route): 1,
        (method, (code, "404"), route): 1,  # the client's error is none of the server
        (("error_type", "500"), method, (code, "500"), route): 2,
        (("error_type", "shop.SoldOut"), method, (code, "500"), route): 1,
        (("http_request_method", "_OTHER"), (code, "404")): 1,  # nothing matched: no route
    }
    assert samples(monitor)["metricsmw_route_errors_total"][method, route] == 4
    assert (
        samples(monitor)["metricsmw_route_errors_total"][(("http_request_method", "_OTHER"),)] == 1
    )


def test_routes_past_the_maximum_share_the_overflow(clock: ManualClock) -> None:
    with MetricsMonitor(max_routes=2, clock=clock) as monitor:
        for number in range(5):
            record(monitor, 0.1, "GET", f"/{number}", 200)
        found = samples(monitor)[f"{ROUTES_NAME}_count"]
        other = (
            ("http_request_method", "GET"),
            ("http_response_status_code", "200"),
            ("otel_metric_overflow", "true"),
        )
        assert found.pop(other) == 3
        assert {dict(labels)["http_route"] for labels in found} == {"/0", "/1"}


def test_requests_without_a_route_are_in_the_server_wide_numbers(monitor: MetricsMonitor) -> None:
    monitor.record_request(12.5, is_error=True)
    record(monitor, 0.1, "GET", "/", 200)
    found = samples(monitor)
    assert found["metricsmw_request_duration_seconds_count"][()] == 2
    assert found["metricsmw_requests_total"][()] == 2
    assert found["metricsmw_request_errors_total"][()] == 1
    assert list(found[f"{ROUTES_NAME}_count"].values()) == [1]


def test_gauges_say_how_it_is(monitor: MetricsMonitor) -> None:
    monitor.increment_websocket_connections()
    monitor.record_user_activity("ann")
    monitor.recorder.begin()
    found = samples(monitor)
    assert found["http_server_active_requests"][()] == 1
    assert found["metricsmw_websocket_connections"][()] == 1
    assert found["metricsmw_users_active"][()] == 1
    assert found["metricsmw_workers"][()] == 1
    assert found["metricsmw_faults_total"][()] == 0
    assert max(found["process_memory_usage_bytes"].values()) > 2**20
    assert {dict(labels)["cpu_mode"] for labels in found["process_cpu_time_seconds_total"]} == {
        "user",
        "system",
    }


def test_streams_have_histograms_of_their_own(monitor: MetricsMonitor) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    end = recorder.end(start, 200, "/stream", "GET")
    recorder.streamed(end - 8.0, end - 7.0, end, "/stream", "GET")
    found = samples(monitor)
    labels = (("http_request_method", "GET"), ("http_route", "/stream"))
    assert found["metricsmw_stream_duration_seconds_sum"][labels] == pytest.approx(8, rel=0.03)
    assert found["metricsmw_stream_first_byte_duration_seconds_sum"][labels] == pytest.approx(
        1, rel=0.03
    )


KNOWN = """
from metricsmw import MetricsMonitor
with MetricsMonitor() as monitor:
    for method in ("GET", "PROPFIND", "PUT"):
        monitor.record_request(1.0, method=method, route="/")
    print(sorted(row["method"] for row in monitor.get_routes()))
"""


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ("GET,PROPFIND", ["GET", "PROPFIND", "_OTHER"]),
        (" GET , ", ["GET", "_OTHER"]),
        ("", ["GET", "PUT", "_OTHER"]),
        ("GET,B:D", ["GET", "PUT", "_OTHER"]),  # no method: the list is left out
    ],
)
def test_known_methods_are_those_that_are_listed(listed: str, kept: list[str]) -> None:
    environ = os.environ | {"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": listed}
    done = subprocess.run(
        [sys.executable, "-c", KNOWN], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(kept)
    assert ("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS" in done.stderr) == (":" in listed)


def test_the_apps_own_numbers_are_exported(monitor: MetricsMonitor) -> None:
    monitor.counter("orders_failed", "Orders that failed.", ["shop"]).labels('n"\n').inc(3)
    monitor.gauge("queue", "Jobs that wait.").set(-4)
    monitor.histogram("payment", "Payments.", unit="seconds").observe(0.25)
    body = text.write(exposition(monitor)).decode()
    assert "# HELP orders_failed_total Orders that failed." in body
    found = samples(monitor)
    assert found["orders_failed_total"] == {(("shop", 'n"\n'),): 3}
    assert found["queue"] == {(): -4}
    assert found["payment_seconds_sum"] == {(): 0.25}
    (metric,) = [
        family.metric[0]
        for family in parse(protobuf.write(exposition(monitor)))
        if family.name == "payment_seconds"
    ]
    assert (metric.histogram.schema, buckets(metric.histogram)) == (4, {-32: 1})


# --- counters only grow, and begin anew with a reset ----------------------------------------------


def test_counts_stay_beyond_the_window(monitor: MetricsMonitor, clock: ManualClock) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    clock.advance(10_000)
    record(monitor, 0.1, "GET", "/", 200)
    found = samples(monitor)
    assert list(found[f"{ROUTES_NAME}_count"].values()) == [2]
    assert found["metricsmw_request_duration_seconds_count"][()] == 2


def test_a_reset_begins_anew_and_says_when(monitor: MetricsMonitor, clock: ManualClock) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    began = samples(monitor)["process_start_time_seconds"][()]
    assert began == pytest.approx(clock.time())
    clock.advance(50)
    record(monitor, 0.1, "GET", "/", 200)
    assert samples(monitor)["process_start_time_seconds"][()] == began
    monitor.reset_statistics()
    record(monitor, 0.2, "GET", "/new", 200)
    found = samples(monitor)
    assert found["process_start_time_seconds"][()] == pytest.approx(began + 50)
    assert found["metricsmw_requests_total"][()] == 1
    assert [dict(labels)["http_route"] for labels in found[f"{ROUTES_NAME}_count"]] == ["/new"]
    for family in exposition(monitor).families:
        for point in family.points:
            if isinstance(point, HistogramPoint):
                assert point.started == pytest.approx(began + 50)


def test_a_clock_that_was_set_back_to_1970_is_exported() -> None:
    clock = ManualClock(123.0)  # a start that no other test has: its time is known from then on
    with MetricsMonitor(clock=clock) as monitor:
        record(monitor, 0.1, "GET", "/", 200)
        clock.advance(100)
        clock.wall = 5.0
        assert samples(monitor)["process_start_time_seconds"] == {(): 0.0}
        assert parse(protobuf.write(exposition(monitor)))
        assert metrics_data(exposition(monitor), clock.time())


def test_the_start_is_the_same_in_all_workers(clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as one, MetricsMonitor(shared=True) as other:
        record(one, 0.1, "GET", "/", 200)
        started = [samples(each)["process_start_time_seconds"][()] for each in (one, other)]
        assert started[0] == started[1]
        assert exposition(one).resource == exposition(other).resource


def test_more_routes_than_the_maximum_of_one_worker_keep_their_names() -> None:
    with (
        MetricsMonitor(shared=True, max_routes=1) as one,
        MetricsMonitor(shared=True, max_routes=1) as other,
    ):
        record(one, 0.1, "GET", "/a", 200)
        record(other, 0.1, "GET", "/b", 200)
        for _ in range(3):
            record(other, 0.1, "GET", "/b", 200)
        found = samples(one)[f"{ROUTES_NAME}_count"]
        assert {dict(labels).get("http_route"): n for labels, n in found.items()} == {
            "/a": 1,
            "/b": 4,
        }


OPERATIONS = st.lists(
    st.tuples(
        st.floats(1e-7, 3600),
        st.sampled_from(["GET", "POST", "BREW"]),
        st.one_of(
            st.none(), st.sampled_from(["/a", '/"\n\\', "/\0", "/\udc80", "/" + "x" * 10_000])
        ),
        st.sampled_from([200, 301, 404, 500]),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(OPERATIONS)
def test_any_state_is_exported_with_the_same_numbers(done: Any) -> None:
    with MetricsMonitor(max_routes=3, clock=ManualClock()) as monitor:
        for seconds, method, route, status in done:
            record(monitor, seconds, method, route, status)
        body = protobuf.write(exposition(monitor))
        families = {family.name: family for family in parse(body)}
        (overall,) = families["metricsmw_request_duration_seconds"].metric
        expected: dict[int, int] = {}
        for seconds, *_ in done:
            bucket = index(max(seconds, 2.0**-24))
            expected[bucket] = expected.get(bucket, 0) + 1
        assert buckets(overall.histogram) == expected
        rows = families[ROUTES_NAME].metric if done else []
        assert sum(metric.histogram.sample_count for metric in rows) == len(done)
        halves: dict[int, int] = {}
        for bucket, count in expected.items():
            halves[bucket + 1 >> 1] = halves.get(bucket + 1 >> 1, 0) + count
        merged: dict[int, int] = {}
        for metric in rows:
            for bucket, count in buckets(metric.histogram).items():
                merged[bucket] = merged.get(bucket, 0) + count
        assert merged == (halves if done else {})
        exact = sum(max(seconds, 2.0**-24) for seconds, *_ in done)
        assert overall.histogram.sample_sum == pytest.approx(exact, rel=0.011)
        for family in exposition(monitor).families:
            for point in family.points:
                value = point.sum if isinstance(point, HistogramPoint) else point.value
                assert math.isfinite(value)


# --- names of the app's own numbers ---------------------------------------------------------------


def test_no_instrument_has_a_name_of_ours(monitor: MetricsMonitor) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    ours = {metric_name(each).removesuffix("_total") for each in exposition(monitor).families}
    assert {name for name in ours if not name.startswith("metricsmw")} == RESERVED_NAMES - {
        "target"
    }


def test_what_a_name_stood_for_before_a_reload_is_left_out(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    with (
        MetricsMonitor(shared=True, clock=clock) as old,
        MetricsMonitor(shared=True, clock=clock) as new,
        MetricsMonitor(shared=True, clock=clock) as other,
    ):
        old.counter("queue").inc()
        old.histogram("wait").observe(1.0)
        new.gauge("queue").set(7)
        new.gauge("wait_seconds").set(3)
        other.record_request(1.0)
        # Who has made neither exports one of two: a scrape with both would be refused.
        for monitor, queue in ((old, 1), (new, 7), (other, 1)):
            body = openmetrics.write(exposition(monitor)).decode()
            families = {each.name: each for each in parse_openmetrics(body)}
            assert families["queue"].samples[0].value == queue
            assert "wait_seconds" in families


# --- the resource ---------------------------------------------------------------------------------


def test_the_service_is_named_as_opentelemetry_has_it(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exposition(monitor).resource["service.name"].startswith("unknown_service:")
    with MetricsMonitor(name="kiosk", clock=monitor.clock) as named:
        assert exposition(named).resource["service.name"] == "kiosk"
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "service.name=a,service.version=1.2, deployment=caf%C3%A9"
    )
    resource = exposition(monitor).resource
    assert (resource["service.name"], resource["service.version"]) == ("a", "1.2")
    assert resource["deployment"] == "café"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    assert exposition(monitor).resource["service.name"] == "shop"
    assert samples(monitor)["target_info"]


def test_names_that_are_no_text(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables and folders are any bytes."""
    monkeypatch.setenv("METRICSMW_DIR", f"{tmp_path}/\udcff")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a\udcff")
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        monitor.record_request(1.0)
        assert exposition(monitor).resource["service.name"] == "a\\udcff"
        assert samples(monitor)["target_info"]


@pytest.mark.parametrize("broken", ["novalue", "=x", "a=b,c", "a=%zz", "a=%"])
def test_broken_attributes_are_left_out(broken: str) -> None:
    assert parse_attributes(broken) == {}


# --- over HTTP and to a file ----------------------------------------------------------------------


def ask(monitor: MetricsMonitor, query: str = "", **headers: str) -> Response:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Handlers(monitor, public()).handle(Request("GET", "/prometheus", query, told))


def test_the_route_answers_what_accept_asks_for(monitor: MetricsMonitor) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    answer = ask(monitor)
    headers = dict(answer.headers)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert headers["Cache-Control"] == "no-store"
    assert ROUTES_NAME in answer.body.decode()
    answer = ask(monitor, accept=PROTOBUF, accept_encoding="gzip")
    assert dict(answer.headers)["Content-Encoding"] == "gzip"
    (metric,) = _family(gzip.decompress(answer.body)).metric
    assert metric.histogram.sample_count == 1
    assert not metric.histogram.bucket
    (metric,) = _family(ask(monitor, "classic=1", accept=PROTOBUF).body).metric
    assert metric.histogram.bucket[-1].cumulative_count == 1


def _family(body: bytes) -> Any:
    (found,) = [family for family in parse(body) if family.name == ROUTES_NAME]
    return found


def test_the_route_asks_who_it_is(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, token("secret"))
    assert handlers.handle(Request("GET", "/prometheus", "", {})).status == 401
    bearer = {"authorization": "Bearer secret"}
    assert handlers.handle(Request("GET", "/prometheus", "", bearer)).status == 200


def _wsgi(app: Callable[..., Any], headers: dict[str, str]) -> tuple[str, bytes]:
    from werkzeug.test import Client

    response = Client(app).get("/anything", headers=headers)
    return response.status, response.data


def _asgi(app: Callable[..., Any], headers: dict[str, str]) -> tuple[str, bytes]:
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    response = TestClient(Starlette(routes=[Mount("/metrics", app)])).get(
        "/metrics", headers=headers
    )
    return f"{response.status_code} {response.reason_phrase}", response.content


def _fastapi(app: Callable[..., Any], headers: dict[str, str]) -> tuple[str, bytes]:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    host = FastAPI()
    host.add_route("/metrics", app)
    response = TestClient(host, follow_redirects=False).get("/metrics", headers=headers)
    return str(response.status_code), response.content


@pytest.mark.parametrize("over", [_wsgi, _asgi, _fastapi])
def test_the_app_to_mount_answers_over_both_interfaces(
    monitor: MetricsMonitor, over: Callable[..., tuple[str, bytes]]
) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    app = prometheus_app(monitor, token("secret"))
    assert over(app, {})[0].startswith("401")
    status, body = over(app, {"Authorization": "Bearer secret"})
    assert status.startswith("200")
    assert ROUTES_NAME in body.decode()


def test_a_script_writes_the_same_text_to_a_file(monitor: MetricsMonitor, tmp_path: Path) -> None:
    record(monitor, 0.1, "GET", "/", 200)
    write_prometheus(monitor, tmp_path / "shop.prom")
    written = (tmp_path / "shop.prom").read_text()
    families = {family.name for family in text_string_to_metric_families(written)}
    assert {ROUTES_NAME, "metricsmw_requests", "target_info"} <= families


def test_families_are_named_once(monitor: MetricsMonitor) -> None:
    families = exposition(monitor).families
    assert len({family.name for family in families}) == len(families)
    schemas = {
        family.name: point.scale
        for family in families
        if isinstance(family, HistogramFamily)
        for point in family.points
    }
    assert schemas["metricsmw.request.duration"] == 5
