"""The per-route table: its rows, its order, and the names that keep it small."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.reference import ROUTE_BOUND

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.routes import RouteRow

COLUMNS = [
    "method",
    "route",
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "statuses",
    "latency_ttfb_p50_ms",
    "latency_ttfb_p95_ms",
    "latency_ttfb_p99_ms",
    "status_codes",
    "server_error_rate_pct",
    "request_rate_rpm",
    "time_share_pct",
]
STANDARD_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"]


def counts(monitor: MetricsMonitor) -> dict[tuple[str, str], int]:
    """Requests by method and route."""
    return {(row["method"], row["route"]): row["requests"] for row in monitor.get_routes()}


def classes(row: RouteRow) -> dict[str, int]:
    """The status classes of a row that occurred."""
    return {name: count for name, count in row["statuses"].items() if count}


def test_a_row(monitor: MetricsMonitor) -> None:
    for status in (200, 201, 302, 404, 503, 101):
        monitor.record_request(50.0, method="GET", route="/items/{id}", status=status)
    (row,) = monitor.get_routes()
    assert list(row) == COLUMNS
    assert (row["method"], row["route"], row["requests"]) == ("GET", "/items/{id}", 6)
    assert row["error_rate_pct"] == 33.33
    assert row["latency_max_ms"] == 50.0
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms"):
        assert row[name] == pytest.approx(50.0, rel=ROUTE_BOUND)
    assert classes(row) == {"1xx": 1, "2xx": 2, "3xx": 1, "4xx": 1, "5xx": 1}


def test_rate_and_time_spent() -> None:
    clock = ManualClock()
    with MetricsMonitor(60, clock=clock) as monitor:
        for _ in range(30):
            monitor.record_request(10.0, method="GET", route="/quick", status=200)
        monitor.record_request(900.0, method="GET", route="/slow", status=200)
        clock.advance(30)
        quick, slow = monitor.get_routes()
        assert (quick["request_rate_rpm"], slow["request_rate_rpm"]) == (30.0, 1.0)
        assert quick["time_share_pct"] == pytest.approx(25.0, rel=2 * ROUTE_BOUND)
        assert slow["time_share_pct"] == pytest.approx(75.0, rel=2 * ROUTE_BOUND)


def test_none_yet(monitor: MetricsMonitor) -> None:
    assert monitor.get_routes() == []


def test_the_busiest_comes_first(monitor: MetricsMonitor) -> None:
    for route, requests in (("/a", 3), ("/b", 9), ("/c", 1), ("/d", 5)):
        for _ in range(requests):
            monitor.record_request(1.0, method="GET", route=route, status=200)
    assert [row["route"] for row in monitor.get_routes()] == ["/b", "/d", "/a", "/c"]


def test_busy_means_busy_in_the_window(clock: ManualClock) -> None:
    with MetricsMonitor(60, clock=clock) as monitor:
        for _ in range(50):
            monitor.record_request(1.0, method="GET", route="/old", status=200)
        clock.advance(50)
        for _ in range(5):
            monitor.record_request(1.0, method="GET", route="/new", status=200)
        assert counts(monitor) == {("GET", "/old"): 50, ("GET", "/new"): 5}
        clock.advance(30)
        for route in ("/new", "/old"):
            monitor.record_request(1.0, method="GET", route=route, status=200)
        rows = monitor.get_routes()
        assert [(row["route"], row["requests"]) for row in rows] == [("/new", 6), ("/old", 1)]


def test_method_and_route_are_one_key(monitor: MetricsMonitor) -> None:
    for method, route in (("GET", "/a"), ("POST", "/a"), ("GET", "/b"), ("GET", "/a")):
        monitor.record_request(1.0, method=method, route=route, status=200)
    assert counts(monitor) == {("GET", "/a"): 2, ("POST", "/a"): 1, ("GET", "/b"): 1}


def test_unmatched_requests_share_a_row(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, method="GET", route=None, status=404)
    monitor.record_request(1.0, method="GET", status=404)
    assert counts(monitor) == {("GET", "<unmatched>"): 2}


@pytest.mark.parametrize("method", STANDARD_METHODS)
def test_standard_methods_keep_their_name(monitor: MetricsMonitor, method: str) -> None:
    monitor.record_request(1.0, method=method, route="/", status=200)
    assert counts(monitor) == {(method, "/"): 1}


def test_other_methods_share_a_name(monitor: MetricsMonitor) -> None:
    for method in ("BREW", "PROPFIND", "X" * 1000, "", "\N{HOT BEVERAGE}"):
        monitor.record_request(1.0, method=method, route="/pot", status=418)
    assert counts(monitor) == {("_OTHER", "/pot"): 5}


def test_routes_past_the_maximum_share_a_row() -> None:
    with MetricsMonitor(max_routes=3, clock=ManualClock()) as monitor:
        for number in range(10):
            for _ in range(2):
                monitor.record_request(1.0, method="GET", route=f"/{number}", status=500)
        monitor.record_request(1.0, method="GET", route="/1", status=200)
        assert counts(monitor) == {
            ("GET", "/0"): 2,
            ("GET", "/1"): 3,
            ("GET", "/2"): 2,
            ("GET", "<other>"): 14,
        }
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.total_requests, snapshot.total_errors) == (21, 20)
        assert snapshot.request_rate_rpm == 21.0


def test_a_flood_of_routes_is_bounded_and_exact_in_the_totals() -> None:
    with MetricsMonitor(max_routes=50, clock=ManualClock()) as monitor:
        for number in range(20_000):
            monitor.record_request(1.0, method="GET", route=f"/flood/{number}", status=200)
        rows = monitor.get_routes()
        assert len(rows) <= 52
        assert rows[0]["route"] == "<other>"
        assert sum(row["requests"] for row in rows) == 20_000
        assert monitor.total_requests == 20_000


def test_the_default_maximum_holds_two_hundred(monitor: MetricsMonitor) -> None:
    for number in range(200):
        monitor.record_request(1.0, method="GET", route=f"/{number}", status=200)
    expected = {("GET", f"/{number}"): 1 for number in range(200)}
    assert counts(monitor) == expected
    monitor.record_request(1.0, method="GET", route="/one too many", status=200)
    assert counts(monitor) == {**expected, ("GET", "<other>"): 1}


@pytest.mark.parametrize(
    "routes",
    [
        ["/" + "x" * 2000 + "a", "/" + "x" * 2000 + "b"],
        ["/é/ü", "/\N{GRINNING FACE}"],
        ["", "/"],
        ["/items/<int:id>", "/items/{id}"],
    ],
    ids=["long", "not ASCII", "empty", "templates"],
)
def test_routes_that_differ_have_their_own_rows(monitor: MetricsMonitor, routes: list[str]) -> None:
    for route in routes:
        monitor.record_request(1.0, method="GET", route=route, status=200)
    assert sorted(row["requests"] for row in monitor.get_routes()) == [1, 1]
    assert len({row["route"] for row in monitor.get_routes()}) == 2


def test_an_error_without_a_status_is_an_error_of_the_route(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, is_error=True, method="GET", route="/")
    monitor.record_request(1.0, method="GET", route="/")
    (row,) = monitor.get_routes()
    assert row["requests"] == 2
    assert row["error_rate_pct"] == 50.0


def test_an_error_with_a_good_status_is_an_error_of_the_route(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, is_error=True, method="GET", route="/", status=200)
    (row,) = monitor.get_routes()
    assert row["error_rate_pct"] == 100.0
    assert classes(row) == {"2xx": 1}


@pytest.mark.parametrize("window", [10, 60, 77, 300, 3600])
def test_a_request_stays_a_window_and_goes_within_a_tenth(window: int) -> None:
    clock = ManualClock()
    with MetricsMonitor(window, clock=clock) as monitor:
        for into_the_step in (0.0, 0.03, 0.05, 0.08):
            clock.advance(into_the_step * window)
            monitor.record_request(9.0, method="GET", route="/", status=200)
            clock.advance(window * 0.9999)
            assert counts(monitor) == {("GET", "/"): 1}
            clock.advance(window * 0.1002)
            assert sum(counts(monitor).values()) == 0


routes = st.sampled_from(["/a", "/b", "/c", None])
methods = st.sampled_from(["GET", "POST", "BREW"])
statuses = st.sampled_from([200, 204, 301, 404, 500])
gaps = st.sampled_from([0.0, 0.0, 1.0, 5.0, 29.5, 31.0, 100.0, 300.0, 331.0, 5000.0])


@settings(max_examples=80)
@given(steps=st.lists(st.tuples(gaps, methods, routes, statuses), max_size=60))
def test_against_a_list(steps: list[tuple[float, str, str | None, int]]) -> None:
    clock = ManualClock()
    seen: list[tuple[float, tuple[str, str], int]] = []
    with MetricsMonitor(300, clock=clock) as monitor:
        for gap, method, route, status in steps:
            clock.advance(gap)
            monitor.record_request(3.0, method=method, route=route, status=status)
            key = ("_OTHER" if method == "BREW" else method, route or "<unmatched>")
            seen.append((clock.monotonic(), key, status))
            surely = Counter(k for at, k, _ in seen if clock.monotonic() - at <= 300)
            perhaps = Counter(k for at, k, _ in seen if clock.monotonic() - at <= 330)
            reported = counts(monitor)
            assert set(reported) >= set(surely)
            for one, count in reported.items():
                assert surely[one] <= count <= perhaps[one]
            requests = [row["requests"] for row in monitor.get_routes()]
            assert requests == sorted(requests, reverse=True)
            for row in monitor.get_routes():
                assert sum(row["statuses"].values()) == row["requests"]
                errors = row["statuses"].get("4xx", 0) + row["statuses"].get("5xx", 0)
                if row["requests"]:
                    assert row["error_rate_pct"] == round(100 * errors / row["requests"], 2)
