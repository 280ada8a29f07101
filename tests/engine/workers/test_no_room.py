"""No room, no permission, no descriptor, no place: no record or read fails, and /health says so."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kits.crew import SharedClock, crew
from kits.damage import (
    NOBODY,
    ROOT,
    STEP,
    R,
    expected,
    left_out,
    numbers,
    record,
    segment_path,
)
from kits.workers import file_system

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.workers import directories


def use_everything(monitor: MetricsMonitor, clock: ManualClock) -> None:
    """Nothing of this may raise; and what has no room for its route or user still counts."""
    before = monitor.total_requests
    for number in range(300):
        record(monitor, f"{number:03}" + "x" * (number % 3) * 40, 1)
    monitor.recorder.end(monitor.recorder.begin(), 200, "/", "GET")
    monitor.increment_websocket_connections()
    assert monitor.total_requests == before + 301
    assert numbers(monitor)[0] == before + 301
    clock.advance(60)
    record(monitor, "later", 1)
    assert numbers(monitor)[0] == before + 302
    monitor.decrement_websocket_connections()


@pytest.mark.parametrize("grants", range(12))
def test_no_room(grants: int, monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    """The file system is full after so many allocations, whatever they are for."""
    with MetricsMonitor(shared=True, clock=clock) as other:
        record(other, "other", 5)
        left = grants
        real = os.posix_fallocate

        def posix_fallocate(fd: int, offset: int, size: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd, offset, size)

        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
        with MetricsMonitor(shared=True, clock=clock) as monitor:
            use_everything(monitor, clock)
            assert left < 0
            health = monitor.get_health()
            if health["mode"] == "private":
                assert "No space left" in health["mode_reason"]
                assert monitor.total_requests == 302
                assert health["workers"] == 1
            else:
                assert monitor.total_requests == 307
                # Routes that had no room are in <other>, or in none, and then that is told.
                routes = numbers(monitor)[1]
                assert sum(routes.values()) == 307 or health["faults"] > 0
                # Users that had none make it an estimate, or that is told.
                exact = "active_users_error_pct" not in monitor.get_statistics()["current"]
                assert not exact or monitor.get_active_users() == 302 or health["faults"] > 0
        monkeypatch.undo()
        total, routes, users = numbers(other)
        assert total in (5, 307)
        assert routes["/other"] == 5
        assert "other" in users
        # A worker that could not be is none; it left nothing that would be taken for one.
        assert other.get_health()["workers"] == 1
        assert left_out_of(other) == 0


@pytest.mark.parametrize("grants", [1, 4])
def test_no_mapping_is_left(
    grants: int, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """The system maps no more memory (``vm.max_map_count``) after so many mappings."""
    left = grants
    real = mmap.mmap

    def limited(*args: Any, **kwargs: Any) -> mmap.mmap:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(*args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", limited)
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        use_everything(monitor, clock)
        assert left < 0


def left_out_of(monitor: MetricsMonitor) -> int:
    return monitor.get_health()["segments_left_out"]


@pytest.mark.parametrize("kilobytes", [4, 8, 64, 600, 628, 644, 660, 700, 1000, 1500, 2000])
def test_a_full_file_system(
    tmp_path: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    with file_system(tmp_path, f"size={kilobytes}k"):
        monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
        with MetricsMonitor(shared=True, clock=clock) as monitor:
            use_everything(monitor, clock)
            try:
                monitor.reset_statistics()
            except OSError:  # it cannot be for all, so it is for none
                assert monitor.total_requests == 302
                assert not list(tmp_path.glob("*/new-*"))
            else:
                assert monitor.total_requests == 0
            use_everything(monitor, clock)
            with MetricsMonitor(shared=True, clock=clock) as second:
                use_everything(second, clock)


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def use_as_nobody(monitor: MetricsMonitor) -> tuple[str, str, int]:
    """In a worker."""
    record(monitor, "nobody", 3)
    health = monitor.get_health()
    return health["mode"], health["mode_reason"], numbers(monitor)[0]


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("made", ["nothing", "its directory", "somebody's directory", "a file"])
def test_a_directory_that_is_read_only(made: str) -> None:
    base = Path(os.environ["METRICSMW_DIR"])
    base.chmod(0o755)
    place = base / f"metricsmw-{NOBODY}"
    if made == "a file":
        place.touch()
    elif made != "nothing":
        place.mkdir(mode=0o500)
        if made == "its directory":
            os.chown(place, NOBODY, NOBODY)
    with crew(0) as workers:
        mode, reason, total = workers.start(become_nobody).do(use_as_nobody)
    assert (mode, total) == ("private", 3)
    # Anybody may read it, and is told no path.
    assert reason
    assert base.name not in reason


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_a_directory_that_becomes_read_only() -> None:
    base = Path(os.environ["METRICSMW_DIR"])
    base.chmod(0o1777)
    with crew(0) as workers:
        first, second = workers.start(become_nobody), workers.start(become_nobody)
        workers.all(record, "any", 2)
        Path(first.do(segment_path)).parent.chmod(0o500)
        assert workers.start(become_nobody).do(use_as_nobody)[::2] == ("private", 3)
        first.do(record, "any", 2)
        for worker in (first, second):
            assert worker.do(numbers) == expected(any=6)
            assert worker.do(MetricsMonitor.get_health)["workers"] == 2


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o600, 0o300])
def test_a_directory_that_cannot_be_looked_into(mode: int) -> None:
    base = Path(os.environ["METRICSMW_DIR"])
    base.chmod(0o1777)
    with crew(0) as workers:
        first, second = workers.start(become_nobody), workers.start(become_nobody)
        workers.all(record, "any", 2)
        assert workers.all(numbers) == [expected(any=4)] * 2
        directory = Path(first.do(segment_path)).parent
        directory.chmod(mode)
        # What was open is read on.
        workers.all(record, "any", 2)
        for worker in (first, second):
            assert worker.do(numbers) == expected(any=8)
            assert left_out(worker) == 1
        first.do(refused, MetricsMonitor.reset_statistics)
        directory.chmod(0o700)
        for worker in (first, second):
            assert worker.do(numbers) == expected(any=8)
            assert left_out(worker) == 0


def refused(monitor: MetricsMonitor, what: Callable[[MetricsMonitor], None]) -> None:
    """In a worker: it raises OSError."""
    with pytest.raises(OSError, match=r"^\[Errno \d+\]"):
        what(monitor)


def without_descriptors(monitor: MetricsMonitor, job: Callable[[MetricsMonitor], R]) -> R:
    """In a worker: do it while nothing can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        return job(monitor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_descriptor_is_left_for_a_while() -> None:
    clock = SharedClock()
    with crew(1, clock) as workers:
        (reader,) = workers.workers
        reader.do(record, "reader", 3)
        reader.do(own_numbers)  # whatever is imported at the first time
        first = workers.start()
        first.do(record, "first", 5)
        clock.advance(STEP)
        # What is not open is left out, and told, and nothing else.
        assert reader.do(without_descriptors, own_numbers) == (3, "degraded")
        assert reader.do(numbers) == expected(reader=3, first=5)
        assert left_out(reader) == 0
        second = workers.start()
        second.do(record, "second", 7)
        assert reader.do(without_descriptors, own_numbers) == (8, "degraded")
        # A reset is for all, or for none.
        reader.do(without_descriptors, reset_refused)
        for worker in workers.workers:
            assert worker.do(numbers) == expected(reader=3, first=5, second=7)
        clock.advance(STEP)
        first.do(MetricsMonitor.reset_statistics)
        reader.do(without_descriptors, own_numbers)
        clock.advance(STEP)
        for worker in workers.workers:
            assert worker.do(numbers) == expected()
            assert worker.do(MetricsMonitor.get_health)["status"] == "healthy"


def own_numbers(monitor: MetricsMonitor) -> tuple[int, str]:
    return numbers(monitor)[0], monitor.get_health()["status"]


def reset_refused(monitor: MetricsMonitor) -> None:
    refused(monitor, MetricsMonitor.reset_statistics)


def test_a_start_without_descriptors_clears_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with crew(2) as workers:
        first, second = workers.workers
        first.do(record, "first", 3)
        assert second.do(without_descriptors_for_segments, use_as_nobody)[0] == "private"
        assert first.do(numbers) == expected(first=3)
        joined = workers.start()
        joined.do(record, "joined", 2)
        assert first.do(numbers) == expected(first=3, joined=2)


def without_descriptors_for_segments(
    monitor: MetricsMonitor, job: Callable[[MetricsMonitor], R]
) -> R:
    """In a worker: do it while no segment can be opened."""
    real = os.open

    def open_(path: str | Path, *args: int, **kwargs: int) -> int:
        if "worker-" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *args, **kwargs)

    os.open = open_  # type: ignore[assignment]
    try:
        return job(monitor)
    finally:
        os.open = real


def test_a_reset_that_has_no_room(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 3)

        def utime(*args: object, **kwargs: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", utime)
            refused(monitor, MetricsMonitor.reset_statistics)
        assert numbers(monitor) == expected(any=3)
        assert not list(Path(segment_path(monitor)).parent.glob("new-*"))


def test_a_directory_that_is_moved_away() -> None:
    with crew(2) as workers:
        first, second = workers.workers
        first.do(record, "first", 2)
        second.do(record, "second", 3)
        directory = Path(first.do(segment_path)).parent
        directory.rename(directory.with_name("elsewhere"))
        # They hold it open, and go on; whoever joins would not find it.
        first.do(record, "first", 1)
        for worker in (first, second):
            assert worker.do(numbers) == expected(first=3, second=3)
            assert worker.do(MetricsMonitor.get_health)["status"] == "degraded"
        directory.with_name("elsewhere").rename(directory)
        for worker in (first, second):
            assert worker.do(numbers) == expected(first=3, second=3)
            assert worker.do(MetricsMonitor.get_health)["status"] == "healthy"


def test_a_directory_that_was_made_again() -> None:
    """As by a cleaner, before another worker came: all go on in the new one."""
    with crew(2) as workers:
        first, second = workers.workers
        workers.all(record, "old", 2)
        directory = Path(first.do(segment_path)).parent
        directory.rename(directory.with_name("elsewhere"))
        joined = workers.start()
        joined.do(record, "joined", 1)
        for worker in (first, second):
            assert worker.do(numbers) == expected(joined=1)
        workers.all(record, "new", 1)
        for worker in (first, second, joined):
            assert worker.do(numbers) == expected(joined=1, new=3)
            assert worker.do(MetricsMonitor.get_health)["status"] == "healthy"


def test_without_dev_shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_dev_shm(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("METRICSMW_DIR")
    with crew(2) as workers:
        workers.all(record, "any", 3)
        assert workers.all(numbers) == [expected(any=6)] * 2
        for path in workers.all(segment_path):
            assert Path(path).is_relative_to(tmp_path)


def test_without_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr(directories, "bases", lambda: [tmp_path / "a file"])
    (tmp_path / "a file").touch()
    monkeypatch.delenv("METRICSMW_DIR")
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        use_everything(monitor, clock)
        assert monitor.get_health()["mode"] == "private"


def hide_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) != "/dev/shm" and real(path))
