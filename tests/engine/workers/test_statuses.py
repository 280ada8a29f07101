"""Statuses over workers: what was sent is what all statuses together show, whoever dies when."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from kits.crew import SharedClock, crew

from metricsmw import MetricsMonitor
from metricsmw.engine.storage.keys import OTHER, Times
from metricsmw.engine.storage.lanes import in_use
from metricsmw.engine.storage.segment import BlockTable

STATUSES = [200, 200, 201, 302, 404, 500]
Sent = Sequence[tuple[str, int, float]]


def record(monitor: MetricsMonitor, sent: Sent) -> None:
    """In a worker: requests to routes, with statuses and milliseconds."""
    for route, status, latency_ms in sent:
        monitor.record_request(latency_ms, method="GET", route=route, status=status)


def by_status(monitor: MetricsMonitor) -> Counter[int]:
    """In a worker: what was counted since the reset, over all routes."""
    counted = Counter[int]()
    for total in monitor.read().server.route_totals():
        if total.name.times is Times.ALL:
            counted[total.answer.status] += sum(in_use(total.histogram)[1])
    return +counted


def by_route(monitor: MetricsMonitor) -> Counter[str]:
    """In a worker: the same, over all statuses."""
    counted = Counter[str]()
    for total in monitor.read().server.route_totals():
        counted[total.name.route] += sum(in_use(total.histogram)[1])
    return +counted


def by_class(monitor: MetricsMonitor) -> dict[str, int]:
    """In a worker: what the server counted since the reset, by class."""
    return monitor.read().server.total.statuses


def steps_by_class(monitor: MetricsMonitor) -> Counter[str]:
    """In a worker: what the steps that have ended counted, by class."""
    return sum((Counter(step["statuses"]) for step in monitor.get_series()["series"]), Counter())


def classes(counted: Counter[int]) -> Counter[str]:
    """The statuses by class."""
    found = Counter[str]()
    for status, count in counted.items():
        found[f"{status // 100}xx"] += count
    return found


def window(monitor: MetricsMonitor) -> Counter[str]:
    """In a worker: what the window has, by status."""
    counted = Counter[str]()
    for row in monitor.get_routes():
        assert sum(row["status_codes"].values()) == row["requests"]
        counted.update(row["status_codes"])
    return counted


@pytest.mark.parametrize("seed", range(4))
def test_through_kills_takeovers_resets_and_full_tables(seed: int) -> None:
    chance = random.Random(seed)
    clock = SharedClock()
    counted, recent = Counter[int](), Counter[str]()
    with crew(3, clock, window_seconds=10, max_routes=4) as workers:
        workers.all(record, [])
        for _ in range(40):
            living = [worker for worker in workers.workers if worker.process.is_alive()]
            worker = chance.choice(living)
            what = chance.choice(["record"] * 6 + ["kill", "reset", "wait"])
            if what == "record":
                sent = [
                    (
                        f"/{chance.randrange(7)}",
                        chance.choice(STATUSES),
                        10.0 ** chance.uniform(-3, 5),
                    )
                    for _ in range(chance.randrange(1, 20))
                ]
                worker.do(record, sent)
                counted.update(status for _, status, _ in sent)
                recent.update(str(status) for _, status, _ in sent)
            elif what == "kill":
                worker.kill()
                workers.start().do(record, [])
            elif what == "reset":
                worker.do(MetricsMonitor.reset_statistics)
                counted.clear()
                recent.clear()
            else:
                clock.advance(15.0)
                recent.clear()
            reader = next(each for each in workers.workers if each.process.is_alive())
            assert reader.do(by_status) == counted
            assert reader.do(by_class) == classes(counted)
            assert reader.do(window) == recent
            assert sum(reader.do(by_route).values()) == counted.total()
        clock.advance(1.0)
        in_steps = classes(Counter({int(status): count for status, count in recent.items()}))
        assert reader.do(steps_by_class) == in_steps


def record_until_killed(monitor: MetricsMonitor, after: int) -> None:
    """In a worker: have a new route take a row over, and die in the middle of it."""
    rebase, calls = BlockTable.rebase, 0

    def rebase_or_die(self: BlockTable, *args: Any) -> None:
        nonlocal calls
        if calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        rebase(self, *args)

    BlockTable.rebase = rebase_or_die  # type: ignore[method-assign]
    monitor.record_request(1.0, method="GET", route="/new", status=200)


@pytest.mark.parametrize("after", range(4))
def test_killed_while_a_row_gets_another_name(after: int) -> None:
    clock = SharedClock()
    old = [("/a", status, 1.0) for status in (200, 404, 500)]
    with crew(2, clock, window_seconds=10, max_routes=1) as workers:
        reader, victim = workers.workers
        reader.do(record, [])
        victim.do(record, old)
        clock.advance(30.0)
        job = victim.begin(record_until_killed, after)
        victim.wait()
        del job
        assert reader.do(by_status) == {200: 1, 404: 1, 500: 1}
        heir = workers.start()
        heir.do(record, [("/new", 200, 1.0), ("/new", 404, 1.0), ("/more", 404, 1.0)])
        for worker in (reader, heir):
            assert worker.do(by_status) == {200: 2, 404: 3, 500: 1}
            assert worker.do(by_route).total() == 6
            assert worker.do(by_route)["/a"] == 0
        clock.advance(30.0)
        heir.do(record, [("/third", 500, 1.0)])
        assert heir.do(by_route) == {OTHER: 6, "/third": 1}
        assert heir.do(window) == {"500": 1}
