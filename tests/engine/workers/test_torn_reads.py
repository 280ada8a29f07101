"""No reading shows a count that cannot be, while one process writes and four others read.

The writer takes a checkpoint every millisecond.

METRICSMW_HAMMER_SECONDS: how long; 10 for requests where CI is set, else 3.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from kits.crew import SharedClock, crew, shared_numbers
from kits.reference import GLOBAL_BOUND, ROUTE_BOUND, is_near

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.memory import FileMemory

SECONDS = float(os.environ.get("METRICSMW_HAMMER_SECONDS", "3"))
LONG = 10.0 if os.environ.get("CI") and SECONDS == 3 else SECONDS
READERS = 4
WINDOW = 60  # the writer moves the clock by a step, which is a second
A_STEP = 20  # requests in each
ROUTE_STEP = 6
USERS = 2000
LATENCIES = (2.0, 30.0, 400.0, 5000.0)

# What the writer has begun to record and has recorded, which round of it, and whether it is done.
STARTED, FINISHED, ROUND, DONE = range(4)
WRITTEN = shared_numbers(4)
CLOCK = SharedClock()


class Reading(NamedTuple):
    """What the next reading must not go back behind."""

    requests: int
    errors: int


def write_requests(monitor: MetricsMonitor, seconds: float) -> None:
    """In the writer: requests to four routes in turn, of which one fails."""
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(A_STEP):
            count += 1
            WRITTEN[STARTED] = count
            kind = count % 4
            monitor.record_request(
                LATENCIES[kind],
                user_id=f"user-{count % USERS}",
                method="GET",
                route=f"/{kind}",
                status=200 if kind else 500,
            )
            WRITTEN[FINISHED] = count
        CLOCK.advance(1)
        time.sleep(0.001)
    WRITTEN[DONE] = 1.0


def check_snapshot(monitor: MetricsMonitor, before: Reading) -> Reading:
    at_least = int(WRITTEN[FINISHED])
    now = monitor.get_current_snapshot()
    at_most = int(WRITTEN[STARTED])
    assert max(at_least, before.requests) <= now.total_requests <= at_most
    assert max(at_least // 4, before.errors) <= now.total_errors <= at_most // 4
    assert now.total_errors <= now.total_requests
    assert min(at_least, USERS) <= now.active_users <= min(at_most, USERS)
    assert 0.0 <= now.error_rate_pct <= 100.0
    # The window holds 60 steps and the one in progress. The writer may be up to 3 further than
    # the reader's clock: the ring has 64 places.
    assert now.request_rate_rpm <= min(at_most, 65 * A_STEP)
    if at_least > 70 * A_STEP:
        assert now.request_rate_rpm >= 60 * A_STEP * 60 / 61 - 1
        assert 20.0 <= now.error_rate_pct <= 30.0
        assert is_near(now.latency_max_ms, 5000.0, GLOBAL_BOUND)
        told = (now.latency_p50_ms, now.latency_p95_ms, now.latency_p99_ms)
        assert list(told) == sorted(told)
        for value in told:
            assert any(is_near(value, latency, GLOBAL_BOUND) for latency in LATENCIES)
    return Reading(now.total_requests, now.total_errors)


def check_routes(monitor: MetricsMonitor) -> None:
    at_least = WRITTEN[FINISHED]
    rows = monitor.get_routes()
    at_most = WRITTEN[STARTED]
    assert len(rows) == len({row["route"] for row in rows}) <= 4
    if at_least > 70 * A_STEP:
        assert len(rows) == 4
    for row in rows:
        kind, requests = int(row["route"][1:]), row["requests"]
        assert 0 < requests <= min(at_most / 4 + 1, 12 * ROUTE_STEP * A_STEP / 4)
        assert sum(row["statuses"].values()) == requests
        # The last one may be counted already, and as an error not yet.
        errors = row["error_rate_pct"] / 100 * requests
        assert requests - 1.1 <= errors if kind == 0 else errors == 0
        for value in (row["latency_p50_ms"], row["latency_p99_ms"], row["latency_max_ms"]):
            assert is_near(value, LATENCIES[kind], ROUTE_BOUND)


def check_history(monitor: MetricsMonitor) -> None:
    history = monitor.get_metrics_history()
    at_most = WRITTEN[STARTED]
    times = [str(row["timestamp"]) for row in history]
    assert times == sorted(set(times))
    totals = [int(row["total_requests"]) for row in history]
    errors = [int(row["total_errors"]) for row in history]
    assert totals == sorted(totals)
    assert errors == sorted(errors)
    for row, total, error in zip(history, totals, errors, strict=True):
        assert 0 <= error <= total <= at_most
        assert 0.0 <= float(row["request_rate_rpm"]) <= 65 * A_STEP


def read_requests(monitor: MetricsMonitor) -> int:
    """In a reader: look at everything, again and again; how often."""
    count = 0
    reading = Reading(0, 0)
    while not WRITTEN[DONE]:
        reading = check_snapshot(monitor, reading)
        check_routes(monitor)
        check_history(monitor)
        count += 1
    health = monitor.get_health()
    assert (health["status"], health["faults"]) == ("healthy", 0)
    return count


def write_seldom(monitor: MetricsMonitor, seconds: float) -> None:
    """In the writer: a window later each time, so that its newest checkpoint is the one in use."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        WRITTEN[ROUND] += 1
        CLOCK.advance(2 * WINDOW)
        for _ in range(A_STEP):
            monitor.record_request(10.0, method="GET", route="/")
        time.sleep(0.001)
    WRITTEN[DONE] = 1.0


def read_the_last(monitor: MetricsMonitor) -> int:
    """In a reader: nothing of an earlier round is in the window; how often that was seen."""
    count = 0
    while not WRITTEN[DONE]:
        assert monitor.get_health()["segments_left_out"] == 0
        for rate in (
            MetricsMonitor.get_request_rate_rpm,
            lambda monitor: sum(row["requests"] for row in monitor.get_routes()),
        ):
            round_ = WRITTEN[ROUND]
            requests = rate(monitor)
            if WRITTEN[ROUND] == round_ > 2:
                count += 1
                assert requests <= A_STEP
    return count


def write_users(monitor: MetricsMonitor, seconds: float) -> None:
    """In the writer: in each round eight times as many users as are counted exactly."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        WRITTEN[ROUND] += 1
        monitor.reset_statistics()
        CLOCK.advance(1)
        WRITTEN[FINISHED] = WRITTEN[STARTED] = 0.0
        WRITTEN[ROUND] += 1
        for count in range(1, 8001):
            WRITTEN[STARTED] = count
            monitor.record_user_activity(f"user-{count}")
            WRITTEN[FINISHED] = count
            if count % 100 == 0:
                time.sleep(0.0005)
    WRITTEN[DONE] = 1.0


def read_users(monitor: MetricsMonitor) -> int:
    """In a reader: look at the users, again and again; how often within a round."""
    count = 0
    while not WRITTEN[DONE]:
        round_, at_least = WRITTEN[ROUND], WRITTEN[FINISHED]
        users = monitor.get_active_users()
        at_most = WRITTEN[STARTED]
        if round_ % 2 or WRITTEN[ROUND] != round_:
            continue  # a reset was under way
        count += 1
        # A sample of about five hundred at the least, and five times its error of 4.5 %.
        assert 0.77 * at_least <= users <= 1.23 * at_most
        if at_most <= 1000:
            assert at_least <= users <= at_most
        if count % 10 == 0:
            names = monitor.get_active_user_ids()
            assert len(names) == len(set(names)) <= 1100
            assert all(name.startswith("user-") and 0 < int(name[5:]) <= 8000 for name in names)
    return count


@pytest.mark.parametrize(
    ("write", "read", "seconds"),
    [
        (write_requests, read_requests, LONG),
        (write_seldom, read_the_last, SECONDS),
        (write_users, read_users, SECONDS),
    ],
)
def test_no_reading_is_torn(
    write: Callable[[MetricsMonitor, float], None],
    read: Callable[[MetricsMonitor], int],
    seconds: float,
) -> None:
    WRITTEN[STARTED] = WRITTEN[FINISHED] = WRITTEN[ROUND] = WRITTEN[DONE] = 0.0
    settings = {"max_users": 1000 if write is write_users else 10_000, "max_history_minutes": 5}
    with crew(1 + READERS, CLOCK, window_seconds=WINDOW, **settings) as workers:
        writer, *readers = workers.workers
        workers.all(MetricsMonitor.get_current_snapshot)
        counts = [reader.begin(read) for reader in readers]
        writer.do(write, seconds)
        assert all(count() > 10 for count in counts)


class Halting:
    """A writer's view of a table that stops halfway through each checkpoint: others may look."""

    def __init__(self, view: memoryview, look: Callable[[], None]) -> None:
        self._view = view
        self._look = look

    def __setitem__(self, place: slice, data: memoryview) -> None:
        middle = place.start + len(data) // 16 * 8
        self._view[place.start : middle] = data[: middle - place.start]
        self._look()
        self._view[middle : place.stop] = data[middle - place.start :]


@pytest.mark.parametrize("latency_ms", [10.0, 3000.0], ids=["first half", "second half"])
@pytest.mark.parametrize("steps", [64, 128, 61, 1])
def test_a_checkpoint_in_the_making_is_not_used(steps: int, latency_ms: float) -> None:
    # After 64 steps it is made where the one before was.
    clock = ManualClock()
    with (
        MetricsMonitor(WINDOW, shared=True, clock=clock) as writer,
        MetricsMonitor(WINDOW, shared=True, clock=clock) as reader,
    ):
        seen: list[tuple[int, float, int]] = []

        def look() -> None:
            health = reader.get_health()
            seen.append(
                (reader.total_requests, reader.get_request_rate_rpm(), health["segments_left_out"])
            )

        table = writer.recorder.open().table
        for _ in range(7):
            writer.record_request(latency_ms)
        clock.advance(1)
        for _ in range(7):
            writer.record_request(latency_ms)
        clock.advance(steps)
        table.view = Halting(table.view, look)  # type: ignore[assignment]
        writer.record_request(latency_ms)
        assert seen == [(14, 14.0 if steps == 1 else 0.0, 0)]
        look()
        assert seen[1] == (15, 15.0 if steps == 1 else 1.0, 0)


@pytest.mark.parametrize("turn", range(5))
def test_parts_that_are_added_at_once_do_not_overlap(
    turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread sees its first user while another one meets its first route.
    def slow_map(memory: FileMemory, offset: int, size: int) -> memoryview:
        view = quick_map(memory, offset, size)
        time.sleep(0.005)  # as fallocate may, it lets the others run
        return view

    with MetricsMonitor(shared=True) as monitor:
        monitor.recorder.open()
        quick_map = FileMemory.map
        monkeypatch.setattr(FileMemory, "map", slow_map)
        jobs = [
            threading.Thread(target=monitor.record_user_activity, args=("ada",)),
            threading.Thread(target=monitor.record_request, args=(10.0,), kwargs={"route": "/"}),
        ]
        for job in jobs if turn % 2 else reversed(jobs):
            job.start()
        for job in jobs:
            job.join()
        assert monitor.get_active_user_ids() == ["ada"]
        assert [(row["route"], row["requests"]) for row in monitor.get_routes()] == [("/", 1)]
        assert monitor.get_health()["segments_left_out"] == 0
