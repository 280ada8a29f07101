"""Snapshots: their fields in order, frozen, rounded, stamped, and at one with the getters."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone

import pytest

from metricsmw import MetricsMonitor, MetricsSnapshot
from metricsmw.clock import ManualClock

FIELDS = {
    "timestamp": str,
    "request_rate_rpm": float,
    "error_rate_pct": float,
    "latency_p50_ms": float,
    "latency_p95_ms": float,
    "latency_p99_ms": float,
    "active_users": int,
    "memory_usage_pct": float,
    "memory_usage_mb": float,
    "cpu_usage_pct": float,
    "websocket_connections": int,
    "total_requests": int,
    "total_errors": int,
    "latency_max_ms": float,
    "requests_in_flight": int,
    "workers": int,
    "cpu_share_pct": float,
    "server_error_rate_pct": float,
    "total_server_errors": int,
}


@pytest.fixture
def filled(monitor: MetricsMonitor) -> MetricsMonitor:
    """A monitor that has seen a bit of everything."""
    monitor.record_request(10.123456, user_id="ada", method="GET", route="/", status=200)
    monitor.record_request(20.5, user_id="bob", method="GET", route="/", status=200)
    monitor.record_request(30.987654, method="GET", route="/", status=404)
    monitor.increment_websocket_connections()
    return monitor


def test_the_fields_are_in_their_order(monitor: MetricsMonitor) -> None:
    assert [field.name for field in dataclasses.fields(MetricsSnapshot)] == list(FIELDS)
    assert list(monitor.get_current_snapshot().to_dict()) == list(FIELDS)


def test_every_value_is_of_its_type(monitor: MetricsMonitor, filled: MetricsMonitor) -> None:
    with MetricsMonitor(clock=ManualClock()) as empty:
        for snapshot in (empty.get_current_snapshot(), filled.get_current_snapshot()):
            assert {name: type(value) for name, value in snapshot.to_dict().items()} == FIELDS


def test_to_dict_is_the_fields(filled: MetricsMonitor) -> None:
    snapshot = filled.get_current_snapshot()
    as_dict = snapshot.to_dict()
    assert as_dict == {name: getattr(snapshot, name) for name in FIELDS}
    assert json.loads(json.dumps(as_dict, allow_nan=False)) == as_dict
    as_dict["workers"] = 99
    assert snapshot.workers == 1


def test_it_is_frozen(monitor: MetricsMonitor) -> None:
    snapshot = monitor.get_current_snapshot()
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.total_requests = 5  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        snapshot.something_else = 5  # type: ignore[attr-defined]


def test_it_stays_as_it_was(monitor: MetricsMonitor) -> None:
    before = monitor.get_current_snapshot()
    copy = before.to_dict()
    monitor.record_request(10.0)
    assert before.to_dict() == copy
    assert monitor.get_current_snapshot() != before


def test_numbers_are_rounded_to_two_decimals(filled: MetricsMonitor) -> None:
    snapshot = filled.get_current_snapshot()
    assert snapshot.error_rate_pct == 33.33
    assert snapshot.latency_max_ms == 30.99
    assert snapshot.request_rate_rpm == 3.0
    for name, value in snapshot.to_dict().items():
        if isinstance(value, float):
            assert value == round(value, 2), name


@pytest.mark.parametrize("wall", [1_700_000_000.0, 1_700_000_000.25, 0.0, 1_709_164_800.0])
def test_the_timestamp_is_utc_with_its_offset(wall: float) -> None:
    with MetricsMonitor(clock=ManualClock(wall=wall)) as monitor:
        timestamp = monitor.get_current_snapshot().timestamp
        assert timestamp.endswith("+00:00")
        assert timestamp[10] == "T"
        assert datetime.fromisoformat(timestamp) == datetime(
            1970, 1, 1, tzinfo=timezone.utc
        ) + timedelta(seconds=wall)


def test_the_getters_say_the_same(filled: MetricsMonitor) -> None:
    snapshot = filled.get_current_snapshot()
    assert filled.get_request_rate_rpm() == snapshot.request_rate_rpm
    assert filled.get_error_rate_pct() == snapshot.error_rate_pct
    assert filled.get_latency_percentiles() == (
        snapshot.latency_p50_ms,
        snapshot.latency_p95_ms,
        snapshot.latency_p99_ms,
    )
    assert filled.get_active_users() == snapshot.active_users == 2
    assert filled.get_websocket_connections() == snapshot.websocket_connections == 1
    assert filled.total_requests == filled._total_requests == snapshot.total_requests == 3
    assert filled.total_errors == filled._total_errors == snapshot.total_errors == 1
    assert snapshot.workers == 1


def test_statistics_have_three_parts(filled: MetricsMonitor) -> None:
    statistics = filled.get_statistics()
    assert list(statistics) == ["current", "totals", "configuration"]
    # After the snapshot's own fields it may say more, of estimated users for one.
    assert list(statistics["current"])[: len(FIELDS)] == list(FIELDS)
    assert statistics["current"]["total_requests"] == 3
    totals = statistics["totals"]
    assert totals["total_requests"] == 3
    assert totals["total_errors"] == 1
    assert totals["total_error_rate_pct"] == 33.33
    configuration = statistics["configuration"]
    assert configuration["window_seconds"] == 300
    assert configuration["user_timeout_seconds"] == 300
    assert configuration["max_history_minutes"] == 60
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics


def test_totals_outlive_the_window(filled: MetricsMonitor, clock: ManualClock) -> None:
    clock.advance(3600)
    statistics = filled.get_statistics()
    assert statistics["current"]["error_rate_pct"] == 0.0
    assert statistics["totals"]["total_error_rate_pct"] == 33.33
    assert statistics["totals"]["total_requests"] == 3


@pytest.mark.parametrize("name", ["total_requests", "total_errors", "window_seconds"])
def test_properties_are_read_only(monitor: MetricsMonitor, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(monitor, name, 5)
