"""Reset: nothing recorded before it is ever reported after it."""

from __future__ import annotations

import pytest
from kits.reference import GLOBAL_BOUND

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock


def fill(monitor: MetricsMonitor) -> None:
    """Record a bit of everything."""
    for _ in range(10):
        monitor.record_request(
            500.0, is_error=True, user_id="ada", method="GET", route="/old", status=500
        )


def assert_empty(monitor: MetricsMonitor) -> None:
    """No trace of anything recorded."""
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (0, 0)
    assert monitor.total_requests == monitor.total_errors == 0
    assert snapshot.request_rate_rpm == snapshot.error_rate_pct == 0.0
    assert snapshot.latency_p50_ms == snapshot.latency_p99_ms == snapshot.latency_max_ms == 0.0
    assert snapshot.active_users == 0
    assert monitor.get_active_user_ids() == []
    assert monitor.get_routes() == []
    assert monitor.get_metrics_history() == []
    assert monitor.get_statistics()["totals"]["total_error_rate_pct"] == 0.0


@pytest.mark.parametrize("later", [0.0, 0.5, 5.0, 59.0, 200.0, 301.0, 3600.0])
def test_everything_is_gone(monitor: MetricsMonitor, clock: ManualClock, later: float) -> None:
    clock.advance(100)
    fill(monitor)
    clock.advance(later)
    monitor.reset_statistics()
    assert_empty(monitor)


@pytest.mark.parametrize("later", [0.0, 1.0, 30.0, 59.0, 250.0, 299.0, 301.0, 1e6])
def test_nothing_comes_back(monitor: MetricsMonitor, clock: ManualClock, later: float) -> None:
    for _ in range(20):
        fill(monitor)
        clock.advance(7)
    monitor.reset_statistics()
    clock.advance(later)
    monitor.record_request(20.0, user_id="bob", method="GET", route="/new", status=200)
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (1, 0)
    assert snapshot.error_rate_pct == 0.0
    assert snapshot.latency_max_ms == 20.0
    assert snapshot.latency_p50_ms == pytest.approx(20.0, rel=GLOBAL_BOUND)
    assert monitor.get_active_user_ids() == ["bob"]
    assert [(row["route"], row["requests"]) for row in monitor.get_routes()] == [("/new", 1)]
    history = monitor.get_metrics_history()
    assert {entry["total_requests"] for entry in history} <= {0}
    assert {entry["total_errors"] for entry in history} <= {0}


def test_the_age_starts_again(monitor: MetricsMonitor, clock: ManualClock) -> None:
    clock.advance(10_000)
    fill(monitor)
    monitor.reset_statistics()
    clock.advance(120)
    for _ in range(10):
        monitor.record_request(1.0)
    assert monitor.get_request_rate_rpm() == 5.0


def test_the_history_starts_again(monitor: MetricsMonitor, clock: ManualClock) -> None:
    fill(monitor)
    clock.advance(600)
    assert len(monitor.get_metrics_history()) == 10
    monitor.reset_statistics()
    assert monitor.get_metrics_history() == []
    clock.advance(180)
    assert [entry["total_requests"] for entry in monitor.get_metrics_history()] == [0, 0, 0]


def test_what_is_open_stays_open(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.increment_websocket_connections()
    start = monitor.recorder.begin()
    monitor.reset_statistics()
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.websocket_connections, snapshot.requests_in_flight) == (1, 1)
    clock.advance(0.5)
    monitor.recorder.end(start, 200, "/", "GET")
    monitor.decrement_websocket_connections()
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.websocket_connections, snapshot.requests_in_flight) == (0, 0)
    assert snapshot.total_requests == 1


def test_again_and_again(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for round_ in range(2 * 4 * 7):
        for _ in range(round_ % 4):
            monitor.record_request(10.0, True, f"user-{round_}", method="GET", route="/")
        assert monitor.total_requests == round_ % 4
        clock.advance(round_ % 7)
        monitor.reset_statistics()
        monitor.reset_statistics()
        assert_empty(monitor)


@pytest.mark.parametrize("into_the_step", [0.0, 2.0, 4.9])
def test_the_maximum_is_exact_from_the_reset_on(
    monitor: MetricsMonitor, clock: ManualClock, into_the_step: float
) -> None:
    monitor.record_request(9000.0, method="GET", route="/", status=200)
    clock.advance(100 + into_the_step)
    monitor.reset_statistics()
    monitor.record_request(123.45, method="GET", route="/", status=200)
    monitor.record_request(123.44, method="GET", route="/", status=200)
    assert monitor.get_current_snapshot().latency_max_ms == 123.45
    assert monitor.get_routes()[0]["latency_max_ms"] == 123.45


def test_the_configuration_stays(clock: ManualClock) -> None:
    with MetricsMonitor(77, user_timeout_seconds=120, clock=clock) as monitor:
        before = monitor.get_statistics()["configuration"]
        monitor.reset_statistics()
        assert monitor.get_statistics()["configuration"] == before
        assert monitor.window_seconds == 77
