"""What adapters record with: begin, then one of end, fail, abandon and leave."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.reference import ROUTE_BOUND

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.captures import Evidence
from metricsmw.engine.storage.layout import Kind


@pytest.mark.parametrize(
    ("status", "is_error"),
    [(100, 0), (200, 0), (302, 0), (399, 0), (400, 1), (404, 1), (499, 1), (500, 1), (599, 1)],
)
def test_the_end_of_a_request(monitor: MetricsMonitor, status: int, is_error: int) -> None:
    recorder = monitor.recorder
    recorder.end(recorder.begin(), status, "/items/{id}", "GET")
    assert (monitor.total_requests, monitor.total_errors) == (1, is_error)
    (row,) = monitor.get_routes()
    assert (row["method"], row["route"], row["requests"]) == ("GET", "/items/{id}", 1)
    assert row["error_rate_pct"] == 100.0 * is_error
    assert row["statuses"] == {f"{status // 100}xx": 1}


@pytest.mark.parametrize(
    ("status", "is_error"), [(0, 0), (99, 0), (600, 1), (999, 1), (-1, 0), (2**40, 1)]
)
def test_a_status_that_no_app_should_send_is_still_a_request(
    monitor: MetricsMonitor, clock: ManualClock, status: int, is_error: int
) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    clock.advance(0.5)
    recorder.end(start, status, "/", "GET")
    assert (monitor.total_requests, monitor.total_errors) == (1, is_error)
    (row,) = monitor.get_routes()
    assert (row["requests"], row["statuses"]) == (1, {})
    assert monitor.get_current_snapshot().requests_in_flight == 0
    (slow,) = monitor.get_slowest()
    assert slow["status"] == (status if 0 < status < 1000 else None)


def test_a_segment_that_was_left_meanwhile_gets_no_captured_request(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    """As by an app whose code for the user forks: the parent's segment is not the child's."""

    class Leaving:
        def evidence(self, carrier: Any, wanted: tuple[str, ...]) -> Evidence:
            monitor.recorder.release()
            return Evidence(0.0)

    recorder = monitor.recorder
    segment = recorder.open()
    start = recorder.begin()
    clock.advance(0.5)
    with suppress(IndexError):  # where it counts is gone, too
        recorder.end(start, 200, "/", "GET", request=Leaving())
    assert Kind.CAPTURES not in [chunk.kind for chunk in segment.chunks]


@pytest.mark.parametrize("status", [200, 304, 404, 500])
def test_a_failed_request_is_an_error_whatever_was_sent(
    monitor: MetricsMonitor, clock: ManualClock, status: int
) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    clock.advance(0.5)
    recorder.fail(start, status, "/", "GET")
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (1, 1)
    assert (snapshot.latency_max_ms, snapshot.requests_in_flight) == (500.0, 0)
    (row,) = monitor.get_routes()
    assert (row["error_rate_pct"], row["statuses"]) == (100.0, {f"{status // 100}xx": 1})


def test_an_abandoned_request_is_no_error_of_its_route(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    recorder = monitor.recorder
    recorder.end(recorder.begin(), 200, "/", "GET")
    recorder.begin()
    clock.advance(9)
    recorder.abandon(500, "/", "GET")
    assert (monitor.total_requests, monitor.total_errors) == (2, 0)
    (row,) = monitor.get_routes()
    assert (row["error_rate_pct"], row["latency_max_ms"]) == (0.0, 0.0)


@pytest.mark.parametrize("idle", [0.0, 30.0, 299.0, 301.0, 86_400.0])
def test_a_request_counts_when_it_ends(
    monitor: MetricsMonitor, clock: ManualClock, idle: float
) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    clock.advance(idle)
    assert monitor.total_requests == 0
    recorder.end(start, 200, "/", "GET")
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == 1
    assert snapshot.request_rate_rpm > 0
    assert snapshot.latency_max_ms == min(idle, 3600) * 1000


def test_both_maxima_are_new_in_each_step(monitor: MetricsMonitor, clock: ManualClock) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    clock.advance(8.0)
    recorder.end(start, 200, "/", "GET")
    for seconds in (1.0, 2.0, 0.5):
        clock.advance(100.0)  # a new step of the server; some are of the routes, too
        start = recorder.begin()
        clock.advance(seconds)
        recorder.end(start, 200, "/", "GET")
    clock.advance(100.0)
    assert monitor.get_current_snapshot().latency_max_ms == 2000.0
    (row,) = monitor.get_routes()
    assert row["latency_max_ms"] == 2000.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-300, 1e-9, float("nan")])
def test_a_latency_below_all_buckets_is_in_the_first(
    monitor: MetricsMonitor, seconds: float
) -> None:
    recorder = monitor.recorder
    recorder.end(recorder.begin(), 200, "/", "GET")
    recorder.begin()
    recorder.end(0.0, 200, "/", "GET", now=seconds)
    assert monitor.total_requests == 2
    (row,) = monitor.get_routes()
    assert (row["requests"], row["latency_p50_ms"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("user_id", "found"),
    [
        ("ada", ["ada"]),
        (17, ["17"]),
        (("a", 1), ["('a', 1)"]),
        ([1], ["[1]"]),
        ("", [""]),
        (None, []),
    ],
)
def test_the_user_of_a_request(monitor: MetricsMonitor, user_id: object, found: list[str]) -> None:
    recorder = monitor.recorder
    for _ in range(2):
        recorder.end(recorder.begin(), 200, "/", "GET", user_id)
    assert monitor.get_active_user_ids() == found
    assert monitor.get_current_snapshot().requests_in_flight == 0


def test_a_user_whose_id_has_no_text(monitor: MetricsMonitor) -> None:
    class Nameless:
        def __str__(self) -> str:
            raise LookupError("no name")

    recorder = monitor.recorder
    recorder.end(recorder.begin(), 200, "/", "GET", Nameless())
    assert monitor.total_requests == 1
    assert monitor.get_current_snapshot().requests_in_flight == 0
    assert monitor.get_active_user_ids() == []


def numbers(monitor: MetricsMonitor) -> dict[str, float]:
    """Every number of the snapshot and of the route table, but for the process's own use."""
    found = {
        name: value
        for name, value in monitor.get_current_snapshot().to_dict().items()
        if not isinstance(value, str) and not name.startswith(("memory", "cpu"))
    }
    for row in monitor.get_routes():
        for name, value in {**row, **row["statuses"]}.items():
            if isinstance(value, (int, float)):
                found[f"{row['method']} {row['route']}: {name}"] = value
    return found


requests = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 40.0, 400.0]),  # seconds before it
        st.floats(1e-6, 3600),  # seconds it takes
        st.sampled_from([200, 301, 404, 503]),
        st.sampled_from(["/a", "/b", None]),
        st.sampled_from(["GET", "POST", "BREW"]),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(requests=requests)
def test_it_records_as_one_does_by_hand(
    requests: list[tuple[float, float, int, str | None, str]],
) -> None:
    clock = ManualClock()
    with MetricsMonitor(clock=clock) as measured, MetricsMonitor(clock=clock) as by_hand:
        for gap, seconds, status, route, method in requests:
            clock.advance(gap)
            start = measured.recorder.begin()
            clock.advance(seconds)
            measured.recorder.end(start, status, route, method)
            by_hand.record_request(
                (clock.monotonic() - start) * 1000, method=method, route=route, status=status
            )
        # Milliseconds and back may be an ulp apart, and so fall on two sides of a border.
        expected = pytest.approx(numbers(by_hand), rel=ROUTE_BOUND, abs=0.011)
        assert numbers(measured) == expected
