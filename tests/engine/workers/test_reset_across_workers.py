"""Reset from any worker, while all record.

What came before is gone everywhere, what came after is all there.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

import pytest
from kits.crew import Crew, SharedClock, crew, shared_numbers, wait_until

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

WORKERS = 4
BOUND = 2.0 ** (1 / 32) - 1  # a bucket's width: no latency is named by a value further away

# Seen by all processes: the phase, and for each worker the last phase it has taken note of.
STATE = shared_numbers(1 + WORKERS)
QUIET = -1.0


def latency_ms(phase: float) -> float:
    """Later phases are quicker: the maximum of an earlier one would show."""
    return 1000.0 * math.pow(0.7, phase)


def is_error(phase: float) -> bool:
    return phase % 4 == 0


class Load(threading.Thread):
    """Records beside the jobs that a worker is given; a request tells its phase."""

    def __init__(self, monitor: MetricsMonitor, number: int) -> None:
        super().__init__(daemon=True)
        self.counts: dict[float, int] = {}
        self._monitor = monitor
        self._number = number

    def run(self) -> None:
        while True:
            phase = STATE[0]
            # By now all is recorded that belongs to earlier phases.
            STATE[1 + self._number] = phase
            if phase != QUIET:
                count = self.counts.get(phase, 0)
                self._monitor.record_request(
                    latency_ms(phase),
                    is_error(phase),
                    f"{phase:.0f}/{self._number}/{count % 5}",
                    route=f"/{phase:.0f}",
                )
                self.counts[phase] = count + 1


loads: list[Load] = []


def start_load(monitor: MetricsMonitor, number: int) -> None:
    """In a worker: record from now on."""
    loads.append(Load(monitor, number))
    loads[0].start()


def counts(monitor: MetricsMonitor) -> dict[float, int]:
    """In a worker: how many it has recorded in each phase."""
    return dict(loads[0].counts)


class Report(TypedDict):
    """All that may show what was recorded."""

    requests: int
    errors: int
    rate: float
    max_ms: float
    routes: dict[str, int]
    users: list[str]
    history: list[dict[str, str | float | int]]


def report(monitor: MetricsMonitor) -> Report:
    """In a worker: what it tells."""
    snapshot = monitor.get_current_snapshot()
    return {
        "requests": snapshot.total_requests,
        "errors": snapshot.total_errors,
        "rate": snapshot.request_rate_rpm,
        "max_ms": snapshot.latency_max_ms,
        "routes": {row["route"]: row["requests"] for row in monitor.get_routes()},
        "users": monitor.get_active_user_ids(),
        "history": monitor.get_metrics_history(),
    }


@pytest.fixture
def loaded() -> Iterator[Crew]:
    """Four workers that record all the time."""
    STATE[0] = QUIET
    with crew(WORKERS) as workers:
        for number, worker in enumerate(workers.workers):
            worker.do(start_load, number)
        yield workers


def enter(phase: float) -> None:
    """Have all workers in that phase: all of the one before is recorded."""
    STATE[0] = phase
    wait_until(lambda: set(STATE[1:]) == {phase}, f"all workers are in phase {phase}")


def recorded(workers: Crew, phase: float) -> int:
    return sum(count.get(phase, 0) for count in workers.all(counts))


def record_some(workers: Crew, phase: float) -> None:
    wait_until(lambda: recorded(workers, phase) > 200, f"there are records of phase {phase}")


def assert_only_phases(told: Report, *phases: float) -> None:
    """Nothing in there is of another phase than these."""
    names = {f"{phase:.0f}" for phase in phases}
    assert {route[1:] for route in told["routes"]} <= names
    assert {user.partition("/")[0] for user in told["users"]} <= names
    assert told["max_ms"] <= max(map(latency_ms, phases)) * (1 + BOUND)
    if not any(map(is_error, phases)):
        assert told["errors"] == 0


def test_from_any_worker_under_load(loaded: Crew) -> None:
    enter(0.0)
    for turn in range(2 * WORKERS):
        # "before" is all over when the reset begins; it runs while the workers are in "during".
        before, during, after = 2.0 * turn, 2.0 * turn + 1, 2.0 * turn + 2
        record_some(loaded, before)
        loaded.all(MetricsMonitor.save_snapshot_to_history)
        enter(during)
        loaded.workers[turn % WORKERS].do(MetricsMonitor.reset_statistics)
        enter(after)
        for told in loaded.all(report):
            assert_only_phases(told, during, after)
            assert told["history"] == []
        record_some(loaded, after)
        enter(QUIET)
        meanwhile, new = recorded(loaded, during), recorded(loaded, after)
        first, *others = loaded.all(report)
        assert others == [first] * (WORKERS - 1)
        assert_only_phases(first, during, after)
        assert new <= first["requests"] <= new + meanwhile
        assert first["rate"] == first["requests"]  # the server's age counts anew, as a minute
        assert first["errors"] == (new if is_error(after) else 0)
        assert first["routes"][f"/{after:.0f}"] == new
        assert new <= sum(first["routes"].values()) <= new + meanwhile
        assert {user for user in first["users"] if user.startswith(f"{after:.0f}/")} == {
            f"{after:.0f}/{number}/{user}" for number in range(WORKERS) for user in range(5)
        }
        enter(after)


NOTHING: Report = {
    "requests": 0,
    "errors": 0,
    "rate": 0.0,
    "max_ms": 0.0,
    "routes": {},
    "users": [],
    "history": [],
}


def record(monitor: MetricsMonitor, latency_ms: float, user: str, times: int = 1) -> None:
    """In a worker: so many requests."""
    for _ in range(times):
        monitor.record_request(latency_ms, user_id=user, route=f"/{user}")


def test_the_counts_of_the_dead_are_gone_too() -> None:
    clock = SharedClock()
    with crew(3, clock) as workers:
        workers.all(record, 900.0, "old", 10)
        workers.workers[0].kill()
        workers.workers[1].leave()
        clock.advance(1)
        workers.workers[2].do(MetricsMonitor.reset_statistics)
        clock.advance(1)
        assert workers.workers[2].do(report) == NOTHING
        # Those who take over their segments do not bring them back.
        for _ in range(3):
            assert workers.start().do(report) == NOTHING
        workers.all(record, 20.0, "new", 5)
        for told in workers.all(report):
            assert told["max_ms"] == pytest.approx(20.0, rel=BOUND)
            assert told == {
                "requests": 20,
                "errors": 0,
                "rate": 20.0,
                "max_ms": told["max_ms"],
                "routes": {"/new": 20},
                "users": ["new"],
                "history": [],
            }


def test_the_maximum_of_another_worker_is_gone() -> None:
    clock = SharedClock()
    with crew(2, clock) as workers:
        first, second = workers.workers
        first.do(record, 5000.0, "old")
        clock.advance(1)
        second.do(MetricsMonitor.reset_statistics)
        clock.advance(1)
        first.do(record, 12.34, "new")
        # Within the step in which it recorded the old one, it does not know: the bucket is told.
        for told in workers.all(report):
            assert told["max_ms"] == pytest.approx(12.34, rel=BOUND)
        clock.advance(30)
        first.do(record, 12.35, "new")
        for told in workers.all(report):
            assert told["max_ms"] == 12.35


def test_many_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a disk, where a file may get the number of one that has just been removed.
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    clock = SharedClock()
    with crew(2, clock) as workers:
        first, second = workers.workers
        for turn in range(100):
            for _ in range(turn % 4):
                first.do(record, 10.0, "old")
                clock.advance(0.01)
                first.do(MetricsMonitor.reset_statistics)
            first.do(record, 10.0, "old")
            clock.advance(0.01)
            first.do(MetricsMonitor.reset_statistics)
            assert second.do(report)["requests"] == 0
            assert second.do(report)["routes"] == {}


def test_a_snapshot_on_its_way_to_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other worker's reset comes between the taking of a snapshot and its saving.
    clock = ManualClock()
    with (
        MetricsMonitor(shared=True, clock=clock) as saving,
        MetricsMonitor(shared=True, clock=clock) as resetting,
    ):
        record(saving, 10.0, "old", 7)
        clock.advance(1)
        group = saving.membership.group
        assert group is not None
        exclusive = group.exclusive

        def after_a_reset(wait: bool) -> AbstractContextManager[bool]:
            if wait:
                resetting.reset_statistics()
            return exclusive(wait)

        monkeypatch.setattr(group, "exclusive", after_a_reset)
        saving.save_snapshot_to_history()
        for monitor in (saving, resetting):
            assert [row["total_requests"] for row in monitor.get_metrics_history()] == [0]


def die_starting_history(monitor: MetricsMonitor) -> None:
    """In a worker: reset, and be killed once the reset is written."""
    group = monitor.membership.group
    assert group is not None
    group.history.start = lambda origin: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    monitor.reset_statistics()


def test_whoever_resets_is_killed() -> None:
    clock = SharedClock()
    with crew(2, clock) as workers:
        first, second = workers.workers
        workers.all(record, 10.0, "old", 3)
        clock.advance(121)
        assert len(second.do(report)["history"]) == 2
        first.begin(die_starting_history)
        assert not first.survives()
        clock.advance(1)
        assert second.do(report) == NOTHING
        clock.advance(60)
        second.do(record, 20.0, "new", 2)
        clock.advance(60)
        told = second.do(report)
        assert told["requests"] == 2
        assert [row["total_requests"] for row in told["history"]] == [0, 2]
