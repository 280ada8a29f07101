"""Workers come and go: a new one takes over from a dead one, and nothing piles up."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kits.servers import Server, serve, wait_until
from kits.workers import ENV, run_script, segment_files

from metricsmw import MetricsMonitor

WORKERS = 4
GENERATIONS = 200
GENERATIONS_OF_GUNICORN = 50  # those take longer, one after the other


def size_of(directory: Path) -> tuple[int, int]:
    """How many files a directory has, and how many bytes they occupy."""
    sizes = [path.stat().st_blocks * 512 for path in directory.iterdir()]
    return len(sizes), sum(sizes)


def cost_of(monitor: MetricsMonitor) -> tuple[int, int]:
    """How many reads of files an answer takes, and how many bytes: a cost that is free of noise."""
    sizes: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        sizes.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        monitor.get_statistics()
        monitor.get_routes()
    return len(sizes), sum(sizes)


def live_and_die(server: Server, generations: int) -> set[int]:
    """Requests each of which ends its worker; the workers."""
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = pool.map(lambda _: server.get("/slow?ms=0"), range(generations))
        return {answer.json()["pid"] for answer in answers}


def test_workers_that_end_after_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a directory by hand this process reads as one more worker.
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    env = {**ENV, "METRICSMW_DIR": str(tmp_path)}
    args = ["--preload", "--max-requests", "1"]
    with (
        serve("gunicorn", "apps.raw_wsgi:app", workers=WORKERS, args=args, env=env) as server,
        MetricsMonitor(shared=True) as reader,
    ):
        assert reader.directory is not None
        reader.record_request(1.0, method="GET")
        announced(server, reader)
        workers = live_and_die(server, WORKERS)
        # Until each segment has the route, as this process's has.
        while len({path.stat().st_size for path in segment_files(reader.directory)}) > 1:
            workers |= live_and_die(server, WORKERS)
        announced(server, reader)
        cost, (files, size) = cost_of(reader), size_of(reader.directory)
        workers |= live_and_die(server, GENERATIONS_OF_GUNICORN - len(workers))
        assert len(workers) == GENERATIONS_OF_GUNICORN
        announced(server, reader)
        assert reader.total_requests == GENERATIONS_OF_GUNICORN + 1
        assert [row["requests"] for row in reader.get_routes()] == [GENERATIONS_OF_GUNICORN + 1]
        for before, after in (
            ((files, size), size_of(reader.directory)),
            (cost, cost_of(reader)),
        ):
            assert after[0] <= 1.2 * before[0]
            assert after[1] <= 1.2 * before[1]


def announced(server: Server, reader: MetricsMonitor) -> None:
    """Wait until all workers have a segment, and no request is left that would end one."""
    wait_until(
        lambda: (
            reader.get_current_snapshot().workers == WORKERS + 1 == len(server.worker_pids()) + 1
        ),
        "all workers",
    )


def test_workers_that_are_killed_in_pairs() -> None:
    """Each worker has a route and a user of its own, among few, and is killed."""
    found = run_script("generations.py", [str(GENERATIONS)])
    assert found["requests"] == GENERATIONS
    assert found["routes"] == found["users"] == 7
    assert found["workers"] == 1
    (files, size), (later_files, later_size) = found["begin"], found["end"]
    assert later_files <= 1.2 * files
    assert later_size <= 1.2 * size
    # A read's cost, free of noise.
    (reads, size), (later_reads, later_size) = found["begin_cost"], found["end_cost"]
    assert later_reads <= 1.2 * reads
    assert later_size <= 1.2 * size
