"""Room that is shared with others: small disks, few descriptors, what is left behind."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from kits.servers import wait_until
from kits.surroundings import Stage, container, server_directories
from kits.workers import file_system

MB = 1 << 20


@pytest.fixture
def stage(tmp_path: Path):
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def small(tmp_path: Path):
    """A file system of 64 MB, as Docker's /dev/shm."""
    folder = tmp_path / "small"
    folder.mkdir()
    with file_system(folder, "size=64m,mode=1777"):
        yield folder


def free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def test_a_quarter_is_left_to_others_and_sums_stay_right(stage: Stage, small: Path) -> None:
    master = stage.start(within=container(shm=small))
    workers = [master.fork() for _ in range(5)]
    for worker in workers:
        worker.do("route", 200)
    # Each worker has room for its 200 routes.
    assert len(workers[0].do("routes")) == 200
    assert free(small) >= 32 * MB
    for worker in workers:
        worker.do("route", 200, "POST")
    shown = workers[0].do("read")
    assert shown["total_requests"] == 5 * 400
    assert sum(row["requests"] for row in workers[0].do("routes")) == 5 * 400
    assert free(small) >= 16 * MB
    assert workers[0].do("health")["faults"] == 0


def test_no_room_at_first_and_some_later(stage: Stage, tmp_path: Path) -> None:
    """A private worker tries again, and its counts move with it."""
    folder = tmp_path / "full"
    folder.mkdir()
    with file_system(folder, "size=4m,mode=1777"):
        filler = folder / "filler"
        filler.write_bytes(bytes(3 * MB + MB // 2))
        master = stage.start(
            within=container(shm=folder), settings={"window_seconds": 10}, TMPDIR="/dev/shm"
        )
        workers = [master.fork() for _ in range(2)]
        for worker in workers:
            worker.do("record", 3)
            worker.do("route", 2)
            worker.do("record", 1, "ann")
        health = workers[0].do("health")
        assert (health["status"], health["mode"]) == ("degraded", "private")
        filler.unlink()

        def shared() -> bool:
            for worker in workers:
                worker.do("record", 1)
            return all(worker.do("health")["mode"] == "shared" for worker in workers)

        counted = workers[0].requests + workers[1].requests
        tries = 0
        while not shared():
            tries += 1
            counted += 2
        counted += 2
        assert [worker.requests for worker in workers] == [counted, counted]
        (row, *_) = [row for row in workers[0].do("routes") if row["route"] == "/route/1"]
        assert row["requests"] == 2
        assert workers[1].do("read")["active_users"] == 1
        assert workers[0].do("health")["status"] == "healthy"


def test_no_room_at_first_and_a_second_place(stage: Stage, tmp_path: Path) -> None:
    """The temporary folder is used then, by those, too, that come when there is room."""
    folder = tmp_path / "full"
    folder.mkdir()
    with file_system(folder, "size=4m,mode=1777"):
        filler = folder / "filler"
        filler.write_bytes(bytes(3 * MB + MB // 2))
        master = stage.start(within=container(shm=folder), TMPDIR=str(tmp_path))
        first = master.fork()
        first.do("record", 3)
        filler.unlink()
        second = master.fork()
        second.do("record", 2)
        for worker in (first, second):
            assert worker.requests == 5
            health = worker.do("health")
            assert (health["status"], health["mode"]) == ("healthy", "shared")
            assert "second place" in health["mode_reason"]


def test_nothing_is_left_by_programs_that_end(stage: Stage, small: Path) -> None:
    within = container(pid=False, shm=small)
    programs = [stage.start(within=within) for _ in range(3)]
    for program in programs:
        program.do("record", 2)
    assert len(server_directories(small)) == 3
    programs[0].do("close")
    programs[1].do("run", "from metricsmw import *; held.append(MetricsMonitor(shared=True))")
    programs[1].do("run", "held[0].record_request(1.0)")
    for program in programs:
        program.leave()
    assert server_directories(small) == []


def test_a_worker_that_ends_leaves_its_servers_numbers(stage: Stage, small: Path) -> None:
    master = stage.start(within=container(pid=False, shm=small))
    worker = master.fork()
    worker.do("record", 2)
    worker.leave()
    late = master.fork()
    late.do("record", 1)
    assert late.requests == 3


def test_pytest_with_several_processes_leaves_nothing(tmp_path: Path, small: Path) -> None:
    tests = tmp_path / "test_app.py"
    tests.write_text(
        "import pytest\nfrom metricsmw import get_metrics_monitor\n"
        "@pytest.mark.parametrize('n', range(8))\n"
        "def test_it(n):\n    get_metrics_monitor().record_request(1.0, route=f'/{n}')\n"
    )
    words = ["-m", "pytest", "-q", "-n", "4", "-p", "no:cacheprovider", str(tests)]
    env = {name: value for name, value in os.environ.items() if "METRICSMW" not in name}
    env.pop("PYTEST_ADDOPTS", None)
    import sys

    within = container(pid=False, shm=small)
    subprocess.run([*within, sys.executable, *words], check=True, cwd=tmp_path, env=env)
    assert server_directories(small) == []


def test_a_read_keeps_few_descriptors(stage: Stage, tmp_path: Path) -> None:
    master = stage.start("--preload", METRICSMW_DIR=str(tmp_path / "d"))
    reader = master.fork()
    reader.do("limit_files", 120)
    reader.do("record")
    before = reader.do("open_files")
    workers = [master.fork() for _ in range(24)]
    for worker in workers:
        worker.begin("record", 1)
    for worker in workers:
        worker.answer()
    assert reader.do("read")["total_requests"] == 25
    assert reader.do("open_files") <= before + 12  # a sixteenth of what it may have
    reader.do("limit_files", 5)
    assert reader.do("read")["total_requests"] == 25


def test_no_descriptors_at_the_first_record(stage: Stage, tmp_path: Path) -> None:
    server = stage.start(METRICSMW_DIR=str(tmp_path / "d"), settings={"window_seconds": 10})
    server.do("limit_files", 0)
    server.do("record", 3)
    server.do("allow_files")

    def shared() -> bool:
        return server.do("health")["mode"] == "shared"

    wait_until(shared, "a place in the directory")
    assert server.requests == 3
    assert server.do("health")["status"] == "healthy"


def test_a_file_system_that_copies_on_write(stage: Stage, tmp_path: Path) -> None:
    image, folder = tmp_path / "image", tmp_path / "btrfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MB)
    with ExitStack() as stack:
        if os.geteuid() or subprocess.run(["mkfs.btrfs", "-q", image]).returncode:
            pytest.skip("no btrfs can be made here")
        if subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True).returncode:
            pytest.skip("no btrfs can be mounted here")
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        server = stage.start(METRICSMW_DIR=str(folder))
        server.do("record", 3)
        (segment,) = folder.glob("*/worker-*")
        flags = subprocess.run(["lsattr", segment], check=True, capture_output=True, text=True)
        assert "C" in flags.stdout.split()[0]
        server.kill()
