"""The rule on new errors: which kinds it finds, and what is told of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter, Rule, check_now, parse
from metricsmw.alerts.seen import MOST_SEEN, SeenErrors
from metricsmw.cli.replay import RecordedHistory, replay
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.errors import ErrorKind
from metricsmw.engine.storage.errors import ErrorText, StoredError
from metricsmw.history import SQLiteHistory

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


@contextmanager
def server(
    path: Path, clock: ManualClock, told: list[Alert]
) -> Iterator[tuple[MetricsMonitor, MetricsAlerter]]:
    """A server that has just started, with a lasting history and a rule; it stops at the end."""
    clock.now = 5000.0 + clock.now % 1000  # another start of the machine
    with MetricsMonitor(clock=clock) as monitor:
        lasting = SQLiteHistory(monitor, path, start=False)
        rules = ["new errors > 0"]
        with MetricsAlerter(monitor, rules=rules, notify=told.append, start=False) as one:
            monitor.record_request(1.0)
            clock.advance(1)
            yield monitor, one
        lasting.stop()


def memory(path: Path) -> Path:
    return path.with_name(f"{path.name}-alerts.json")


def test_what_was_seen_before_a_restart_is_not_new(
    path: Path, clock: ManualClock, told: list[Alert]
) -> None:
    with server(path, clock, told) as (monitor, one):
        fail(monitor, KeyError)
        assert [alert.state for alert in check(one, told)] == ["firing"]
        clock.advance(400)
        assert [alert.state for alert in check(one, told)] == ["resolved"]
        fail(monitor, ValueError)
        assert [alert.state for alert in check(one, told)] == ["firing"]
    assert memory(path).stat().st_mode & 0o777 == 0o600
    clock.advance(60)
    with server(path, clock, told) as (monitor, one):
        for kind in (KeyError, ValueError):
            fail(monitor, kind)
        # The second one is still new for a while, and has been told.
        assert check(one, told) == []
        clock.advance(300)
        assert [alert.state for alert in check(one, told)] == ["resolved"]
        fail(monitor, OSError)
        (alert,) = check(one, told)
        assert alert.detail.startswith("OSError in ")
        assert monitor.get_health()["status"] == "healthy"
    clock.advance(86_400)
    with server(path, clock, told) as (monitor, one):
        for kind in (KeyError, ValueError, OSError):
            fail(monitor, kind)
        assert [alert.state for alert in check(one, told)] == ["resolved"]
        # A reset forgets, as it does within one server.
        clock.advance(30)
        monitor.reset_statistics()
        fail(monitor, KeyError)
        clock.advance(30)
        (alert,) = check(one, told)
        assert (alert.value, alert.detail[:9]) == (1, "KeyError ")
    clock.advance(86_400)
    with server(path, clock, told) as (monitor, one):
        fail(monitor, KeyError)
        fail(monitor, ValueError)
        (alert,) = check(one, told)
        assert (alert.value, alert.detail[:11]) == (1, "ValueError ")


def of_others(path: Path) -> None:
    note = json.loads(path.read_text())
    note["seen_errors"]["first_seen"] = ["0123456789abcdef"]
    path.write_text(json.dumps(note))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def no_json(path: Path) -> None:
    path.write_bytes(b"\xff{" * 1000)


@pytest.mark.parametrize("damage", [of_others, no_json, a_folder, a_pipe])
def test_a_memory_that_cannot_be_read_is_told_and_alerts_about_nothing_old(
    path: Path, clock: ManualClock, told: list[Alert], damage: Callable[[Path], None]
) -> None:
    with server(path, clock, told) as (monitor, one):
        fail(monitor, KeyError)
        check(one, told)
        clock.advance(400)
        check(one, told)
    damage(memory(path))
    with server(path, clock, told) as (monitor, one):
        fail(monitor, KeyError)
        clock.advance(30)
        assert check(one, told) == []
        health = monitor.get_health()
        assert health["status"] == "degraded"
        assert health["components"]["alerts"].startswith("failing: which errors were seen before")
        assert health["faults"] >= 1
        clock.advance(3500)
        fail(monitor, ValueError)
        assert check(one, told) == []
        clock.advance(300)
        fail(monitor, OSError)
        (alert,) = check(one, told)
        assert (alert.value, alert.detail[:8]) == (1, "OSError ")
        assert monitor.get_health()["components"]["alerts"] == "operational"


def kind_of(key: int, first_at: float) -> ErrorKind:
    times = first_at, first_at, first_at + 1e9, first_at + 1e9
    return ErrorKind(StoredError(key, ErrorText("E"), 1, {}, *times, 1, 500, (), False))


def test_the_memory_is_bounded_and_survives_a_clock_that_is_set_back() -> None:
    seen = SeenErrors({"first_seen": {}, "old_before": 0.0}, 1e9)
    for key in range(2, MOST_SEEN + 50):
        seen.note([kind_of(key, 10.0), kind_of(2, 5.0)], 10.0, 1e9 + 10.0, 0.0)
    saved = seen.saved()["first_seen"]
    assert len(saved) == MOST_SEEN
    assert f"{2:016x}" in saved  # as it was seen last, too
    assert f"{3:016x}" not in saved
    again = SeenErrors(seen.saved(), 1e9)
    kinds = [kind_of(2, 100.0), kind_of(3, 100.0)]
    again.note(kinds, 100.0, 1e9 - 5000.0, 0.0)
    assert [kind.is_new(100.0, 300) for kind in kinds] == [False, True]
