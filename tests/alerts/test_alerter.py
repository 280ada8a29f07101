"""`MetricsAlerter` by hand, on a clock moved by hand: what is told, when, and how often."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from kits.servers import wait_until

from metricsmw import MetricsMonitor, MetricsSnapshot
from metricsmw.alerts import Alert, BurnRate, MetricsAlerter, Rule, get_alerts, outbox
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.server import ServerReader
from metricsmw.engine.workers.job import PeriodicTask

Make = Callable[..., MetricsAlerter]


def show(
    monkeypatch: pytest.MonkeyPatch, monitor: MetricsMonitor, snapshot: Callable[[], Any]
) -> None:
    """Have readings of the monitor show that snapshot; all else is as it is."""
    read = monitor.read

    class Shown:
        def __init__(self, **asked: bool) -> None:
            self._reading = read(**asked)

        def __getattr__(self, name: str) -> Any:
            return snapshot() if name == "snapshot" else getattr(self._reading, name)

    monkeypatch.setattr(monitor, "read", Shown)


def states(told: list[Alert]) -> list[tuple[str, str]]:
    return [(alert.type, alert.state) for alert in told]


def check(alerter: MetricsAlerter) -> list[str]:
    """Check, wait until it is told, and return the states that changed."""
    changes = [alert.state for alert in alerter.check()]
    assert alerter.flush()
    return changes


def test_the_thresholds_of_the_start(alerter: Make) -> None:
    one = alerter()
    assert one.thresholds == {
        "error_rate_pct": 5.0,
        "latency_p99_ms": 1000.0,
        "memory_usage_pct": 80.0,
        "cpu_share_pct": 80.0,
    }
    types = [rule.name for rule in one.rules.values()]
    assert types == ["ERROR_RATE", "HIGH_LATENCY", "HIGH_MEMORY", "HIGH_CPU"]
    assert one.check_interval == 30


def test_told_once_on_crossing_and_once_on_recovery(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(
        thresholds={"error_rate_pct": 5.0, "latency_p99_ms": 1000.0}, link="http://h/m/", at_least=1
    )
    assert check(one) == []
    monitor.record_request(2500.0, is_error=True)
    began = clock.time()
    assert check(one) == ["firing", "firing"]
    for _ in range(5):
        clock.advance(30)
        assert check(one) == []
    assert states(told) == [("ERROR_RATE", "firing"), ("HIGH_LATENCY", "firing")]
    clock.advance(400)  # what was slow and failed has left the window
    monitor.record_request(10.0)
    check(one)
    assert sorted(states(told[2:])) == [("ERROR_RATE", "resolved"), ("HIGH_LATENCY", "resolved")]
    first = told[0]
    assert (first.field, first.value, first.comparison, first.threshold) == (
        "error_rate_pct", 100.0, ">", 5.0
    )  # fmt: skip
    assert first.since == "2023-11-14T22:13:20.000000+00:00"
    assert began == 1_700_000_000.0
    for part in ("ERROR_RATE", "100", "> 5", first.since, first.host, "http://h/m/", "warning"):
        assert part in str(first)
    assert len({alert.id for alert in told}) == len(told)


def test_only_after_for_seconds(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(thresholds={"total_errors": 0.0}, for_seconds=60)
    monitor.record_request(1.0, is_error=True)
    for wait in (0, 30, 29):
        clock.advance(wait)
        assert check(one) == []
        assert one.get_alerts()[0]["state"] == "pending"
    clock.advance(1)
    assert check(one) == ["firing"]
    assert told[0].since == "2023-11-14T22:13:20.000000+00:00"
    assert told[0].at == "2023-11-14T22:14:20.000000+00:00"


def test_flapping_around_the_threshold_is_told_once(
    alerter: Make, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, monitor: MetricsMonitor
) -> None:
    one = alerter(rules=["cpu_usage_pct > 80 clear 60"])
    base = monitor.get_current_snapshot()
    shown = [base]
    show(monkeypatch, monitor, lambda: shown[-1])
    changes = []
    for value in [81.0, 79.0] * 20 + [61.0, 60.0] + [79.0, 61.0] * 20 + [80.5]:
        shown.append(replace(base, cpu_usage_pct=value))
        clock.advance(30)
        changes += check(one)
    assert changes == ["firing", "resolved", "firing"]


def test_no_requests_is_no_error_rate(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(
        rules=[
            "error_rate_pct > 5 at least 1 requests",
            "latency_p99_ms < 50 at least 1 requests",
            "request_rate_rpm < 1",
        ]
    )
    assert [alert.type for alert in one.check()] == ["REQUEST_RATE_RPM"]
    monitor.record_request(1.0, is_error=True)
    assert check(one) == ["firing", "firing", "resolved"]
    clock.advance(600)
    assert check(one) == ["resolved", "resolved", "firing"]
    assert one.get_alerts()[0]["value"] is None


@pytest.mark.parametrize("broken", [math.nan, "n/a", None])
def test_a_broken_source_changes_nothing(
    alerter: Make,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: Any,
) -> None:
    one = alerter(rules=["cpu_usage_pct > 80", "memory_usage_pct > 200"])
    base = replace(monitor.get_current_snapshot(), cpu_usage_pct=1.0)
    shown: list[MetricsSnapshot] = [replace(base, cpu_usage_pct=99.0)]
    show(monkeypatch, monitor, lambda: shown[-1])
    assert check(one) == ["firing"]
    shown.append(replace(base, cpu_usage_pct=broken))
    for _ in range(3):
        assert check(one) == []
    assert one.get_alerts()[0]["state"] == "firing"
    assert one.get_alerts()[0]["value"] == 99.0
    faults = [r for r in caplog.records if "the alert rule HIGH_CPU" in r.getMessage()]
    assert len(faults) == 1
    assert monitor.get_health()["faults"] == 3
    shown.append(base)
    assert check(one) == ["resolved"]


def test_a_monitor_that_raises_breaks_no_check(
    alerter: Make, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = alerter(rules=["requests > 0 on /x", "cpu_usage_pct > 1e9"])
    monitor.record_request(1.0, route="/x", method="GET", status=500)

    def broken() -> None:
        raise OSError("no numbers")

    show(monkeypatch, monitor, broken)
    assert check(one) == ["firing"]


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, -3.0])
def test_a_jump_of_the_wall_clock_moves_only_timestamps(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, jump: float
) -> None:
    one = alerter(rules=["workers > 0 for 60s", "error_rate_pct > 5 for 60s"])
    found = []

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            monitor.record_request(1.0, is_error=True)
            clock.advance(1)
        found.extend(check(one))

    wait(0)
    wait(59)
    clock.wall += jump
    assert found == []
    wait(1)
    assert found == ["firing"]
    clock.wall -= 2 * jump
    wait(30)
    assert found == ["firing", "firing"]
    clock.advance(300)
    assert check(one) == ["resolved"]


def test_rules_of_a_route(alerter: Make, monitor: MetricsMonitor, told: list[Alert]) -> None:
    one = alerter(
        rules=[Rule("error_rate_pct", 5, route="/items/{id}", severity="critical", at_least=1)]
    )
    monitor.record_request(1.0, route="/other", method="GET", status=500)
    assert check(one) == []
    monitor.record_request(1.0, route="/items/{id}", method="GET", status=500)
    assert check(one) == ["firing"]
    assert told[0].route == "/items/{id}"
    assert "/items/{id}" in told[0].title
    assert "critical" in str(told[0])


def test_a_burn_rate_over_two_windows(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=[BurnRate(99.0, 10.0, 30, 5)])
    changes = []

    def minute(good: int, bad: int) -> None:
        for n in range(good + bad):
            monitor.record_request(1.0, is_error=n < bad)
        clock.advance(60)
        changes.append(check(one))

    for _ in range(40):
        minute(100, 0)
    minute(50, 50)  # the short window burns, the long one hardly
    assert changes == [[]] * 41
    for _ in range(6):
        minute(50, 50)
    assert [c for c in changes if c] == [["firing"]]
    for _ in range(3):
        minute(100, 0)
    assert [c for c in changes if c] == [["firing"]]
    for _ in range(4):
        minute(100, 0)
    assert [c for c in changes if c] == [["firing"], ["resolved"]]


def test_a_reset_starts_the_burn_rate_again(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=[BurnRate(99.0, 10.0, 30, 5)])
    found = []
    for _ in range(30):
        for _ in range(10):
            monitor.record_request(1.0, is_error=True)
        clock.advance(60)
        found += check(one)
    assert found == ["firing"]
    monitor.reset_statistics()
    monitor.record_request(1.0)
    assert check(one) == ["resolved"]


@pytest.mark.parametrize("errors", [1, 1000])
def test_a_burn_rate_waits_until_its_long_window_is_covered(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, errors: int
) -> None:
    one = alerter(rules=[BurnRate(99.9)])
    fired_at = []
    for second in range(6, 3700, 30):
        for number in range(errors + 1):
            monitor.record_request(1.0, is_error=number < errors)
        clock.advance(30 if second > 6 else 6)
        fired_at += [second for _ in check(one)]
    assert fired_at == [3606]


def test_every_rule_is_listed_the_worst_first(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(
        rules=[
            "total_requests > 99",
            "total_requests > 0 for 1h",
            "total_errors > 0 critical",
            "total_requests > 0",
        ]
    )
    other = alerter(name="other", rules=["workers > 0 info"])
    assert get_alerts(monitor)[0] == []
    monitor.record_request(1.0, is_error=True)
    check(one)
    check(other)
    rows, counts = get_alerts(monitor)
    assert [(row["type"], row["state"]) for row in rows] == [
        ("TOTAL_ERRORS", "firing"),
        ("TOTAL_REQUESTS", "firing"),
        ("WORKERS", "firing"),
        ("TOTAL_REQUESTS", "pending"),
        ("TOTAL_REQUESTS", "inactive"),
    ]
    assert rows[0]["since"] == "2023-11-14T22:13:20.000000+00:00"
    assert rows[-1]["since"] is None
    assert counts == {"waiting": 0, "sent": 3, "failed_attempts": 0, "given_up": 0}


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"thresholds": {"error_rate": 5}}, ValueError, "error_rate"),
        ({"thresholds": {"error_rate_pct": "5"}}, TypeError, "error_rate_pct"),
        ({"rules": ["nonsense > 5"]}, ValueError, "nonsense"),
        ({"rules": [5]}, TypeError, "5"),
        ({"rules": [BurnRate(99.0, 1.0, 600, 5)]}, ValueError, r"max_history_minutes \(60\)"),
        ({"rules": ["workers > 1", "workers > 1"]}, ValueError, "twice"),
        ({"check_interval": 0}, ValueError, "check_interval"),
        ({"check_interval": "30"}, TypeError, "check_interval"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"name": "../x"}, ValueError, "name"),
        ({"notify": 5}, TypeError, "notify"),
        ({"notify": "nobody://knows.this?password=secret"}, ValueError, "nobody://"),
    ],
)
def test_bad_settings_are_an_error_at_the_start(
    alerter: Make, settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        alerter(**settings)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("nobody", [None, []])
def test_without_a_receiver_it_logs(
    alerter: Make, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, nobody: Any
) -> None:
    one = alerter(notify=nobody, at_least=1)
    monitor.record_request(1.0, is_error=True)
    check(one)
    (record,) = [r for r in caplog.records if r.name == "metricsmw.alerts"]
    assert record.levelno == logging.WARNING
    assert "ERROR_RATE" in record.getMessage()


def test_it_runs_from_the_start_until_it_is_stopped(told: list[Alert]) -> None:
    with MetricsMonitor() as monitor:
        one = MetricsAlerter(monitor, 0.1, {"total_errors": 0}, told.append)
        one.start()  # once more changes nothing
        monitor.record_request(1.0, is_error=True)
        wait_until(lambda: told, "the alert")
        one.stop()
        one.stop()
        assert states(told) == [("TOTAL_ERRORS", "firing")]
        assert not [t for t in threading.enumerate() if t.name == "metricsmw alerts"]


def test_two_of_one_name_in_a_process_are_warned_of(monitor: MetricsMonitor) -> None:
    with MetricsAlerter(monitor) as one, MetricsAlerter(monitor, name="other"):
        with (
            pytest.warns(RuntimeWarning, match="another 'alerts' of this monitor") as warned,
            MetricsAlerter(monitor),
        ):
            pass
        assert warned[0].filename == __file__
        one.stop()
        with warnings.catch_warnings(), MetricsAlerter(monitor):
            warnings.simplefilter("error")


def test_another_of_the_same_name_goes_on_where_this_one_stopped(
    alerter: Make, monitor: MetricsMonitor, told: list[Alert]
) -> None:
    one, two = alerter(thresholds={"total_errors": 0}), alerter(thresholds={"total_errors": 0})
    monitor.record_request(1.0, is_error=True)
    assert check(one) == ["firing"]
    assert check(two) == []
    one.stop()
    assert check(two) == []
    monitor.reset_statistics()
    assert check(two) == ["resolved"]
    assert check(one) == []
    assert states(told) == [("TOTAL_ERRORS", "firing"), ("TOTAL_ERRORS", "resolved")]


def test_a_rule_that_a_reload_tunes_goes_on_as_it_was(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(rules=["total_errors > 0 for 60s", "workers > 9", "total_errors > 200"])
    monitor.record_request(1.0, is_error=True)
    assert check(one) == []
    one.stop()
    clock.advance(60)
    two = alerter(rules=["workers > 9", "total_errors > 0.2 for 30s clear 0.1"])
    assert check(two) == ["firing"]  # it was pending all the while
    two.stop()
    three = alerter(rules=["total_errors > 0.5 for 90s", "workers > 9"])
    assert check(three) == []
    monitor.reset_statistics()
    assert check(three) == ["resolved"]
    assert told[1].since == told[0].since == "2023-11-14T22:13:20.000000+00:00"
    assert told[1].threshold == 0.5


@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        (["workers > 9"], [("ERROR_RATE", "resolved")]),
        (
            ["error_rate_pct > 5 on GET /x critical at least 1"],
            [("ERROR_RATE", "firing"), ("ERROR_RATE", "resolved")],
        ),
        (
            ["FAILURES: error_rate_pct > 5 on GET /x at least 1"],
            [("FAILURES", "firing"), ("ERROR_RATE", "resolved")],
        ),
    ],
    ids=["gone", "of another severity", "of another name"],
)
def test_a_rule_that_a_reload_takes_away_is_told_to_be_over(
    alerter: Make,
    monitor: MetricsMonitor,
    told: list[Alert],
    rules: list[str],
    changes: list[tuple[str, str]],
) -> None:
    one = alerter(rules=["error_rate_pct > 5 on GET /x at least 1", "total_requests > 9"])
    monitor.record_request(1.0, route="/x", method="GET", status=500)
    assert check(one) == ["firing"]
    one.stop()
    two = alerter(rules=rules)
    check(two)
    assert sorted(states(told[1:])) == sorted(changes)
    over = next(alert for alert in told if alert.state == "resolved")
    assert (over.route, over.since) == ("GET /x", told[0].since)
    assert check(two) == []


def test_each_row_says_when_it_was_checked(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=["workers > 9"])
    for expected in ("22:13:20", "22:13:50"):
        one.check()
        (row,) = get_alerts(monitor)[0]
        assert row["checked"] == f"2023-11-14T{expected}.000000+00:00"
        clock.advance(30)


class Watched(MetricsMonitor):
    """A monitor that counts how often somebody has asked whether it is open."""

    asked = 0

    @property
    def is_open(self) -> bool:
        self.asked += 1
        return super().is_open


def test_a_closed_monitor_stays_closed_until_it_is_used() -> None:
    monitor = Watched(shared=True)
    done: list[int] = []
    work = PeriodicTask(monitor, lambda: done.append(monitor.total_requests), 0.001, "work", 0)
    work.start(everywhere=True)
    try:
        wait_until(lambda: done, "the work, of a monitor that nobody has used")

        def stays_closed() -> bool:
            monitor.close()
            asked = monitor.asked
            wait_until(lambda: monitor.asked > asked + 5, "the thread to have looked")
            return not monitor.is_open

        # Work that was under way when it was closed has used it.
        wait_until(stays_closed, "it to stay closed")
        before = len(done)
        monitor.record_request(1.0)
        wait_until(lambda: len(done) > before, "the work to go on")
    finally:
        work.stop()
        monitor.close()


def test_who_closes_the_monitor_leaves_the_checks_to_another(told: list[Alert]) -> None:
    with MetricsMonitor(shared=True) as first, MetricsMonitor(shared=True) as second:
        one, two = (
            MetricsAlerter(monitor, 30, {"total_errors": 0}, told.append, start=False)
            for monitor in (first, second)
        )
        first.record_request(1.0, is_error=True)
        assert check(one) == ["firing"]
        assert check(two) == []
        first.close()
        one.stop()
        assert not first.is_open
        second.reset_statistics()
        assert check(two) == ["resolved"]
        two.stop()


def test_a_check_reads_once_and_parses_its_note_once(
    alerter: Make, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    asked: list[str] = []

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(ServerReader, "read")
    count(outbox, "as_alert_state")
    one = alerter(
        rules=["total_errors > 0", "requests > 0 on /x", BurnRate(99.0, 1.0, 30, 5)],
        notify=[str, repr],
    )
    monitor.record_request(1.0, route="/x", method="GET", status=500)
    assert len(one.check()) == 2
    assert sorted(asked) == ["as_alert_state", "read"]
    assert one.flush()
    asked.clear()
    assert one.check() == []
    assert asked == ["read"]
