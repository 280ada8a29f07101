"""Damage to segments: no record or read fails.

The numbers of the other segments are right, and /health says what is left out.
"""

from __future__ import annotations

import math
import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kits.crew import Crew, SharedClock, Worker, crew, shared_numbers
from kits.damage import (
    NOBODY,
    ROOT,
    STEP,
    expected,
    left_out,
    noise,
    numbers,
    ones,
    overwrite,
    record,
    replace,
    segment_path,
    set_field,
    truncate,
    write_text,
    zeros,
)

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.layout import (
    DIRECTORY_OFFSET,
    FIXED_BYTES,
    HEADER_BYTES,
    LAYOUT,
    SERVER_SHAPE,
    Field,
)


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
    "impossible maxima": overwrite(
        HEADER_BYTES + SERVER_SHAPE.peaks,
        SERVER_SHAPE.slots * 8,
        lambda size: struct.pack("d", 1e9) * (size // 8),
    ),
    "a chunk elsewhere": overwrite(DIRECTORY_OFFSET + 8, 8, lambda size: struct.pack("d", 4096.0)),
    "random from the counts on": overwrite(HEADER_BYTES, None, noise),
    "older version": set_field(Field.LAYOUT, 0.0),
    "newer version": set_field(Field.LAYOUT, LAYOUT + 1),
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


def test_another_name_of_a_segment(scene: Scene) -> None:
    """A hard link, of the reader's own, of another worker's, and of a dead one's, adds nothing."""
    for path in list(scene.files["live"].parent.glob("worker-*")):
        os.link(path, path.with_name(f"{path.name}0"))
    assert scene.reader.do(numbers) == expected(reader=3, live=10, dead=14)
    assert left_out(scene.reader) == 0


def test_checkpoints_of_a_dead_worker(scene: Scene) -> None:
    """They never change: who has read the one that it needs does not read it again."""
    states = SERVER_SHAPE.slots * SERVER_SHAPE.stride
    scene.damage("dead", overwrite(HEADER_BYTES + SERVER_SHAPE.checkpoint(0), states, zeros))
    assert scene.reader.do(numbers) == expected(reader=3, live=10, dead=14)
    assert scene.live.do(numbers) == expected(reader=3, live=10)
    assert left_out(scene.live) == 1


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
        assert monitor.get_current_snapshot().requests_in_flight == 1  # as the worker itself knows
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
    assert scene.live.do(numbers) == expected(reader=3, live=10)
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
