"""Damage to segments and to their directory: no record or read fails.

The numbers of the other segments are right, and /health says what is left out.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from kits.crew import Crew, SharedClock, Worker, crew, shared_numbers, wait_until
from kits.workers import file_system

import metricsmw.engine.workers.shared
from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.layout import (
    DIRECTORY_OFFSET,
    FIXED_BYTES,
    HEADER_BYTES,
    SERVER_SHAPE,
    Field,
)
from metricsmw.engine.storage.reader import Source
from metricsmw.snapshot import NUMERIC_FIELDS

ROOT = os.geteuid() == 0
STEP = 5.0
NOBODY = 65534

R = TypeVar("R")

Numbers = tuple[int, dict[str, int], list[str]]


def record(monitor: MetricsMonitor, name: str, times: int) -> None:
    """In a worker: so many requests of one user to one route."""
    for _ in range(times):
        monitor.record_request(10.0, user_id=name, method="GET", route=f"/{name}", status=200)


def numbers(monitor: MetricsMonitor) -> Numbers:
    """In a worker: requests, routes and users, out of an answer that is one."""
    snapshot = monitor.get_current_snapshot().to_dict()
    statistics = monitor.get_statistics()
    values = [float(snapshot[name]) for name in NUMERIC_FIELDS]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    json.dumps([statistics, monitor.get_metrics_history(), monitor.get_health()], allow_nan=False)
    routes = {row["route"]: row["requests"] for row in monitor.get_routes()}
    return monitor.total_requests, routes, monitor.get_active_user_ids()


def segment_path(monitor: MetricsMonitor) -> str:
    """In a worker: its file."""
    group = monitor.membership.group
    assert isinstance(group, metricsmw.engine.workers.shared.SharedGroup)
    return str(group.directory / group.name)


def expected(**counts: int) -> Numbers:
    return sum(counts.values()), {f"/{name}": n for name, n in counts.items()}, sorted(counts)


@dataclass
class Scene:
    """A worker that reads, one that lives and one that has died; all have recorded."""

    workers: Crew
    clock: SharedClock
    reader: Worker
    live: Worker
    files: dict[str, Path]

    def damage(self, victim: str, do: Callable[[Path], None]) -> None:
        do(self.files[victim])


@pytest.fixture
def scene() -> Iterator[Scene]:
    clock = SharedClock()
    with crew(3, clock) as workers:
        reader, live, dead = workers.workers
        reader.do(record, "reader", 3)
        live.do(record, "live", 5)
        dead.do(record, "dead", 7)
        clock.advance(STEP)
        live.do(record, "live", 5)
        dead.do(record, "dead", 7)
        clock.advance(STEP)
        files = {"live": Path(live.do(segment_path)), "dead": Path(dead.do(segment_path))}
        dead.kill()
        assert reader.do(numbers) == expected(reader=3, live=10, dead=14)
        yield Scene(workers, clock, reader, live, files)


def truncate(length: int) -> Callable[[Path], None]:
    """Cut off at that length; from the end where it is negative."""

    def do(path: Path) -> None:
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)

    return do


def overwrite(
    offset: int, size: int | None, fill: Callable[[int], bytes]
) -> Callable[[Path], None]:
    """Fill so many bytes; to the end where there is no size."""

    def do(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(fill(path.stat().st_size - offset if size is None else size))

    return do


def replace(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put something else in its place."""

    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


def write_text(path: Path) -> None:
    path.write_text("no segment\n" * 1000)


def set_field(field: Field, value: float) -> Callable[[Path], None]:
    return overwrite(field * 8, 8, lambda size: struct.pack("d", value))


zeros = bytes
noise = random.Random(11).randbytes

TRUNCATED = {
    f"truncated at {length}": truncate(length)
    for length in (
        *(0, 1, 7, 8, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + SERVER_SHAPE.current),
        *(HEADER_BYTES + SERVER_SHAPE.checkpoint(0), FIXED_BYTES - 1, FIXED_BYTES, -4096, -1),
    )
}
OVERWRITTEN = {
    "zeroed": overwrite(0, None, zeros),
    "header zeroed": overwrite(0, HEADER_BYTES, zeros),
    "counts zeroed": overwrite(HEADER_BYTES, SERVER_SHAPE.size, zeros),
    "random bytes": overwrite(0, None, noise),
    "random header": overwrite(Field.PID * 8, HEADER_BYTES - Field.PID * 8, noise),
    "random chunk directory": overwrite(DIRECTORY_OFFSET, 512, noise),
    "random steps": overwrite(HEADER_BYTES, SERVER_SHAPE.current, noise),
    "random counts": overwrite(HEADER_BYTES + SERVER_SHAPE.current, SERVER_SHAPE.stride, noise),
    "states zeroed": overwrite(
        HEADER_BYTES + SERVER_SHAPE.checkpoint(0), SERVER_SHAPE.slots * SERVER_SHAPE.stride, zeros
    ),
    "impossible maxima": overwrite(
        HEADER_BYTES + SERVER_SHAPE.peaks,
        SERVER_SHAPE.slots * 8,
        lambda size: struct.pack("d", 1e9) * (size // 8),
    ),
    "a chunk elsewhere": overwrite(DIRECTORY_OFFSET + 8, 8, lambda size: struct.pack("d", 4096.0)),
    "random from the counts on": overwrite(HEADER_BYTES, None, noise),
    "older version": set_field(Field.LAYOUT, 0.0),
    "newer version": set_field(Field.LAYOUT, 2.0),
    "impossible window": set_field(Field.WINDOW, 9.0),
    "no window": set_field(Field.WINDOW, math.nan),
    "impossible chunks": set_field(Field.CHUNKS, 1e9),
    "no number": set_field(Field.CREATED, math.nan),
    "infinite": set_field(Field.IN_FLIGHT, math.inf),
    "no process": set_field(Field.PID, math.nan),
    "a process beyond all": set_field(Field.PID, math.inf),
}
REPLACED = {
    "symbolic link": replace(lambda path: path.symlink_to("/etc/passwd")),
    "link to nothing": replace(lambda path: path.symlink_to("nowhere")),
    "link to itself": replace(lambda path: path.symlink_to(path)),
    "link to another segment": replace(lambda path: path.symlink_to(path.parent / "worker-0")),
    "directory": replace(Path.mkdir),
    "FIFO": replace(os.mkfifo),
    "empty file": replace(Path.touch),
    "text": replace(write_text),
}


def give_away(path: Path) -> None:
    if not ROOT:
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)


ALL = {**TRUNCATED, **OVERWRITTEN, **REPLACED, "owned by another user": give_away}


def left_out(worker: Worker) -> int:
    """How many segments that worker says it leaves out."""
    health = worker.do(MetricsMonitor.get_health)
    assert (health["status"] == "degraded") == (health["segments_left_out"] > 0)
    return health["segments_left_out"]


@pytest.mark.parametrize("name", ALL)
def test_a_dead_workers_segment(scene: Scene, name: str) -> None:
    # What workers of another version have left, before a reload, is nobody's fault.
    wrong = int(name != "newer version")
    scene.damage("dead", ALL[name])
    for worker in (scene.reader, scene.live):
        assert worker.do(numbers) == expected(reader=3, live=10)
        assert left_out(worker) == wrong
    # Nobody takes it over; the server goes on without it.
    new = scene.workers.start()
    new.do(record, "new", 2)
    scene.live.do(record, "live", 1)
    for worker in (scene.reader, scene.live, new):
        assert worker.do(numbers) == expected(reader=3, live=11, new=2)
        assert left_out(worker) == wrong
    scene.clock.advance(STEP)
    new.do(MetricsMonitor.reset_statistics)
    scene.clock.advance(STEP)
    scene.reader.do(record, "reader", 1)
    for worker in (scene.reader, scene.live, new):
        assert worker.do(numbers) == expected(reader=1)


@pytest.mark.parametrize("damage", ALL.values(), ids=list(ALL))
def test_another_live_workers_segment(scene: Scene, damage: Callable[[Path], None]) -> None:
    scene.damage("live", damage)
    assert scene.reader.do(numbers) == expected(reader=3, dead=14)
    assert left_out(scene.reader) == 1
    # One that joins takes over the dead one's.
    new = scene.workers.start()
    new.do(record, "new", 2)
    for worker in (scene.reader, new):
        assert worker.do(numbers) == expected(reader=3, dead=14, new=2)
        assert left_out(worker) == 1
    # The victim itself goes on without a fault, and sees the others.
    scene.clock.advance(STEP)
    scene.live.do(record, "live", 4)
    total, routes, _ = scene.live.do(numbers)
    assert routes["/dead"] == 14
    assert total >= 19
    total, routes, _ = scene.reader.do(numbers)
    # Left out, in a new segment, or in its old one, whose counts nothing has touched.
    assert total in (19, 23, 33)
    assert routes["/dead"] == 14


@pytest.mark.parametrize("damage", ALL.values(), ids=list(ALL))
def test_what_is_open_outlives_a_lost_segment(
    damage: Callable[[Path], None], clock: ManualClock
) -> None:
    """A segment that its worker has to give up takes no gauge below what it counts."""
    with (
        MetricsMonitor(shared=True, clock=clock) as monitor,
        MetricsMonitor(shared=True, clock=clock) as reader,
    ):
        reader.recorder.open()
        begun = [monitor.recorder.begin() for _ in range(2)]
        monitor.recorder.open()
        monitor.increment_websocket_connections()
        damage(Path(segment_path(monitor)))
        clock.advance(STEP)
        monitor.record_request(10.0)
        for start in begun:
            monitor.recorder.end(start, 200, "/", "GET")
        monitor.decrement_websocket_connections()
        clock.advance(STEP)
        monitor.record_request(10.0)
        for seen_by in (reader, monitor):
            assert seen_by.get_current_snapshot().requests_in_flight == 0
            assert seen_by.get_websocket_connections() == 0
        begun = [monitor.recorder.begin() for _ in range(3)]
        monitor.increment_websocket_connections()
        if reader.get_health()["workers"] == 2:
            assert reader.get_current_snapshot().requests_in_flight == 3
            assert reader.get_websocket_connections() == 1


def test_gauges_are_not_taken_from_a_header_that_others_have_written(clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 1)
        monitor.recorder.begin()
        path = Path(segment_path(monitor))
        overwrite(0, HEADER_BYTES, lambda size: struct.pack("d", 1e6) * (size // 8))(path)
        clock.advance(STEP)
        monitor.record_request(10.0)
        assert monitor.get_current_snapshot().requests_in_flight == 0
        assert monitor.get_websocket_connections() == 0


@pytest.mark.parametrize("length", [4096, -4096])
def test_gauges_go_on_in_the_next_segment(length: int, clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        begun = [monitor.recorder.begin() for _ in range(2)]
        monitor.increment_websocket_connections()
        truncate(length)(Path(segment_path(monitor)))
        clock.advance(STEP)
        monitor.record_request(10.0)
        assert monitor.get_current_snapshot().requests_in_flight == 2
        assert monitor.get_websocket_connections() == 1
        for start in begun:
            monitor.recorder.end(start, 200, "/", "GET")
        assert monitor.get_current_snapshot().requests_in_flight == 0


@pytest.mark.parametrize(
    "damage",
    [OVERWRITTEN[name] for name in ("zeroed", "random bytes", "older version", "no process")],
)
def test_a_worker_gives_up_a_segment_that_nobody_reads(
    scene: Scene, damage: Callable[[Path], None]
) -> None:
    scene.damage("live", damage)
    scene.clock.advance(STEP)
    scene.live.do(record, "live", 4)
    assert scene.reader.do(numbers)[0] == 3 + 14 + 4
    assert scene.reader.do(MetricsMonitor.get_health)["workers"] == 2


def test_no_record_fails_while_a_lost_segment_is_replaced(clock: ManualClock) -> None:
    """Threads are past their look at the clock when another one finds the segment gone."""
    interval = sys.getswitchinterval()
    failed: list[BaseException] = []
    over = threading.Event()
    with MetricsMonitor(shared=True, clock=clock) as monitor:

        def work(number: int) -> None:
            try:
                while not over.is_set():
                    monitor.record_request(10.0)
                    record(monitor, f"{number}", 1)
                    monitor.recorder.end(monitor.recorder.begin(), 200, "/", "GET")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        monitor.recorder.open()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for _ in range(100):
                before = segment_path(monitor)
                Path(before).unlink()
                clock.advance(STEP)
                monitor.recorder.open()
        finally:
            over.set()
            sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
        assert failed == []
        clock.advance(STEP)
        monitor.record_request(10.0)
        assert monitor.get_current_snapshot().requests_in_flight == 0
        assert monitor.get_health()["faults"] == 0


def test_what_was_damaged_at_a_reset_does_not_come_back(scene: Scene) -> None:
    # Damage to the state at the window's start passes as the window moves on.
    label = int(scene.clock.monotonic() // STEP) - 1
    checkpoint = HEADER_BYTES + SERVER_SHAPE.checkpoint(label % SERVER_SHAPE.slots)
    scene.damage("dead", overwrite(checkpoint, SERVER_SHAPE.stride, noise))
    assert scene.reader.do(numbers) == expected(reader=3, live=10)
    scene.reader.do(MetricsMonitor.reset_statistics)
    scene.clock.advance(400)
    for worker in (scene.reader, scene.live):
        assert worker.do(numbers) == expected()
        assert left_out(worker) == 0


@pytest.mark.parametrize("name", [b"d\xffad", b"evil", b"\x00\x00\x00\x00"])
def test_users_whose_names_are_damaged(scene: Scene, name: bytes) -> None:
    # They count by their keys; a name that is not the key's is told to nobody.
    path = scene.files["dead"]
    data = path.read_bytes()
    assert data.count(b"\x04\x00dead") == 1  # length and text of the user's row
    path.write_bytes(data.replace(b"\x04\x00dead", b"\x04\x00" + name))
    _, _, users = scene.reader.do(numbers)
    assert users == ["live", "reader"]
    assert scene.reader.do(MetricsMonitor.get_active_users) == 3
    # Whoever takes over can tell.
    heir = scene.workers.start()
    heir.do(record, "heir", 1)
    assert heir.do(numbers)[2] == ["heir", "live", "reader"]
    heir.do(record, "dead", 1)
    for worker in (scene.reader, heir):
        assert worker.do(numbers)[2] == ["dead", "heir", "live", "reader"]
        assert worker.do(MetricsMonitor.get_active_users) == 4


def cut_and_restore(path: Path, times: int) -> None:
    whole = path.read_bytes()
    for number in range(times):
        os.truncate(path, number * 4096 % len(whole))
        with path.open("r+b") as file:
            file.write(whole)


def test_readers_survive_a_segment_that_comes_and_goes(scene: Scene) -> None:
    reads = scene.reader.begin(read_until_told)
    cut_and_restore(scene.files["dead"], 1000)
    GO[0] = 0.0
    seen = reads()
    assert {27} <= seen <= {13, 27}


GO = shared_numbers(1)


def read_until_told(monitor: MetricsMonitor) -> set[int]:
    """In a worker: the totals that it has seen."""
    GO[0] = 1.0
    seen: set[int] = set()
    while GO[0]:
        numbers(monitor)
        seen.add(monitor.total_requests)
    return seen | {monitor.total_requests}


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_to_any_part(seed: int) -> None:
    """All answers are answers, and a worker that joins can record.

    Damage that cannot be told from counts may be counted.
    """
    chance = random.Random(seed)
    clock = ManualClock()
    with MetricsMonitor(shared=True, clock=clock) as reader:
        record(reader, "reader", 3)
        dying = MetricsMonitor(shared=True, clock=clock)
        for name in ("dead", "dead too"):
            record(dying, name, 4)
            clock.advance(STEP)
        path = Path(segment_path(dying))
        dying.close()
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(chance.choice([1, 1, 2, 5])):
                start = chance.choice([0, HEADER_BYTES, FIXED_BYTES, chance.randrange(len(data))])
                start = min(start + chance.randrange(2048), len(data))
                size = chance.choice([1, 8, 8, 64, 4096, len(data)])
                data[start : start + size] = chance.choice([zeros, noise, ones])(size)
            path.write_bytes(data[: len(whole)])
            total, routes, users = numbers(reader)
            assert total >= 3
            assert routes["/reader"] == 3
            assert "reader" in users
            with MetricsMonitor(shared=True, clock=clock) as new:
                before = numbers(new)[0]
                record(new, "new", 2)
                total, routes, users = numbers(new)
                assert (total - before, routes["/new"]) == (2, 2)
                assert {"new", "reader"} <= set(users)
                own = Path(segment_path(new))
            if own != path:
                own.unlink()


def ones(size: int) -> bytes:
    return b"\xff" * size


# --- no room, no permission, no place ------------------------------------------------------------


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
    base.chmod(0o777)
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
    base.chmod(0o777)
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
        assert first.do(numbers) == expected(first=2)
        first.do(record, "first", 1)
        assert first.do(numbers) == expected(first=3)
        assert second.do(numbers) == expected(second=3)
        assert left_out(first) == 1
        directory.with_name("elsewhere").rename(directory)
        for worker in (first, second):
            assert worker.do(numbers) == expected(first=3, second=3)
            assert left_out(worker) == 0


def test_without_dev_shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_dev_shm(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("METRICSMW_DIR")
    with crew(2) as workers:
        workers.all(record, "any", 3)
        assert workers.all(numbers) == [expected(any=6)] * 2
        for path in workers.all(segment_path):
            assert Path(path).is_relative_to(tmp_path)


def test_without_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    hide_dev_shm(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    monkeypatch.delenv("METRICSMW_DIR")
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        use_everything(monitor, clock)
        assert monitor.get_health()["mode"] == "private"


def hide_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) != "/dev/shm" and real(path))


# --- what the workers share ----------------------------------------------------------------------

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

        def sources(complete: bool = False) -> Mapping[str, Source]:
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
