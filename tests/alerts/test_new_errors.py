"""The rule on new errors: which kinds it finds, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter, Rule, check_now, parse
from metricsmw.cli.replay import RecordedHistory, replay
from metricsmw.clock import ManualClock

Make = Callable[..., MetricsAlerter]


def fail(monitor: MetricsMonitor, kind: type[Exception], route: str = "/pay") -> None:
    try:
        raise kind("secret")
    except Exception as error:
        monitor.recorder.errors.raised(error, 500, route, "POST")


def check(one: MetricsAlerter, told: list[Alert]) -> list[Alert]:
    """Check, and return what was told of it."""
    told.clear()
    one.check()
    assert one.flush()
    return list(told)


def test_its_text() -> None:
    for text in ("new errors > 0", "new_errors > 0", "NEW_ERRORS: new_errors > 0 warning"):
        rule = parse(text)
        assert rule == Rule("new_errors", 0)
        assert parse(str(rule)) == rule
    rule = parse("FRESH: new  errors >= 2 over 10m critical repeat every 1h")
    assert rule == Rule(
        "new_errors", 2, ">=", severity="critical", name="FRESH", over_seconds=600,
        repeat_seconds=3600,
    )  # fmt: skip
    assert parse(str(rule)) == rule
    for bad in ("new errors > 0 on /pay", "new errors > 0 at least 5 requests", "new > 0"):
        with pytest.raises(ValueError, match=r"must|may|needs|no |not"):
            parse(bad)


def test_its_span_may_be_longer_than_the_window(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(rules=["new errors > 0 over 1h"])
    fail(monitor, KeyError)
    clock.advance(3500)
    (alert,) = check(one, told)
    assert (alert.state, alert.value) == ("firing", 1)


def test_a_kind_is_told_once_with_its_place(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(rules=["new errors > 0"])
    clock.advance(1000)
    assert check(one, told) == []
    fail(monitor, KeyError)
    fail(monitor, KeyError)
    clock.advance(30)
    (alert,) = check(one, told)
    assert (alert.state, alert.value, alert.is_repeat) == ("firing", 1, False)
    assert alert.detail.startswith("KeyError in tests.alerts.test_new_errors.fail:")
    assert alert.detail.endswith(", on POST /pay, 2 times")
    assert alert.detail in str(alert)
    assert "secret" not in str(alert)
    (row,) = one.get_alerts()
    assert (row["detail"], row["state"]) == (alert.detail, "firing")
    clock.advance(30)
    fail(monitor, KeyError)
    assert check(one, told) == []
    # Another kind while it fires: that one only is told.
    fail(monitor, ValueError, "/other")
    clock.advance(30)
    (alert,) = check(one, told)
    assert (alert.state, alert.value) == ("firing", 2)
    assert alert.detail.startswith("ValueError in ")
    assert alert.detail.endswith(", on POST /other, once")
    assert "KeyError" not in alert.detail
    clock.advance(30)
    assert check(one, told) == []
    clock.advance(300)
    (alert,) = check(one, told)
    assert (alert.state, alert.detail) == ("resolved", "")
    # It is no new one any more; and a reset forgets that.
    fail(monitor, KeyError)
    clock.advance(30)
    assert check(one, told) == []
    monitor.reset_statistics()
    clock.advance(30)
    fail(monitor, KeyError)
    clock.advance(30)
    assert [alert.state for alert in check(one, told)] == ["firing"]


def test_nothing_between_two_checks_is_missed(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(rules=["new errors > 0 over 1m"], check_interval=600)
    check(one, told)
    clock.advance(10)
    fail(monitor, KeyError)
    clock.advance(590)
    assert [alert.state for alert in check(one, told)] == ["firing"]


def test_many_kinds_and_hostile_names_make_a_short_plain_message(
    alerter: Make, monitor: MetricsMonitor, told: list[Alert]
) -> None:
    one = alerter(rules=["new errors > 0"])
    name = "\x1b[31m<b>\nAlert\u202e" + "x" * 10_000
    for number in range(8):
        kind = type("Bad", (Exception,), {"__module__": f"{number}{name}\ud800"})
        fail(monitor, kind, f"/{number}\x1b[2J" + "y" * 10_000)
    (alert,) = check(one, told)
    lines = alert.detail.split("\n")
    assert lines[5:] == ["and 3 more kinds"]
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 1000
    assert "<b>" in lines[0]
    str(alert).encode()


def test_it_is_asked_once_and_not_of_a_history(monitor: MetricsMonitor) -> None:
    (checked,) = check_now(monitor, ["new errors < 1"])
    assert (checked["verdict"], checked["value"]) == ("ok", 0)
    fail(monitor, KeyError)
    (checked,) = check_now(monitor, ["new errors < 1 over 1h"])
    assert (checked["verdict"], checked["value"]) == ("violated", 1)
    with pytest.raises(ValueError, match="no errors by kind"):
        replay(parse("new errors > 0"), RecordedHistory([], 300))
