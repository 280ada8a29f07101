"""Health: thresholds over snapshot fields, and the state of the monitor's own parts."""

from __future__ import annotations

import pytest

from metricsmw import MetricsMonitor

COMPONENTS = ["metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"]


@pytest.fixture
def filled(monitor: MetricsMonitor) -> MetricsMonitor:
    """One error in four, slowest 400 ms."""
    for latency, is_error in ((100.0, False), (200.0, False), (300.0, False), (400.0, True)):
        monitor.record_request(latency, is_error)
    return monitor


def test_all_below_is_healthy(filled: MetricsMonitor) -> None:
    thresholds = {"error_rate_pct": 30.0, "latency_p99_ms": 1000.0, "total_requests": 5}
    assert filled.check_health(thresholds) == {
        "status": "healthy",
        "checks": {"error_rate_pct": True, "latency_p99_ms": True, "total_requests": True},
    }


def test_one_above_is_degraded(filled: MetricsMonitor) -> None:
    assert filled.check_health({"error_rate_pct": 5.0, "latency_p99_ms": 1000.0}) == {
        "status": "degraded",
        "checks": {"error_rate_pct": False, "latency_p99_ms": True},
    }


def test_without_thresholds_it_is_healthy(filled: MetricsMonitor) -> None:
    assert filled.check_health({}) == {"status": "healthy", "checks": {}}


def test_it_is_of_now(filled: MetricsMonitor) -> None:
    assert filled.check_health({"error_rate_pct": 30})["status"] == "healthy"
    filled.record_request(1.0, is_error=True)
    assert filled.check_health({"error_rate_pct": 30})["status"] == "degraded"
    filled.reset_statistics()
    assert filled.check_health({"error_rate_pct": 30})["status"] == "healthy"


@pytest.mark.parametrize("field", ["error_rate", "nonsense", "timestamp", "__class__"])
def test_a_field_that_has_no_number_is_refused(filled: MetricsMonitor, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        filled.check_health({field: 5.0})


def test_a_new_monitor_is_operational(monitor: MetricsMonitor) -> None:
    health = monitor.get_health()
    assert health["status"] == "healthy"
    assert health["components"] == dict.fromkeys(COMPONENTS, "operational")
    assert (health["workers"], health["mode"]) == (1, "private")
    assert (health["segments_left_out"], health["faults"]) == (0, 0)


def test_a_fault_is_counted_and_logged_once(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        try:
            raise RuntimeError("a resolver broke")
        except RuntimeError:
            monitor.recorder.faults.report("route resolver")
    assert monitor.get_health()["faults"] == 3
    (record,) = caplog.records
    assert "route resolver" in record.getMessage()
    assert record.exc_info is not None
