"""Bad settings and bad input are refused in words that help, and leave no trace."""

from __future__ import annotations

import math
import re
from http import HTTPStatus
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

GOOD_SETTINGS: list[dict[str, Any]] = [
    {"window_seconds": 10},
    {"window_seconds": 3600},
    {"user_timeout_seconds": 60},
    {"max_history_minutes": 1},
    {"max_history_minutes": 60},
    {"max_routes": 1},
    {"max_users": 1},
    {"shared": False},
]

OUT_OF_RANGE: list[tuple[str, int]] = [
    ("window_seconds", 9),
    ("window_seconds", 0),
    ("window_seconds", -300),
    ("window_seconds", 3601),
    ("window_seconds", 10**12),
    ("user_timeout_seconds", 0),
    ("user_timeout_seconds", -1),
    ("max_history_minutes", -1),
    ("max_history_minutes", 10**12),
    ("max_routes", -1),
    ("max_routes", 10**12),
    ("max_users", -1),
    ("max_users", 10**12),
]

WRONG_TYPE: list[tuple[str, object]] = [
    ("window_seconds", "300"),
    ("window_seconds", 300.5),
    ("window_seconds", math.nan),
    ("window_seconds", math.inf),
    ("window_seconds", []),
    ("user_timeout_seconds", "300"),
    ("max_history_minutes", "60"),
    ("max_routes", 2.5),
    ("max_users", "many"),
]


@pytest.mark.parametrize("settings", GOOD_SETTINGS, ids=str)
def test_good_settings_are_taken(settings: dict[str, Any]) -> None:
    with MetricsMonitor(**settings, clock=ManualClock()) as monitor:
        monitor.record_request(1.0, user_id="ada", method="GET", route="/", status=200)
        assert monitor.total_requests == 1
        configuration = monitor.get_statistics()["configuration"]
        for name, value in settings.items():
            if name in ("window_seconds", "user_timeout_seconds", "max_history_minutes"):
                assert configuration[name] == value


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_setting_out_of_range_is_named_with_value_and_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        MetricsMonitor(**{name: value})  # type: ignore[arg-type]
    numbers = [int(number) for number in re.findall(r"-?\d+", str(caught.value))]
    numbers.remove(value)
    assert len(numbers) >= 2, f"no range in {caught.value}"
    if name == "window_seconds":
        assert {10, 3600} <= set(numbers)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE)
def test_a_setting_of_the_wrong_kind_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=name) as caught:
        MetricsMonitor(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["yes", 2, None])
def test_shared_is_one_of_its_values(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="shared"):
        MetricsMonitor(shared=value)  # type: ignore[arg-type]


def test_an_unknown_setting_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="windw"):
        MetricsMonitor(windw=300)  # type: ignore[call-arg]


def test_settings_but_the_window_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        MetricsMonitor(300, 300)  # type: ignore[call-arg]


def assert_untouched(monitor: MetricsMonitor) -> None:
    """Nothing was recorded, by any measure."""
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == snapshot.total_errors == 0
    assert snapshot.request_rate_rpm == snapshot.latency_max_ms == 0.0
    assert snapshot.active_users == snapshot.requests_in_flight == 0
    assert monitor.get_routes() == []


@pytest.mark.parametrize("latency", [math.nan, math.inf, -math.inf, -1.0, -1, -1e-9, -1e300])
def test_a_latency_that_cannot_be_is_a_value_error(monitor: MetricsMonitor, latency: float) -> None:
    with pytest.raises(ValueError, match="latency_ms") as caught:
        monitor.record_request(
            latency, is_error=True, user_id="ada", method="GET", route="/", status=500
        )
    assert repr(latency) in str(caught.value)
    assert_untouched(monitor)


@pytest.mark.parametrize("latency", ["12", None, True, False, [1.0], 1j, b"1"], ids=repr)
def test_a_latency_that_is_no_number_is_a_type_error(
    monitor: MetricsMonitor, latency: object
) -> None:
    with pytest.raises(TypeError, match="latency_ms"):
        monitor.record_request(
            latency,  # type: ignore[arg-type]
            is_error=True,
            user_id="ada",
            method="GET",
            route="/",
            status=500,
        )
    assert_untouched(monitor)


def test_a_number_too_big_for_a_float_is_a_value_error(monitor: MetricsMonitor) -> None:
    with pytest.raises(ValueError, match="latency_ms"):
        monitor.record_request(10**400, user_id="ada")
    assert_untouched(monitor)


@pytest.mark.parametrize("status", [-1, 0, 1, 99, 600, 1000, 10**12])
def test_a_status_out_of_range_is_a_value_error(monitor: MetricsMonitor, status: int) -> None:
    with pytest.raises(ValueError, match="status") as caught:
        monitor.record_request(1.0, True, "ada", method="GET", route="/", status=status)
    for part in (str(status), "100", "599"):
        assert part in str(caught.value)
    assert_untouched(monitor)


@pytest.mark.parametrize("status", ["200", 200.5, b"200", [200]], ids=repr)
def test_a_status_that_is_no_whole_number_is_refused(
    monitor: MetricsMonitor, status: object
) -> None:
    with pytest.raises((TypeError, ValueError), match="status"):
        monitor.record_request(
            1.0,
            True,
            "ada",
            method="GET",
            route="/",
            status=status,  # type: ignore[arg-type]
        )
    assert_untouched(monitor)


@pytest.mark.parametrize("status", [100, 599, HTTPStatus.NOT_FOUND])
def test_a_status_in_range_is_taken(monitor: MetricsMonitor, status: int) -> None:
    monitor.record_request(1, method="GET", route="/", status=status)
    (row,) = monitor.get_routes()
    assert {k: n for k, n in row["statuses"].items() if n} == {f"{int(status) // 100}xx": 1}


def test_a_monitor_goes_on_after_bad_input(monitor: MetricsMonitor) -> None:
    monitor.record_request(10.0)
    for bad in (math.nan, -5.0):
        with pytest.raises(ValueError, match="latency_ms"):
            monitor.record_request(bad)
    monitor.record_request(20)
    assert monitor.total_requests == 2
    assert monitor.get_current_snapshot().latency_max_ms == 20.0


@pytest.mark.parametrize("minutes", [0, -1])
def test_history_of_no_minutes_is_a_value_error(monitor: MetricsMonitor, minutes: int) -> None:
    with pytest.raises(ValueError, match="minutes") as caught:
        monitor.get_metrics_history(minutes=minutes)
    assert str(minutes) in str(caught.value)
