"""The minute history: one snapshot a minute, idle or not, read or not, and no more than asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from metricsmw import MetricsMonitor, MetricsSnapshot
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.storage.reader import Period
from metricsmw.engine.workers.group import Group
from metricsmw.snapshot import MINUTE_FIELDS

History = Sequence[Mapping[str, str | float | int]]


def totals(history: History) -> list[int]:
    """`total_requests` of every entry."""
    return [int(entry["total_requests"]) for entry in history]


def times(history: History) -> list[datetime]:
    """When every entry was taken."""
    return [datetime.fromisoformat(str(entry["timestamp"])) for entry in history]


def test_none_yet(monitor: MetricsMonitor) -> None:
    assert monitor.get_metrics_history() == []


def test_one_a_minute_while_it_is_read(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for minute in range(1, 11):
        monitor.record_request(10.0)
        clock.advance(60)
        assert totals(monitor.get_metrics_history()) == list(range(1, minute + 1))


def test_reading_often_adds_nothing(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for _ in range(60):
        clock.advance(5)
        monitor.get_current_snapshot()
        monitor.get_metrics_history()
    assert len(monitor.get_metrics_history()) == 5


@pytest.mark.parametrize("window", [10, 77, 300, 3600])
def test_one_a_minute_while_nobody_reads(window: int, clock: ManualClock) -> None:
    with MetricsMonitor(window, clock=clock) as monitor:
        for _ in range(30 * 60):
            clock.advance(0.5)
            monitor.record_request(10.0)
            clock.advance(0.5)
        assert totals(monitor.get_metrics_history()) == [60 * minute for minute in range(1, 31)]


@pytest.mark.parametrize("window", [10, 77, 300, 3600])
def test_what_comes_just_after_the_minute_is_the_next_ones(window: int, clock: ManualClock) -> None:
    with MetricsMonitor(window, clock=clock) as monitor:
        monitor.record_request(10.0)
        for _ in range(5):
            clock.advance(60.01)
            monitor.record_request(10.0)
        assert totals(monitor.get_metrics_history()) == [1, 2, 3, 4, 5]


def test_idle_minutes_have_theirs(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for _ in range(60):
        monitor.record_request(10.0, is_error=True)
    clock.advance(20 * 60)
    history = monitor.get_metrics_history()
    assert totals(history) == [60] * 20
    rates = [float(entry["request_rate_rpm"]) for entry in history]
    assert all(rate > 0 for rate in rates[:5])
    assert all(rate == 0.0 for rate in rates[6:])
    assert [entry["error_rate_pct"] for entry in history[:5]] == [100.0] * 5
    assert [entry["latency_max_ms"] for entry in history[6:]] == [0.0] * 14


def test_what_comes_after_an_idle_time_is_not_put_into_it(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    monitor.record_request(10.0)
    clock.advance(10 * 60 + 30)
    monitor.record_request(10.0)
    clock.advance(5 * 60)
    history = totals(monitor.get_metrics_history())
    assert history[:10] == [1] * 10
    assert set(history[11:]) == {2}


def test_minutes_before_the_first_request_have_theirs(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    clock.advance(5 * 60)
    monitor.record_request(10.0)
    clock.advance(2 * 60)
    history = totals(monitor.get_metrics_history())
    assert (len(history), history[:5], history[-1]) == (7, [0] * 5, 1)


def test_timestamps_are_a_minute_apart(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    clock.advance(30 * 60)
    monitor.record_request(10.0)
    clock.advance(7 * 60)
    monitor.get_metrics_history()
    clock.advance(8 * 60)
    stamps = times(monitor.get_metrics_history())
    assert len(stamps) == 45
    assert {later - earlier for earlier, later in pairwise(stamps)} == {timedelta(minutes=1)}
    assert abs(stamps[-1].timestamp() - clock.time()) <= 60


def test_entries_are_snapshots(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    fields = list(monitor.get_current_snapshot().to_dict())
    clock.advance(3 * 60)
    history = monitor.get_metrics_history()
    assert len(history) == 3
    for entry in history:
        assert list(entry) == [*fields, *MINUTE_FIELDS]
        snapshot = {name: entry[name] for name in fields}
        assert MetricsSnapshot(**snapshot).to_dict() == snapshot  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 5, 60, 120])
def test_it_is_bounded(most: int, clock: ManualClock) -> None:
    with MetricsMonitor(max_history_minutes=most, clock=clock) as monitor:
        for minute in range(most + 20):
            monitor.record_request(10.0)
            clock.advance(60)
            assert len(monitor.get_metrics_history(most)) == min(minute + 1, most)
        clock.advance(86_400)
        assert totals(monitor.get_metrics_history(most)) == [most + 20] * most


def test_a_long_idle_time_is_cheap(monitor: MetricsMonitor, clock: ManualClock) -> None:
    # A thousand years: filled in minute by minute this would not end within the test's time.
    monitor.record_request(10.0)
    clock.advance(1000 * 365 * 86_400)
    history = monitor.get_metrics_history()
    assert totals(history) == [1] * 60
    assert monitor.get_request_rate_rpm() == 0.0


@pytest.mark.parametrize("start", [960.0, 1000.0], ids=["on the minute", "within a minute"])
def test_the_last_minutes_only(start: float) -> None:
    clock = ManualClock(start=start)
    with MetricsMonitor(clock=clock) as monitor:
        for _ in range(10):
            monitor.record_request(10.0)
            clock.advance(60)
        whole = monitor.get_metrics_history()
        assert totals(whole) == list(range(1, 11))
        assert monitor.get_metrics_history(minutes=3) == whole[-3:]
        assert monitor.get_metrics_history(1) == whole[-1:]
        assert monitor.get_metrics_history(minutes=60) == whole
        assert monitor.get_metrics_history(minutes=10_000) == whole


def test_one_may_be_saved_by_hand(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    monitor.save_snapshot_to_history()
    history = monitor.get_metrics_history()
    assert totals(history) == [1]
    assert times(history)[0].timestamp() == clock.time()
    clock.advance(60)
    monitor.record_request(10.0)
    monitor.save_snapshot_to_history()
    history = monitor.get_metrics_history()
    assert totals(history) == [1, 1, 2]
    assert times(history) == sorted(times(history))


def test_saving_by_hand_is_bounded_too(clock: ManualClock) -> None:
    with MetricsMonitor(max_history_minutes=3, clock=clock) as monitor:
        for _ in range(10):
            monitor.record_request(10.0)
            monitor.save_snapshot_to_history()
        assert totals(monitor.get_metrics_history(3))[-1] == 10
        assert len(monitor.get_metrics_history(3)) <= 3


def test_the_list_is_the_callers_own(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    clock.advance(120)
    taken = monitor.get_metrics_history()
    taken[0]["total_requests"] = 77
    taken.clear()
    assert totals(monitor.get_metrics_history()) == [1, 1]


def test_an_idle_day_is_caught_up_with_at_once(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request after it waits for the reading of minutes that differ, and no others."""
    with MetricsMonitor(max_history_minutes=1440, clock=clock) as monitor:
        for _ in range(3):
            clock.advance(60)
            monitor.record_request(10.0, user_id="ada")
        clock.advance(86_400)
        readings = 0
        real = ServerReader.read

        def count(reader: ServerReader, group: Group, period: Period) -> ServerReading:
            nonlocal readings
            readings += 1
            return real(reader, group, period)

        with monkeypatch.context() as patch:
            patch.setattr(ServerReader, "read", count)
            monitor.record_request(10.0)
        # The minutes of the window and of the user's timeout.
        assert 1 <= readings <= 10
        history = monitor.get_metrics_history(1440)
        assert totals(history) == [3] * 1440
        assert {later - earlier for earlier, later in pairwise(times(history))} == {
            timedelta(minutes=1)
        }
        clock.advance(60)
        assert totals(monitor.get_metrics_history(2)) == [3, 4]


def test_an_idle_minute_is_none_where_others_follow(clock: ManualClock) -> None:
    """A worker that found the lock held has recorded on; what it recorded is not overlooked."""
    with MetricsMonitor(10, user_timeout_seconds=1, clock=clock) as monitor:
        monitor.record_request(10.0)
        group = monitor.membership.group
        assert group is not None
        with group.exclusive(wait=True):
            clock.advance(150)
            for _ in range(7):
                monitor.record_request(10.0)
        clock.advance(120)
        assert totals(monitor.get_metrics_history()) == [1, 1, 8, 8]
