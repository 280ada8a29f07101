"""Damage to a running server's segments, under load.

No request fails, no worker ends, and `/health` says what is left out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from kits.routes_kit import BEARER, Api
from kits.servers import serve, wait_until
from kits.workers import (
    ENV,
    Load,
    announced,
    ask,
    current,
    directory_of,
    file_system,
    kill,
    live_pids,
    read_often,
    segment_files,
)

from metricsmw.engine.storage.layout import FIXED_BYTES, HEADER_BYTES

noise = random.Random(3).randbytes


def write_at(offset: int, data: bytes) -> Callable[[Path], None]:
    """Overwrite a part of a segment."""

    def do(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return do


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


# All that may happen to a segment in use without its worker's stores falling into nothing.
DAMAGE = {
    "zeroed": write_at(0, bytes(FIXED_BYTES)),
    "random bytes": write_at(0, noise(FIXED_BYTES)),
    "random counts": write_at(HEADER_BYTES, noise(FIXED_BYTES - HEADER_BYTES)),
    "another version": write_at(8, bytes(8)),
    "a symbolic link": link,
    "a directory": directory,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_no_request_fails(damage: Callable[[Path], None]) -> None:
    args = ["--worker-class", "gthread", "--threads", "2"]
    with serve("gunicorn", "apps.raw_wsgi:app", workers=4, args=args, env=ENV) as server:
        announced(server)
        pids = server.worker_pids()
        files = segment_files(directory_of(server))
        load = Load(server)
        with load.running(3):
            load.read_on(5)
            damage(files[0])
            load.read_on(5)
            damage(files[1])
            load.read_on(5)
            health = server.get("/api/metrics/health", BEARER)
            assert health.status == 503
            assert health.json()["status"] == "degraded"
            assert "left out" in health.json()["components"]["request_tracking"]
        assert load.broken == 0
        assert server.worker_pids() == pids
        now = current(server)
        assert 0 < now["total_requests"] <= load.completed
        assert 2 <= now["workers"] <= 4


@pytest.mark.parametrize("options", ["", "size=64k", "ro"], ids=["a file", "full", "read-only"])
def test_a_place_where_no_segment_can_be(options: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with ExitStack() as mounted:
        if options:
            place.mkdir()
            mounted.enter_context(file_system(place, options))
        else:
            place.touch()
        env = {**ENV, "METRICSMW_DIR": str(place)}
        with serve("gunicorn", "apps.raw_wsgi:app", workers=2, env=env) as server:
            requests = server.reach_all_workers()
            ask(server, 10)
            shown = read_often(server, 6)
            assert {workers for _, workers, _ in shown} == {1}
            assert all(0 < total <= requests + 10 for total, *_ in shown)
            health = server.get("/api/metrics/health", BEARER).json()
            assert (health["status"], health["mode"]) == ("degraded", "private")
            assert health["mode_reason"]
            assert str(tmp_path) not in health["mode_reason"]


FOREIGN: Sequence[Callable[[Path], object]] = (
    Path.touch,
    Path.mkdir,
    os.mkfifo,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.write_bytes(noise(1_000_000)),
)


def test_files_that_are_no_segments() -> None:
    with serve("gunicorn", "apps.raw_wsgi:app", workers=4, env=ENV) as server:
        announced(server)
        place = directory_of(server)
        load = Load(server)
        with load.running(3):
            for number, make in enumerate(FOREIGN):
                make(place / f"worker-{number + 10}")
                load.read_on(3)
            # A new worker takes over a segment, and none of these.
            kill(server.worker_pids()[0])
            wait_until(lambda: len(server.worker_pids()) == 4, "a new worker")
            wait_until(lambda: live_pids_of_segments(place) == server.worker_pids(), "its segment")
        assert load.broken <= 3
        api = Api(server)
        api.until(lambda: api.current()["requests_in_flight"] == 0, "the end of requests")
        now = api.current()
        assert load.completed <= now["total_requests"] <= load.completed + load.broken
        assert now["workers"] == 4
        load.assert_nothing_went_back()
        health = server.get("/api/metrics/health", BEARER).json()
        assert f"{len(FOREIGN)} damaged" in health["components"]["request_tracking"]


def live_pids_of_segments(place: Path) -> list[int]:
    """The workers of the server's own four segments."""
    return live_pids(place, [f"worker-{number}" for number in range(4)])
