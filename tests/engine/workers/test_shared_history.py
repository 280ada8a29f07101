"""The minute history of a server: exactly one snapshot a minute, whoever dies.

Any worker serves the same list.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from kits.crew import Crew, SharedClock, crew, shared_numbers, wait_until

from metricsmw import MetricsMonitor

WORKERS = 4
MINUTE, STEP = 60.0, 5.0

History = Sequence[Mapping[str, str | float | int]]


def record(monitor: MetricsMonitor, times: int) -> None:
    """In a worker: so many requests."""
    for _ in range(times):
        monitor.record_request(10.0)


def totals(history: History) -> list[int]:
    return [int(row["total_requests"]) for row in history]


def assert_a_minute_apart(history: History) -> None:
    times = [datetime.fromisoformat(str(row["timestamp"])) for row in history]
    assert {later - earlier for earlier, later in pairwise(times)} <= {timedelta(minutes=1)}


def the_same_from_all(workers: Crew) -> History:
    """The history that every worker serves."""
    # Asked at once, one may answer before the minute that another one is just writing is there.
    at_once = workers.all(MetricsMonitor.get_metrics_history)
    longest = max(at_once, key=len)
    times = [row["timestamp"] for row in longest]
    for history in at_once:
        assert [row["timestamp"] for row in history] in (times, times[: len(history)])
    for history in workers.all(MetricsMonitor.get_metrics_history):
        assert history == longest
    return longest


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


def test_one_a_minute_while_it_is_read(clock: SharedClock) -> None:
    with crew(WORKERS, clock) as workers:
        for minute in range(1, 31):
            workers.all(record, 1)
            clock.advance(MINUTE)
            expected = [WORKERS * m for m in range(1, minute + 1)]
            assert totals(the_same_from_all(workers)) == expected
        assert_a_minute_apart(the_same_from_all(workers))


def test_one_a_minute_while_nobody_reads(clock: SharedClock) -> None:
    with crew(WORKERS, clock) as workers:
        for _ in range(31):
            # All at once: the first one's record writes the minute, while the others go on.
            workers.all(record, 1)
            clock.advance(MINUTE)
        history = the_same_from_all(workers)
        assert [total // WORKERS for total in totals(history)] == list(range(1, 32))
        assert_a_minute_apart(history)


def test_idle_minutes_are_there(clock: SharedClock) -> None:
    with crew(WORKERS, clock) as workers:
        workers.all(record, 5)
        clock.advance(20 * MINUTE)
        workers.workers[0].do(record, 1)
        clock.advance(10 * MINUTE)
        history = the_same_from_all(workers)
        assert totals(history) == [20] * 20 + [21] * 10
        assert_a_minute_apart(history)
        clock.advance(500 * MINUTE)
        assert totals(the_same_from_all(workers)) == [21] * 60


def hold_the_lock(monitor: MetricsMonitor) -> None:
    """In a worker: lead, and never write."""
    group = monitor.membership.group
    assert group is not None
    with group.exclusive(wait=True):
        HELD[0] = 1.0
        time.sleep(60)


HELD = shared_numbers(1)


def test_the_leader_is_killed(clock: SharedClock) -> None:
    HELD[0] = 0.0
    with crew(WORKERS, clock) as workers:
        workers.all(record, 1)
        clock.advance(MINUTE)
        assert totals(the_same_from_all(workers)) == [4]
        leader, *others = workers.workers
        leader.begin(hold_the_lock)
        wait_until(lambda: HELD[0] == 1.0, "the lock is held")
        clock.advance(MINUTE)
        for other in others:  # none of them waits for the leader
            other.do(record, 1)
            assert totals(other.do(MetricsMonitor.get_metrics_history)) == [4]
        leader.kill()
        for other in others:
            assert totals(other.do(MetricsMonitor.get_metrics_history))[:1] == [4]
            assert len(other.do(MetricsMonitor.get_metrics_history)) == 2
        clock.advance(MINUTE)
        history = the_same_from_all(workers)
        assert totals(history)[2:] == [7]
        assert_a_minute_apart(history)


def minutes_written(monitor: MetricsMonitor) -> int:
    """In a worker: how many there are, without adding to them as a read does."""
    group = monitor.membership.group
    assert group is not None
    return group.history.minutes


def test_a_minute_is_not_missed_while_the_lock_is_held_for_another_reason(
    clock: SharedClock,
) -> None:
    HELD[0] = 0.0
    with crew(2, clock) as workers:
        workers.all(record, 1)
        holder, other = workers.workers
        holder.begin(hold_the_lock)
        wait_until(lambda: HELD[0] == 1.0, "the lock is held")
        clock.advance(MINUTE)
        other.do(record, 1)
        assert other.do(minutes_written) == 0
        holder.kill()
        # Nobody reads: the next step's record writes it.
        clock.advance(STEP)
        other.do(record, 1)
        assert other.do(minutes_written) == 1


def test_workers_that_keep_another_number_of_minutes(clock: SharedClock) -> None:
    """As there are for a while when a server is reloaded with another setting."""
    with crew(2, clock, max_history_minutes=3) as few, crew(2, clock) as many:
        for crew_ in (few, many):
            crew_.all(record, 1)
        for _ in range(10):
            clock.advance(MINUTE)
            assert len(few.workers[0].do(MetricsMonitor.get_metrics_history)) <= 3
            many.workers[0].do(record, 1)
            assert_a_minute_apart(the_same_from_all(many))
        assert totals(the_same_from_all(few)) == [11, 12, 13]
        assert totals(the_same_from_all(many)) == list(range(4, 14))
        for worker in (*few.workers, *many.workers):
            assert worker.do(MetricsMonitor.get_health)["status"] == "healthy"


def die_writing(write: int) -> Callable[[], None]:
    """In a worker that starts: be killed just before that write to the history."""

    def prepare() -> None:
        written = 0
        real = os.pwrite

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            nonlocal written
            written += 1
            if written == write:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(fd, data, offset)

        os.pwrite = pwrite  # type: ignore[assignment]

    return prepare


@pytest.mark.parametrize("minutes", [1, 3])
@pytest.mark.parametrize("write", range(1, 15))
def test_the_leader_is_killed_while_it_writes(clock: SharedClock, write: int, minutes: int) -> None:
    with crew(1, clock) as workers:
        (survivor,) = workers.workers
        survivor.do(record, 2)
        leader = workers.start(die_writing(write))
        leader.do(record, 3)
        clock.advance(minutes * MINUTE)
        leader.begin(MetricsMonitor.get_metrics_history)
        # Each minute is what was seen in its step, the counts at its end, its row and the header.
        assert leader.survives() == (write > 4 * minutes)
        assert totals(the_same_from_all(workers)) == [5] * minutes
        clock.advance(MINUTE)
        survivor.do(record, 1)
        history = the_same_from_all(workers)
        assert totals(history) == [5] * (minutes + 1)
        assert [row["minute_requests"] for row in history] == [5] + [0] * minutes
        assert_a_minute_apart(history)


def test_whoever_dies_and_joins(clock: SharedClock) -> None:
    chance = random.Random(5)
    with crew(WORKERS, clock) as workers:
        alive = list(workers.workers)
        workers.all(MetricsMonitor.get_current_snapshot)
        began = clock.monotonic()
        recorded: list[float] = []
        for _ in range(150):
            if chance.random() < 0.2:
                alive.pop(chance.randrange(len(alive))).kill()
                alive.append(workers.start())
            clock.advance(chance.choice([0, 5, 10, 30, 55, 60, 100, 185]))
            if chance.random() < 0.7:
                chance.choice(alive).do(record, 3)
                recorded += [clock.monotonic()] * 3
            else:
                history = the_same_from_all(workers)
                minutes = int((clock.monotonic() - began) // MINUTE)
                ends = [began + minute * MINUTE for minute in range(1, minutes + 1)][-60:]
                assert totals(history) == [sum(at < end for at in recorded) for end in ends]
                assert_a_minute_apart(history)
        assert minutes > 60
