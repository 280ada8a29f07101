"""Damage to what the workers share, and to their directory: no record or read fails."""

from __future__ import annotations

import math
import os
import shutil
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from kits.crew import SharedClock, Worker, crew, wait_until
from kits.damage import (
    STEP,
    expected,
    noise,
    numbers,
    ones,
    overwrite,
    record,
    replace,
    segment_path,
    truncate,
    zeros,
)

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.reader import SegmentSource
from metricsmw.engine.workers import resets

SHARED_FILES = {
    "truncated": truncate(0),
    "cut in the middle": truncate(60),
    "zeroed": overwrite(0, None, zeros),
    "random bytes": overwrite(0, None, noise),
    "infinite": overwrite(8, 32, lambda size: struct.pack("4d", *[math.inf] * 4)),
    "no numbers": overwrite(8, None, ones),
    "symbolic link": replace(lambda path: path.symlink_to("/etc/passwd")),
    "directory": replace(Path.mkdir),
    "FIFO": replace(os.mkfifo),
    "gone": Path.unlink,
}


zero_history = overwrite(0, None, zeros)


# What is another file then; the contents of a lock do not matter.
REPLACING = ("symbolic link", "directory", "FIFO", "gone")


def tells(worker: Worker) -> bool:
    """Whether its health says that something is wrong."""
    health = worker.do(MetricsMonitor.get_health)
    return health["status"] == "degraded" or health["faults"] > 0


@pytest.mark.parametrize("name", ["history-60", "reset", "lock"])
@pytest.mark.parametrize("damage", SHARED_FILES)
def test_a_shared_file(name: str, damage: str) -> None:
    clock = SharedClock()
    with crew(2, clock) as workers:
        first, second = workers.workers
        workers.all(record, "old", 2)
        clock.advance(STEP)
        first.do(MetricsMonitor.reset_statistics)
        clock.advance(STEP)
        workers.all(record, "new", 3)
        clock.advance(120)
        assert workers.all(numbers) == [expected(new=6)] * 2
        assert not any(map(tells, workers.workers))
        SHARED_FILES[damage](Path(first.do(segment_path)).with_name(name))
        joined = workers.start()
        joined.do(record, "new", 1)
        for worker in (first, second):
            worker.do(record, "new", 1)
            # What was reset does not come back.
            _, routes, users = worker.do(numbers)
            assert (set(routes), users) == ({"/new"}, ["new"])
            assert tells(worker) == (name != "lock" or damage in REPLACING)
        if name == "reset" and damage != "gone":
            # Whoever has never read it knows nothing of it, and says so.
            assert joined.do(numbers)[0] == 4 + 6 + 3
            assert tells(joined)
        clock.advance(70)
        for worker in (first, second, joined):
            total = worker.do(numbers)[0]
            history = worker.do(MetricsMonitor.get_metrics_history)
            # No minute is made up: not more than there were, and none with numbers of its own.
            assert len(history) <= 3
            assert all(0 <= int(row["total_requests"]) <= total for row in history)
        if name == "reset" and damage != "directory":
            second.do(MetricsMonitor.reset_statistics)
            clock.advance(STEP)
            assert workers.all(numbers) == [expected()] * 3
            assert not any(map(tells, workers.workers))


def test_a_damaged_reset_is_read_once(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    """It may have many megabytes, and each reading asks for it."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 1)
        monitor.reset_statistics()
        path = Path(segment_path(monitor)).with_name("reset")
        path.write_bytes(b"x" * 100)
        looks = []
        real = resets.unpack_reset
        monkeypatch.setattr(resets, "unpack_reset", lambda *args: looks.append(args) or real(*args))
        for _ in range(3):
            assert monitor.get_health()["status"] == "degraded"
            assert monitor.total_requests == 0
        assert len(looks) == 1
        os.truncate(path, resets.MOST_BYTES + 1)
        assert monitor.get_health()["status"] == "degraded"
        assert len(looks) == 1
        monitor.reset_statistics()
        assert monitor.get_health()["status"] == "healthy"


@pytest.mark.parametrize("damage", [truncate(0), zero_history], ids=["truncated", "zeroed"])
def test_no_minute_is_made_up(damage: Callable[[Path], None], clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 1)
        clock.advance(120)
        assert len(monitor.get_metrics_history()) == 2
        damage(Path(segment_path(monitor)).with_name("history-60"))
        assert monitor.get_metrics_history() == []
        clock.advance(60)
        assert len(monitor.get_metrics_history()) == 1


@pytest.mark.parametrize(
    "read", [MetricsMonitor.reset_statistics, MetricsMonitor.save_snapshot_to_history]
)
def test_a_segment_is_lost_while_the_server_is_locked(
    read: Callable[[MetricsMonitor], None], monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """One thread holds the server's lock; another has to open a segment, and waits for it."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 3)
        group = monitor.membership.group
        assert group is not None
        real = group.sources

        def sources(complete: bool = False) -> Mapping[str, SegmentSource]:
            Path(segment_path(monitor)).unlink()
            clock.advance(STEP)
            other.start()
            wait_until(monitor_is_replacing, "a new segment is being opened")
            return real(complete)

        def monitor_is_replacing() -> bool:
            return monitor.membership.group is not group

        other = threading.Thread(target=record, args=(monitor, "new", 2), daemon=True)
        monkeypatch.setattr(group, "sources", sources)
        read(monitor)
        other.join(60)
        assert not other.is_alive()
        assert monitor.get_routes()[0]["route"] == "/new"
        assert monitor.get_health()["faults"] == 0


def test_the_directory_is_removed() -> None:
    clock = SharedClock()
    with crew(2, clock) as workers:
        workers.all(record, "before", 3)
        directory = Path(workers.workers[0].do(segment_path)).parent
        clock.advance(STEP)
        shutil.rmtree(directory)
        # What was counted is lost with it; from now on they count together again.
        workers.all(record, "after", 2)
        assert workers.all(numbers) == [expected(after=4)] * 2
        shutil.rmtree(directory)
        clock.advance(STEP)
        assert workers.all(numbers) == [expected()] * 2
