"""Gauges: open WebSockets, requests in flight, memory and CPU."""

from __future__ import annotations

import time

import psutil
import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock


def test_websockets_are_counted_up_and_down(monitor: MetricsMonitor) -> None:
    assert monitor.get_websocket_connections() == 0
    for _ in range(3):
        monitor.increment_websocket_connections()
    monitor.decrement_websocket_connections()
    assert monitor.get_websocket_connections() == 2
    assert monitor.get_current_snapshot().websocket_connections == 2


def test_websockets_are_never_below_zero(monitor: MetricsMonitor) -> None:
    for _ in range(5):
        monitor.decrement_websocket_connections()
    assert monitor.get_websocket_connections() == 0
    monitor.increment_websocket_connections()
    assert monitor.get_websocket_connections() == 1


def test_websockets_do_not_time_out(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.increment_websocket_connections()
    clock.advance(86_400)
    assert monitor.get_websocket_connections() == 1
    assert monitor.total_requests == 0


def test_a_request_is_in_flight_until_its_end(monitor: MetricsMonitor, clock: ManualClock) -> None:
    recorder = monitor.recorder
    start = recorder.begin()
    assert monitor.get_current_snapshot().requests_in_flight == 1
    assert monitor.total_requests == 0
    clock.advance(0.25)
    recorder.end(start, 500, "/slow", "GET")
    snapshot = monitor.get_current_snapshot()
    assert snapshot.requests_in_flight == 0
    assert (snapshot.total_requests, snapshot.total_errors) == (1, 1)
    assert snapshot.latency_max_ms == 250.0
    (row,) = monitor.get_routes()
    assert (row["method"], row["route"], row["requests"]) == ("GET", "/slow", 1)
    assert row["error_rate_pct"] == 100.0


def test_an_abandoned_request_is_in_the_total_only(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    recorder = monitor.recorder
    recorder.begin()
    clock.advance(30)
    recorder.abandon(500, "/gone", "GET")
    snapshot = monitor.get_current_snapshot()
    assert snapshot.requests_in_flight == 0
    assert (snapshot.total_requests, snapshot.total_errors) == (1, 0)
    assert snapshot.latency_max_ms == snapshot.latency_p99_ms == snapshot.error_rate_pct == 0.0


def test_a_request_that_leaves_is_not_counted(monitor: MetricsMonitor) -> None:
    recorder = monitor.recorder
    recorder.begin()
    recorder.cancel()
    snapshot = monitor.get_current_snapshot()
    assert snapshot.requests_in_flight == snapshot.total_requests == 0
    assert monitor.get_routes() == []


def test_several_are_in_flight(monitor: MetricsMonitor) -> None:
    recorder = monitor.recorder
    starts = [recorder.begin() for _ in range(5)]
    recorder.end(starts[0], 200, "/", "GET")
    recorder.abandon(200, "/", "GET")
    assert monitor.get_current_snapshot().requests_in_flight == 3


def test_memory_is_that_of_the_process(monitor: MetricsMonitor) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pct, mb = monitor.get_memory_usage()
    after = process.memory_info().rss
    low, high = sorted((before, after))
    assert low / 2**20 - 8 <= mb <= high / 2**20 + 8
    assert pct == pytest.approx(mb * 2**20 / psutil.virtual_memory().total * 100, abs=0.02)


def test_cpu_use_is_seen() -> None:
    # On the system's clock: CPU time is real time. Burns until it shows.
    with MetricsMonitor() as monitor:
        monitor.get_cpu_usage()
        give_up = time.monotonic() + 30
        while monitor.get_cpu_usage() == 0.0:
            assert time.monotonic() < give_up
            sum(range(100_000))
        assert 0.0 < monitor.get_cpu_usage() <= 100.0 * (psutil.cpu_count() or 1) * 1.5


def test_nothing_sleeps(monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(time, "sleep", no_sleep)
    assert monitor.get_cpu_usage() >= 0.0
    assert monitor.get_memory_usage()[1] > 0.0
    monitor.record_request(1.0)
    assert monitor.get_current_snapshot().total_requests == 1
    assert monitor.get_metrics_history() == []
