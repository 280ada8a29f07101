"""Workers come and go: a new one takes over from a dead one, and nothing piles up."""

from __future__ import annotations

import os
from pathlib import Path

from kits.routes_kit import Api
from kits.servers import Server, serve
from kits.workers import ENV, directory_of, run_script

GENERATIONS = 200
# Those take longer, one after the other.
GENERATIONS_OF_GUNICORN = GENERATIONS if os.environ.get("CI") else 50


def size_of(directory: Path) -> tuple[int, int]:
    """How many files a directory has, and how many bytes they occupy."""
    sizes = [path.stat().st_blocks * 512 for path in directory.iterdir()]
    return len(sizes), sum(sizes)


def live_and_die(server: Server, generations: int) -> set[int]:
    """Requests each of which ends its worker; the workers."""
    return {server.get("/slow?ms=0").json()["pid"] for _ in range(generations)}


def test_workers_that_end_after_each_request() -> None:
    args = ["--preload", "--max-requests", "1"]
    with serve("gunicorn", "apps.raw_wsgi:app", args=args, env=ENV) as server:
        directory = directory_of(server)
        first = live_and_die(server, 5)
        files, size = size_of(directory)
        workers = first | live_and_die(server, GENERATIONS_OF_GUNICORN - 5)
        assert len(workers) == GENERATIONS_OF_GUNICORN
        later_files, later_size = size_of(directory)
        assert later_files <= 1.2 * files
        assert later_size <= 1.2 * size
        assert Api(server).settled(GENERATIONS_OF_GUNICORN)["workers"] == 1
        (row,) = Api(server).routes()
        assert row["requests"] == GENERATIONS_OF_GUNICORN


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
