"""Active users of a server: counted once over all workers.

They are exact up to a cap, and an estimate that says so beyond it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from kits.crew import SharedClock, crew

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

WORKERS = 4


def see(monitor: MetricsMonitor, users: Iterable[int]) -> None:
    """In a worker: these users are active."""
    for number in users:
        monitor.record_user_activity(f"user-{number}")


def active_users(monitor: MetricsMonitor) -> tuple[int, float]:
    """The number, and the error that the statistics tell, as a share of 1."""
    current = monitor.get_statistics()["current"]
    assert current["active_users"] == monitor.get_active_users()
    return int(current["active_users"]), float(current.get("active_users_error_pct", 0.0)) / 100


def bytes_read(monitor: MetricsMonitor) -> int:
    """In a worker: how much is read for the number."""
    sizes: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        sizes.append(len(data))
        return data

    os.pread = pread
    try:
        monitor.get_active_users()
    finally:
        os.pread = real
    return sum(sizes)


def test_one_on_all_workers_counts_once() -> None:
    with crew(WORKERS) as workers:
        workers.all(MetricsMonitor.record_user_activity, "ada")
        workers.workers[0].do(MetricsMonitor.record_user_activity, "bob")
        workers.workers[3].do(MetricsMonitor.record_user_activity, 5)
        assert workers.all(MetricsMonitor.get_active_users) == [3] * WORKERS
        assert workers.all(MetricsMonitor.get_active_user_ids) == [["5", "ada", "bob"]] * WORKERS


def test_those_of_the_dead_stay_until_their_time_is_over() -> None:
    clock = SharedClock()
    with crew(2, clock, user_timeout_seconds=60) as workers:
        workers.all(MetricsMonitor.record_user_activity, "ada")
        workers.workers[0].do(MetricsMonitor.record_user_activity, "bob")
        workers.workers[0].kill()
        clock.advance(59)
        assert workers.workers[1].do(MetricsMonitor.get_active_user_ids) == ["ada", "bob"]
        # Whoever takes over knows them: they are not counted again.
        heir = workers.start()
        heir.do(MetricsMonitor.record_user_activity, "bob")
        assert workers.all(MetricsMonitor.get_active_user_ids) == [["ada", "bob"]] * 2
        clock.advance(2)
        assert workers.all(MetricsMonitor.get_active_user_ids) == [["bob"]] * 2


def test_ten_thousand_are_exact() -> None:
    with crew(WORKERS) as workers:
        # Each worker sees half of them, each user two workers.
        jobs = [
            worker.begin(see, range(number * 2500, number * 2500 + 5000))
            for number, worker in enumerate(workers.workers)
        ]
        for done in jobs:
            done()
        workers.workers[3].do(see, range(2500))
        assert workers.all(active_users) == [(12_500, 0.0)] * WORKERS
    names = sorted(f"user-{number}" for number in range(10_000))
    with MetricsMonitor() as monitor:
        see(monitor, range(10_000))
        assert active_users(monitor) == (10_000, 0.0)
        assert monitor.get_active_user_ids() == names


def test_a_million_are_an_estimate_in_bounded_memory() -> None:
    with crew(WORKERS) as workers:
        for number, worker in enumerate(workers.workers):
            worker.do(see, range(number * 250_000, number * 250_000 + 20_000))
        cost = workers.workers[0].do(bytes_read)
        # A fifth of them is seen by two workers.
        jobs = [
            worker.begin(see, range(number * 250_000, number * 250_000 + 300_000))
            for number, worker in enumerate(workers.workers)
        ]
        for done in jobs:
            done()
        (estimate, error), *others = workers.all(active_users)
        assert others == [(estimate, error)] * (WORKERS - 1)
        assert 0.0 < error <= 0.016
        assert estimate == pytest.approx(1_050_000, rel=3 * error)
        kept = workers.workers[0].do(MetricsMonitor.get_active_user_ids)
        assert len(kept) <= WORKERS * 10_000
        # Nor does a read take longer than it did for the first ones.
        assert workers.workers[0].do(bytes_read) <= 1.2 * cost
        for file in Path(os.environ["METRICSMW_DIR"]).glob("*/worker-*"):
            assert file.stat().st_size < 4 * 2**20


def test_the_error_is_what_it_is_said_to_be() -> None:
    # 60 samples of other users each: what they are off, in units of the error that they tell.
    off = []
    for trial in range(60):
        many = 700 + 97 * trial
        with MetricsMonitor(max_users=500, clock=ManualClock()) as monitor:
            see(monitor, range(trial * 10_000, trial * 10_000 + many))
            estimate, error = active_users(monitor)
        assert 0.0 < error <= 1 / math.sqrt(15 / 32 * 500)
        off.append((estimate / many - 1) / error)
    assert max(map(abs, off)) < 4
    assert math.sqrt(sum(x * x for x in off) / len(off)) < 1.2
    assert abs(sum(off) / len(off)) < 0.4  # three standard errors of the mean of 60


@pytest.mark.parametrize("cap", [1, 2, 3, 16, 100])
def test_small_caps(cap: int) -> None:
    clock = ManualClock()
    with MetricsMonitor(max_users=cap, clock=clock) as monitor:
        see(monitor, range(cap))
        assert active_users(monitor) == (cap, 0.0)
        see(monitor, range(50 * cap))
        assert active_users(monitor)[1] > 0.0
        assert len(monitor.get_active_user_ids()) <= cap
        assert active_users(monitor)[0] <= 50 * cap * 20


def test_exact_while_others_come_and_go() -> None:
    # At any time just as many are active as are counted exactly; one leaves for each that comes.
    clock = ManualClock()
    with MetricsMonitor(max_users=200, user_timeout_seconds=100, clock=clock) as monitor:
        for number in range(3000):
            clock.advance(0.5)
            monitor.record_user_activity(f"user-{number}")
            if number % 100 == 99 and number > 200:
                count, error = active_users(monitor)
                assert error == 0.0
                assert abs(count - 200) <= 1


@pytest.mark.parametrize("few", [0, 5, 40])
def test_it_is_exact_again_once_activity_has_fallen(few: int) -> None:
    clock = ManualClock()
    with MetricsMonitor(max_users=100, user_timeout_seconds=60, clock=clock) as monitor:
        see(monitor, range(20_000))
        assert active_users(monitor)[1] > 0.0
        # Each within a timeout: the many leave; the table takes in more; and all; so do readers.
        for second in range(240):
            clock.advance(1)
            see(monitor, range(few))
            if second % 50 == 0:
                monitor.record_user_activity(f"passing by {second}")
        see(monitor, range(few))
        count, error = active_users(monitor)
        assert error == 0.0
        assert few <= count <= few + 2


def test_the_estimate_follows_activity() -> None:
    # Up and down again; new users each time, as those who are gone would be known already.
    clock = ManualClock()
    with MetricsMonitor(max_users=1000, user_timeout_seconds=60, clock=clock) as monitor:
        first = 0
        for many in (50_000, 20_000, 5_000, 2_000, 30_000, 500, 500, 500):
            for _ in range(4 * 60):
                clock.advance(1)
                see(monitor, range(first, first + many // 60))
                first += many // 60
            count, error = active_users(monitor)
            assert count == pytest.approx(61 * (many // 60), rel=4 * error)
            assert error < 0.15
        assert error == 0.0


def test_the_estimate_holds_while_the_sample_grows() -> None:
    # Each user is seen once a minute, so that it takes a minute until more of them are sampled.
    clock = ManualClock()
    with MetricsMonitor(max_users=1000, user_timeout_seconds=60, clock=clock) as monitor:
        sampled = set()
        for second in range(360):
            many = 100_020 if second < 60 else 4_020
            see(monitor, range(many * 2 + second % 60, many * 3, 60))
            if second > 125:
                count, error = active_users(monitor)
                assert count == pytest.approx(4_020 + 67, rel=5 * error + 0.02)
                sampled.add(round(count * error * error))  # 2**k
            clock.advance(1)
        assert len(sampled) > 1


def test_a_dead_workers_sample_does_not_make_all_an_estimate() -> None:
    clock = SharedClock()
    with crew(2, clock, max_users=100, user_timeout_seconds=60) as workers:
        first, second = workers.workers
        first.do(see, range(5000))
        second.do(see, range(50))
        assert second.do(active_users)[1] > 0.0
        first.kill()
        clock.advance(61)
        second.do(see, range(50))
        assert second.do(active_users) == (50, 0.0)


def test_none_in_the_sample_is_no_certainty() -> None:
    clock = ManualClock()
    with MetricsMonitor(max_users=100, user_timeout_seconds=60, clock=clock) as monitor:
        see(monitor, range(100_000))
        clock.advance(61)
        count, error = active_users(monitor)
        assert (count, error) == (0, 1.0)


def test_those_before_a_reset_take_no_room() -> None:
    clock = SharedClock()
    with crew(2, clock, max_users=100) as workers:
        first, second = workers.workers
        first.do(see, range(100))
        clock.advance(1)
        second.do(MetricsMonitor.reset_statistics)
        clock.advance(1)
        first.do(see, range(50, 150))
        assert workers.all(active_users) == [(100, 0.0)] * 2


def test_a_sample_ends_with_a_reset() -> None:
    clock = SharedClock()
    with crew(2, clock, max_users=100) as workers:
        first, second = workers.workers
        first.do(see, range(5000))
        clock.advance(1)
        second.do(MetricsMonitor.reset_statistics)
        clock.advance(1)
        # Some of these are known to it still, most are in no sample.
        first.do(see, range(4950, 5050))
        assert workers.all(active_users) == [(100, 0.0)] * 2
        # And from here on it may sample as before.
        first.do(see, range(5000))
        assert second.do(active_users)[1] > 0.0
