"""`for` and `over` are met by what happened in that time, not by a window that smears it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.values import span_of
from metricsmw.clock import ManualClock

Make = Callable[..., MetricsAlerter]
STEP = 5.0


def run(
    one: MetricsAlerter,
    monitor: MetricsMonitor,
    clock: ManualClock,
    seconds: float,
    *,
    good: int = 0,
    bad: int = 0,
    every: float = 30.0,
) -> list[str]:
    """Let so many requests pass in each tenth of a second; check after every so many seconds."""
    found = []
    for tenth in range(1, round(seconds * 10) + 1):
        for number in range(good + bad):
            monitor.record_request(1.0, is_error=number < bad)
        clock.advance(0.1)
        if tenth % round(every * 10) == 0:
            found += [alert.state for alert in one.check()]
    return found


@pytest.mark.parametrize("offset", [0.0, 1.3, 4.95])
@pytest.mark.parametrize("every", [1.0, 30.0])
def test_a_burst_does_not_last(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, offset: float, every: float
) -> None:
    one = alerter(rules=["error_rate_pct > 20 for 10s"])
    clock.advance(offset)
    run(one, monitor, clock, 60, good=1)
    assert run(one, monitor, clock, 0.1, bad=2000, every=every) == []
    assert run(one, monitor, clock, 120, good=1, every=every) == []
    assert one.get_alerts()[0]["state"] == "inactive"


@pytest.mark.parametrize("offset", [0.0, 1.3, 4.95])
@pytest.mark.parametrize("every", [1.0, 30.0])
def test_a_storm_of_twenty_seconds_fires(
    alerter: Make,
    monitor: MetricsMonitor,
    clock: ManualClock,
    told: list[Alert],
    offset: float,
    every: float,
) -> None:
    one = alerter(rules=["error_rate_pct > 20 for 10s"])
    clock.advance(offset)
    assert run(one, monitor, clock, 60, good=5, every=every) == []
    found = run(one, monitor, clock, 20, good=2, bad=3, every=every)
    found += run(one, monitor, clock, 60, good=5, every=every)
    assert found == ["firing", "resolved"]
    assert one.flush()
    assert [alert.state for alert in told] == ["firing", "resolved"]
    assert told[0].value is not None
    assert 20 < told[0].value <= 60
    (past,) = one.get_past_alerts()
    assert (past["noticed"], past["ended"]) == (told[0].at, told[1].at)


def test_over_takes_that_span(alerter: Make, monitor: MetricsMonitor, clock: ManualClock) -> None:
    one = alerter(
        rules=["error_rate_pct > 20 over 1m", "p99 > 100 over 10s", "error_rate_pct > 20"]
    )
    run(one, monitor, clock, 300, good=1, every=5)
    assert run(one, monitor, clock, 30, bad=1, every=5) == ["firing"]
    assert one.get_alerts()[0]["value"] == pytest.approx(45, abs=6)
    assert run(one, monitor, clock, 60, good=1, every=5) == ["resolved"]


def test_latency_over_a_span_is_of_its_requests(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=["p95 > 100 over 10s"])
    for _ in range(60):
        for _ in range(100):
            monitor.record_request(5.0)
        clock.advance(5)
    assert one.check() == []
    for _ in range(2):
        for _ in range(10):
            monitor.record_request(500.0)
        clock.advance(5)
    (alert,) = one.check()
    assert alert.value == pytest.approx(500, rel=0.011)


def test_a_route_over_a_span(alerter: Make, monitor: MetricsMonitor, clock: ManualClock) -> None:
    one = alerter(rules=["error_rate_pct > 50 on /x over 30s", "requests > 99 on GET /x over 1m"])
    found = []
    for slot in range(10):
        for _ in range(60):
            status = 500 if slot == 5 else 200
            monitor.record_request(1.0, method="GET", route="/x", status=status)
        clock.advance(30)
        found.append(sorted((alert.type, alert.state) for alert in one.check()))
    clock.advance(60)
    found.append(sorted((alert.type, alert.state) for alert in one.check()))
    assert [changes for changes in found if changes] == [
        [("REQUESTS", "firing")],
        [("ERROR_RATE", "firing")],
        [("ERROR_RATE", "resolved")],
        [("REQUESTS", "resolved")],
    ]


def test_a_rate_is_not_known_before_its_span_is_over(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=["request_rate_rpm < 10 over 1m"])
    assert run(one, monitor, clock, 55, every=5) == []
    assert run(one, monitor, clock, 15, every=5) == ["firing"]


@pytest.mark.parametrize(
    ("rule", "steps", "counted", "least"),
    [
        ("error_rate_pct > 5 over 1m", 12, 12, 0.0),
        ("error_rate_pct > 5 over 1m for 10s", 12, 12, 0.0),
        ("error_rate_pct > 5 over 7s", 2, 2, 0.0),
        ("error_rate_pct > 5 for 1s", 1, 1, 10.0),
        ("error_rate_pct > 5 for 10s", 1, 2, 10.0),
        ("error_rate_pct > 5 for 20s", 2, 4, 15.0),
        ("error_rate_pct > 5 for 1m", 6, 12, 35.0),
        ("error_rate_pct > 5 for 1h", 60, 60, 305.0),
    ],
)
def test_the_span_of_a_rule(rule: str, steps: int, counted: int, least: float) -> None:
    parsed = parse(rule)
    span = span_of(parsed, STEP, 60)
    assert span == (steps, counted, least)
    # What keeps a burst within one step from lasting for the rule's time.
    if parsed.over_seconds is None:
        assert steps * STEP < max(parsed.for_seconds, least)


def test_a_span_is_within_the_window(alerter: Make) -> None:
    with pytest.raises(ValueError, match=r"over_seconds must be at most the window \(300\)"):
        alerter(rules=["error_rate_pct > 5 over 10m"])
