"""The workers one by one: their numbers against a plain model, and which of them is marked."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.crew import SharedClock, crew, wait_until

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.directory import make_directory
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.reading.resources import ResourceSampler, WorkerResources
from metricsmw.engine.reading.workers import WorkerRow, WorkerWatch
from metricsmw.engine.storage.reader import SegmentReading, WorkerUsage
from metricsmw.engine.workers.sightings import SIGHTINGS, read_sightings
from metricsmw.engine.workers.surroundings import Surroundings

STEP = 5.0
ERROR = 0.011  # of a latency that is named by its bucket


@contextmanager
def server(count: int, clock: ManualClock) -> Iterator[list[MetricsMonitor]]:
    """So many workers of one server, which are one process here: rows are told by their order."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("METRICSMW_DIR", folder)
        monitors = [
            stack.enter_context(MetricsMonitor(shared=True, clock=clock)) for _ in range(count)
        ]
        for monitor in monitors:
            assert monitor.read().server.workers
        yield monitors


class Plain:
    """What one worker has answered, as a list of (end, milliseconds, status)."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.born = clock.monotonic()
        self.answers: list[tuple[float, float, int]] = []

    def row(self, reset: float) -> dict[str, Any]:
        now = self.clock.monotonic()
        since = [one for one in self.answers if one[0] >= reset]
        begin = (math.floor(now / STEP) - 60) * STEP
        window = sorted(one[1] for one in since if one[0] >= begin)
        statuses = [one[2] for one in since if one[0] >= begin]
        age = min(now - begin, max(now - max(self.born, reset), 60.0))
        last = None
        if since:
            end = (math.floor(since[-1][0] / STEP) + 1) * STEP
            last = round(max(now - end, 0.0), 1)
        return {
            "requests": len(since),
            "request_rate_rpm": round(60 * len(window) / age, 2),
            "error_rate_pct": share(sum(status >= 400 for status in statuses), window),
            "server_error_rate_pct": share(sum(status >= 500 for status in statuses), window),
            "latency_p95_ms": window[-(-len(window) * 95 // 100) - 1] if window else None,
            "last_request_seconds": last,
        }


def share(part: int, whole: list[float]) -> float:
    return round(100 * part / len(whole), 2) if whole else 0.0


ANSWER = st.tuples(
    st.integers(0, 2), st.sampled_from([0.5, 7, 80, 900]), st.sampled_from([200, 404, 500])
)
WAIT = st.sampled_from([0.3, 2.0, 7.0, 61.0, 290.0, 400.0])


@settings(max_examples=12)
@given(st.lists(st.one_of(ANSWER, WAIT, st.just("reset")), max_size=30))
def test_against_a_list(events: list[Any]) -> None:
    clock = ManualClock()
    with server(3, clock) as monitors:
        plain = [Plain(clock) for _ in monitors]
        reset = 0.0
        for event in events:
            if event == "reset":
                clock.advance(1.0)
                monitors[0].reset_statistics()
                reset = clock.monotonic()
            elif isinstance(event, float):
                clock.advance(event)
            else:
                worker, latency, status = event
                monitors[worker].record_request(latency, status=status)
                plain[worker].answers.append((clock.monotonic(), latency, status))
        reading = monitors[1].read()
        rows, snapshot = reading.workers, reading.snapshot
    assert len(rows) == 3
    for row, model in zip(rows, plain, strict=True):
        expected = model.row(reset)
        p95 = expected.pop("latency_p95_ms")
        assert row["latency_p95_ms"] == (None if p95 is None else pytest.approx(p95, rel=ERROR))
        assert {name: row[name] for name in expected} == expected  # type: ignore[literal-required]
    assert sum(row["requests"] for row in rows) == snapshot.total_requests


def work(monitor: MetricsMonitor, times: int, latency: float = 10.0) -> None:
    for _ in range(times):
        monitor.record_request(latency, status=200)


def table(monitor: MetricsMonitor) -> dict[int, WorkerRow]:
    return {row["pid"]: row for row in monitor.get_workers()}


def test_who_takes_a_dead_workers_place_shows_its_own_numbers() -> None:
    clock = SharedClock()
    with crew(2, clock) as workers:
        first, second = workers.workers
        first.do(work, 40, 900.0)
        second.do(work, 20)
        clock.advance(62)
        first.kill()
        newcomer = workers.start()
        clock.advance(1)
        newcomer.do(work, 5, 1.0)
        rows = second.do(table)
        total = second.do(MetricsMonitor.get_current_snapshot).total_requests
        since = {pid: row["since"] for pid, row in rows.items()}
        assert set(rows) == {second.pid, newcomer.pid}
        assert since[newcomer.pid] > since[second.pid]
        assert [rows[pid]["requests"] for pid in (second.pid, newcomer.pid)] == [20, 5]
        assert rows[newcomer.pid]["latency_p95_ms"] == pytest.approx(1.0, rel=ERROR)
        assert rows[newcomer.pid]["request_rate_rpm"] == 5.0
        assert rows[second.pid]["last_request_seconds"] == 58.0
        assert total == 65
        second.do(MetricsMonitor.reset_statistics)
        assert [row["requests"] for row in second.do(table).values()] == [0, 0]
        assert newcomer.do(table)[newcomer.pid]["last_request_seconds"] is None


def test_a_stopped_worker_is_seen_by_another_one() -> None:
    with crew(2, SharedClock()) as workers:
        first, second = workers.workers
        for worker in workers.workers:
            worker.do(work, 1)
        assert {row["state"] for row in second.do(table).values()} == {"running"}
        os.kill(first.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: second.do(table)[first.pid]["state"] == "stopped", "it is seen")
            assert second.do(table)[second.pid]["state"] == "running"
        finally:
            os.kill(first.pid, signal.SIGCONT)
        wait_until(lambda: second.do(table)[first.pid]["state"] == "running", "it goes on")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[WorkerResources | None]:
    """What the one process is said to use; the last one of the list."""
    told: list[WorkerResources | None] = [None]

    def each(sampler: object, workers: Any) -> dict[Any, WorkerResources]:
        found = told[-1]
        return {} if found is None else {worker[:2]: found for worker in workers}

    monkeypatch.setattr(ResourceSampler, "each", each)
    return told


@pytest.mark.parametrize(
    ("cpu", "seconds", "state"),
    [
        (99.0, 1.0, "spins"),
        (0.0, 1.0, "waits"),
        (5.0, 2.0, "waits"),
        (2.0, 50.0, "waits"),  # all of that, and it would still be little
        (50.0, 500.0, "hangs"),  # it may have been busy before
        (99.0, None, "hangs"),
        (None, None, "hangs"),
    ],
)
def test_requests_in_flight_and_none_finished(
    monitor: MetricsMonitor,
    clock: ManualClock,
    used: list[WorkerResources | None],
    cpu: float | None,
    seconds: float | None,
    state: str,
) -> None:
    if cpu is not None:
        used.append(WorkerResources(cpu, 2**20, cpu if seconds else None, seconds))

    def seen() -> str:
        (row,) = monitor.get_workers()
        return row["state"]

    clock.advance(1000)
    monitor.record_request(1.0)
    clock.advance(1000)  # idle, which is no sickness
    assert seen() == "running"
    start = monitor.recorder.begin()
    for _ in range(3):
        assert seen() == "running"
        clock.advance(2)
    assert seen() == state
    monitor.recorder.end(start, 200, "/", "GET")
    start = monitor.recorder.begin()
    clock.advance(60)
    assert seen() == "running"  # it has finished one: another one is in flight now
    clock.advance(6)
    assert seen() == state
    monitor.recorder.cancel()
    assert seen() == "running"


LOOKS = st.lists(
    st.tuples(
        st.sampled_from([1.0, 2.0, 7.0, 61.0]),  # since the look before
        st.sampled_from(["begin", "end", "cancel", "work", ""]),
        st.integers(0, 1),  # the worker
        st.integers(0, 2),  # the reader
    ),
    max_size=25,
)


@settings(max_examples=10)
@given(LOOKS)
def test_readers_in_turn_know_what_one_that_always_looks_does(looks: list[Any]) -> None:
    clock = ManualClock()
    begun: list[list[float]] = [[], []]
    with server(2, clock) as monitors, TemporaryDirectory() as folder:
        place = make_directory(Path(folder) / "shared")
        readers, always = [WorkerWatch() for _ in range(3)], WorkerWatch()
        for pause, event, worker, reader in looks:
            clock.advance(pause)
            recorder = monitors[worker].recorder
            if event == "begin":
                begun[worker].append(recorder.begin())
            elif event == "work":
                work(monitors[worker], 25)
            elif event and begun[worker]:
                start = begun[worker].pop()
                recorder.cancel() if event == "cancel" else recorder.end(start, 200, "/", "GET")
            reading = monitors[0].read().server
            readers[reader].look(reading, place)
            always.look(reading)
            for segment in reading.segments:
                known = always.quiet_seconds(segment, reading)
                assert readers[reader].quiet_seconds(segment, reading) == known


def test_a_worker_is_marked_by_one_that_looks_for_the_first_time(
    used: list[WorkerResources | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    used.append(WorkerResources(99.0, 2**20, 99.0, 1.0))
    monkeypatch.setattr(FaultLog, "report", pytest.fail)
    with server(4, clock) as monitors:
        directory = monitors[0].directory
        assert directory is not None
        file = directory / SIGHTINGS
        clock.advance(2)  # as they have looked to see that all are there
        monitors[3].recorder.begin()
        seen = []
        for reader in (0, 1, 2):
            seen.append(sorted(row["state"] for row in monitors[reader].get_workers()))
            clock.advance(3)
        assert seen == [["running"] * 4] * 2 + [["running"] * 3 + ["spins"]]
        # Nothing has changed, and so nothing is written.
        before = file.stat()
        for _ in range(3):
            monitors[0].get_workers()
            clock.advance(2)
        assert file.stat().st_ino == before.st_ino
        assert before.st_mode & 0o777 == 0o600
        for damage in (
            b"",
            b"[]",
            b'{"worker-0": [1, 2]}',
            b'{"worker-3": [1, 2, 3, 4, 5, 6, []]}',
        ):
            file.write_bytes(damage)
            clock.advance(2)
            assert "spins" in [row["state"] for row in monitors[0].get_workers()]
            assert read_sightings(make_directory(directory)).keys() == {
                f"worker-{number}" for number in range(4)
            }


def test_a_disk_that_does_not_answer(
    monitor: MetricsMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Surroundings, "state", lambda here, pid: "D")
    monitor.recorder.begin()
    seen = []
    for _ in range(4):
        seen += [row["state"] for row in monitor.get_workers()]
        clock.advance(2)
    assert seen == ["running", "running", "running", "waits for a disk"]


def test_a_worker_that_gets_no_request_spins_only_where_others_answer(
    used: list[WorkerResources | None],
) -> None:
    clock = ManualClock()
    used.append(WorkerResources(100.0, 2**20, 100.0, 1.0))
    with server(2, clock) as monitors:
        for monitor in monitors:
            monitor.record_request(1.0)
        for times, states in ((0, ["running"] * 2), (60, ["running", "spins"])):
            for _ in range(3):
                work(monitors[0], times)
                rows = monitors[0].get_workers()
                clock.advance(3)
            assert [row["state"] for row in rows] == states


def differs(monitors: list[MetricsMonitor]) -> list[list[str]]:
    return [row["differs"] for row in monitors[0].get_workers()]


def test_which_workers_differ(used: list[WorkerResources | None]) -> None:
    with server(3, ManualClock()) as monitors:
        for monitor in monitors:
            work(monitor, 90)
            work(monitor, 10, 900.0)  # a tenth is slow everywhere, so that is as usual
            for _ in range(12):
                monitor.record_request(5.0, status=500)
        assert differs(monitors) == [[], [], []]
        work(monitors[2], 30, 4000.0)
        assert differs(monitors) == [[], [], ["latency_p95_ms"]]
        for _ in range(90):
            monitors[1].record_request(5.0, status=404)  # its clients' errors
        assert differs(monitors) == [[], [], ["latency_p95_ms"]]
        for _ in range(90):
            monitors[1].record_request(5.0, status=503)
        assert differs(monitors) == [[], ["server_error_rate_pct"], ["latency_p95_ms"]]


def test_few_requests_are_no_difference() -> None:
    with server(2, ManualClock()) as monitors:
        work(monitors[0], 200, 1.0)
        for _ in range(49):
            monitors[1].record_request(900.0, status=500)
        assert differs(monitors) == [[], []]
        monitors[1].record_request(900.0, status=500)
        assert differs(monitors) == [[], ["server_error_rate_pct", "latency_p95_ms"]]


def test_one_that_uses_far_more_memory_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"worker-0": 100, "worker-1": 120, "worker-2": 260}

    def usage(segment: SegmentReading) -> WorkerUsage:
        # Of a process that is not shown, which has said it itself.
        pid = list(sizes).index(segment.name) + 1
        return WorkerUsage(pid, 8, 3.0, 12.5, sizes[segment.name] << 20)

    monkeypatch.setattr(SegmentReading, "usage", usage)
    with server(3, ManualClock()) as monitors:
        rows = monitors[0].get_workers()
    assert [row["differs"] for row in rows] == [[], [], ["memory_mb"]]
    assert [row["memory_mb"] for row in rows] == [100.0, 120.0, 260.0]
    assert [row["cpu_pct"] for row in rows] == [12.5] * 3
    assert [row["seen_seconds"] for row in rows] == [3.0] * 3


def test_what_is_not_known_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of another container: its process is not shown, and it has said nothing yet."""
    monkeypatch.setattr(SegmentReading, "usage", lambda _: WorkerUsage(1, 8, math.inf, 0.0, 0))
    with server(1, ManualClock()) as (monitor,):
        (row,) = monitor.get_workers()
    unknown = ("latency_p95_ms", "cpu_pct", "memory_mb", "last_request_seconds", "seen_seconds")
    assert [row[name] for name in unknown] == [None] * 5  # type: ignore[literal-required]
    assert row["state"] == "unknown"
