"""One answer is one reading of the server, so that its parts agree with each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.storage.layout import SERVER_SHAPE
from metricsmw.engine.storage.reader import OVERALL
from metricsmw.engine.workers.group import Group

THREADS = 8
READINGS = 60


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[ServerReading]:
    """All readings from here on."""
    found: list[ServerReading] = []
    real = ServerReader.read

    def read(self: ServerReader, group: Group, *args: object, **asked: bool) -> ServerReading:
        found.append(real(self, group, *args, **asked))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(ServerReader, "read", read)
    return found


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        monitor.record_request(20.0, user_id="ada", method="GET", route="/a", status=404)
        yield monitor


ANSWERS: dict[str, Callable[[MetricsMonitor], object]] = {
    "snapshot": MetricsMonitor.get_current_snapshot,
    "statistics": MetricsMonitor.get_statistics,
    "health": MetricsMonitor.get_health,
    "routes": MetricsMonitor.get_routes,
    "series": MetricsMonitor.get_series,
    "route series": lambda monitor: monitor.get_route_series("GET", "/a"),
    "check": lambda monitor: monitor.check_health({"error_rate_pct": 5.0, "workers": 9}),
    "users": MetricsMonitor.get_active_user_ids,
    "counts": MetricsMonitor.read_counts,
    "save": MetricsMonitor.save_snapshot_to_history,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_method_reads_once(
    monitor: MetricsMonitor, readings: list[ServerReading], name: str
) -> None:
    ANSWERS[name](monitor)
    assert len(readings) == 1


def test_all_answers_of_one_reading(monitor: MetricsMonitor, readings: list[ServerReading]) -> None:
    reading = monitor.read(routes=True)
    assert readings == []  # nothing is read before it is asked for
    monitor.record_request(20.0)
    assert reading.snapshot.total_requests == 2
    monitor.record_request(20.0)
    assert reading.statistics["totals"]["total_requests"] == 2
    assert reading.statistics["current"]["total_requests"] == 2
    assert [row["requests"] for row in reading.routes] == [1]
    assert reading.health["workers"] == reading.snapshot.workers == 1
    assert reading.request_rate_rpm == reading.snapshot.request_rate_rpm
    assert len(readings) == 1
    assert monitor.total_requests == 3


def test_its_parts_agree_while_threads_record(monitor: MetricsMonitor) -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            monitor.record_request(5.0, method="GET", route=f"/{number}", status=500)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(READINGS):
            reading = monitor.read(routes=True)
            snapshot, statistics = reading.snapshot, reading.statistics
            totals = statistics["totals"]
            current = dict(statistics["current"])
            for percent in (50, 95, 99):
                del current[f"latency_ttfb_p{percent}_ms"]
            assert current == snapshot.to_dict()
            assert totals["total_requests"] == snapshot.total_requests
            assert totals["total_errors"] == snapshot.total_errors
            # The clock stands still, so that the window has all requests.
            assert snapshot.error_rate_pct == totals["total_error_rate_pct"]
            assert reading.request_rate_rpm == snapshot.request_rate_rpm
            counted = sum(row["requests"] for row in reading.routes)
            # A request is in the totals a moment before it is in its route's row.
            assert counted <= snapshot.total_requests <= reading.server.window.requests
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    reading = monitor.read(routes=True)
    assert sum(row["requests"] for row in reading.routes) == reading.snapshot.total_requests


# --- what a reading of other workers costs -------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of another worker's segment, and 0 for each that is opened."""
    found: list[int] = []
    real_pread, real_open = os.pread, os.open

    def pread(fd: int, size: int, offset: int) -> bytes:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_RDONLY and "/worker-" in os.readlink(f"/proc/self/fd/{fd}"):
            found.append(size)
        return real_pread(fd, size, offset)

    def open_file(path: str, *args: int, **kwargs: int) -> int:
        if str(path).startswith("worker-"):
            found.append(0)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "open", open_file)
    return found


def test_another_worker_is_read_once_in_a_step(clock: ManualClock, reads: list[int]) -> None:
    with (
        MetricsMonitor(shared=True, clock=clock) as other,
        MetricsMonitor(shared=True, clock=clock) as monitor,
    ):
        for _ in range(3):
            other.record_request(20.0)
            clock.advance(5.0)
            monitor.record_request(30.0)
        assert monitor.get_current_snapshot().total_requests == 6
        reads.clear()
        other.record_request(25.0)
        assert monitor.get_current_snapshot().total_requests == 7
        assert reads == [OVERALL]
        # A window that begins with another step: that checkpoint is read, and its label again.
        clock.advance(295.0)
        other.record_request(20.0)
        assert monitor.get_current_snapshot().request_rate_rpm > 0
        clock.advance(5.0)
        reads.clear()
        assert monitor.get_current_snapshot().request_rate_rpm == 0.6  # three in 300 s
        assert reads == [OVERALL, SERVER_SHAPE.stride, 8]


def test_the_app_is_left_its_descriptors(
    clock: ManualClock, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (31, 31))
    with contextlib.ExitStack() as stack:
        monitors = [stack.enter_context(MetricsMonitor(shared=True, clock=clock)) for _ in range(3)]
        for monitor in monitors:
            monitor.record_request(20.0)
        assert monitors[0].total_requests == 3
        reads.clear()
        assert monitors[0].total_requests == 3
        assert sorted(reads) == [0, OVERALL, OVERALL]  # one stays open, the other does not
