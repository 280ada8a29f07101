"""Workers seen from outside: a server's directory, the segments in it, and whose they are."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from kits.routes_kit import TOKEN, Api
from kits.servers import Server, wait_until
from metricsmw.group import base_directory

ENV = {"METRICSMW_TOKEN": TOKEN}
SCRIPTS = Path(__file__).resolve().parent.parent / "workers" / "apps"


def directory_of(server: Server) -> Path:
    """The one directory that is named after the process that was started."""
    (found,) = base_directory().glob(f"{server.pid}-*")
    return found


def segment_files(directory: Path) -> list[Path]:
    """The segments of a directory, those of the dead included."""
    return sorted(directory.glob("worker-*"))


def live_pids(directory: Path) -> list[int]:
    """The workers that hold a segment in the directory, sorted."""
    pids = []
    for path in segment_files(directory):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pids.append(int(struct.unpack_from("d", file.read(24), 16)[0]))
    return sorted(pids)


def announced(server: Server, directory: Path | None = None) -> None:
    """Wait until each worker has its segment, without asking any of them."""

    def all_there() -> bool:
        with suppress(ValueError):  # no directory yet
            return live_pids(directory or directory_of(server)) == server.worker_pids()
        return False

    wait_until(all_there, f"a segment of each worker of {server.name}")


def is_gone(pid: int) -> bool:
    """Whether a process has ended with all its threads, buried or not."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def held(pid: int, ports: Collection[int]) -> int:
    """How many of the connections from these local ports that worker has open."""
    found = psutil.Process(pid).net_connections("tcp4")
    return sum(bool(entry.raddr) and entry.raddr.port in ports for entry in found)


def ask(server: Server, requests: int) -> None:
    """So many requests, each over a fresh connection."""
    for _ in range(requests):
        assert server.get("/hello").status == 200


def read_often(server: Server, times: int = 50) -> set[tuple[int, int, int]]:
    """What reads over fresh connections show: (total_requests, workers, requests_in_flight)."""
    api = Api(server)

    def read(_: int) -> tuple[int, int, int]:
        now = api.current()
        return now["total_requests"], now["workers"], now["requests_in_flight"]

    # Several at once, so that no worker answers them all.
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(read, range(times)))


def run_script(name: str, arguments: Sequence[str] = (), **environment: str) -> Any:
    """Run a script of `tests/workers/apps` as a program of its own; the JSON that it prints."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("METRICSMW_")}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
