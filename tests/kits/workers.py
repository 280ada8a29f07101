"""Workers seen from outside: a server's directory, the segments in it, and whose they are."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from kits.routes_kit import TOKEN, Api
from kits.servers import Server, wait_until
from metricsmw.engine.workers.directories import base_directory

ENV = {"METRICSMW_TOKEN": TOKEN}
BROKEN = (OSError, http.client.HTTPException)
SCRIPTS = Path(__file__).resolve().parent.parent / "engine" / "workers" / "apps"


def directory_of(server: Server) -> Path:
    """The one directory that is named after the process that was started."""
    (found,) = base_directory().glob(f"{server.pid}-*")
    return found


def segment_files(directory: Path) -> list[Path]:
    """The segments of a directory, those of the dead included."""
    return sorted(directory.glob("worker-*"))


def live_pids(directory: Path, names: Collection[str] | None = None) -> list[int]:
    """The workers that hold a segment in the directory, or one of these names, sorted."""
    pids = []
    for path in segment_files(directory):
        if names is not None and path.name not in names:
            continue
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


def kill(pid: int) -> None:
    """End a process for good; returns when it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), f"the end of {pid}")


def held(pid: int, ports: Collection[int]) -> int:
    """How many of the connections from these local ports that worker has open."""
    found = psutil.Process(pid).net_connections("tcp4") if ports else ()
    return sum(bool(entry.raddr) and entry.raddr.port in ports for entry in found)


def ask(server: Server, requests: int) -> None:
    """So many requests, each over a fresh connection."""
    for _ in range(requests):
        assert server.get("/hello").status == 200


Shown = tuple[int, int, int]  # total_requests, workers, requests_in_flight


def read(server: Server) -> Shown:
    """What one read over a fresh connection shows."""
    now = Api(server).current()
    return now["total_requests"], now["workers"], now["requests_in_flight"]


def read_often(server: Server, times: int = 50) -> set[Shown]:
    """What reads over fresh connections show."""
    # Several at once, so that no worker answers them all.
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda _: read(server), range(times)))


def read_from_each(server: Server, times: int) -> set[Shown]:
    """What reads show, so many at once for each worker, which answers as all others are stopped."""
    workers = [psutil.Process(pid) for pid in server.worker_pids()]
    shown: set[Shown] = set()
    with ThreadPoolExecutor(10 * times) as pool:
        for worker in workers:
            others = [other for other in workers if other != worker]
            reads: list[Future[Shown]] = []
            try:
                for other in others:
                    other.suspend()
                for other in others:
                    wait_until(lambda: other.status() == psutil.STATUS_STOPPED, "a stop")  # noqa: B023
                # Where each worker has a queue of its own (granian), all may be in the others'.
                while not wait(reads, 0.5, FIRST_COMPLETED).done:
                    reads += [pool.submit(read, server) for _ in range(times)]
            finally:
                for other in others:
                    other.resume()
            shown.update(done.result() for done in reads)
    return shown


def current(server: Server) -> dict[str, Any]:
    """The numbers as the first worker that answers shows them."""

    def answer() -> dict[str, Any] | None:
        with suppress(*BROKEN):
            return Api(server).current()
        return None

    found = wait_until(answer, "an answer")
    assert found is not None
    return found


class Load:
    """Clients that ask again and again, and one that reads; all over fresh connections.

    Every third request is an error.
    """

    def __init__(self, server: Server) -> None:
        self.completed = 0
        self.errors = 0  # of these
        self.broken = 0
        self.readings: list[dict[str, Any]] = []
        self.routes: list[dict[str, int]] = []  # requests by route, read beside
        self._server = server
        self._lock = threading.Lock()
        self._over = threading.Event()

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        with ThreadPoolExecutor(clients + 1) as pool:
            tasks = [pool.submit(self._ask) for _ in range(clients)]
            tasks.append(pool.submit(self._read))
            try:
                yield
            finally:
                self._over.set()
            for task in tasks:
                task.result()

    def read_on(self, times: int) -> None:
        """Wait for so many more readings."""
        before = len(self.readings)
        wait_until(lambda: len(self.readings) >= before + times, "reads")

    def assert_nothing_went_back(self) -> None:
        """No total, and no route's count, was less in a later reading."""
        for name in ("total_requests", "total_errors"):
            told = [reading[name] for reading in self.readings]
            assert told == sorted(told)
        for earlier, later in pairwise(self.routes):
            assert all(later.get(route, 0) >= count for route, count in earlier.items())

    def _ask(self) -> None:
        for path, status in cycle((("/hello", 200), ("/items/1", 200), ("/fail", 500))):
            if self._over.wait(0.005):  # the servers need the machine, too
                return
            try:
                done = self._server.get(path).status == status
            except BROKEN:
                done = False
            with self._lock:
                self.completed += done
                self.errors += done and status == 500
                self.broken += not done

    def _read(self) -> None:
        while not self._over.wait(0.02):
            self.readings.append(current(self._server))
            with suppress(*BROKEN):
                rows = Api(self._server).routes()
                self.routes.append({row["route"]: row["requests"] for row in rows})


@contextmanager
def file_system(place: Path, options: str) -> Iterator[None]:
    """A file system of its own at that folder; the test is skipped where none can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def run_script(name: str, arguments: Sequence[str] = (), **environment: str) -> Any:
    """Run a script of tests/engine/workers/apps as a program of its own; the JSON it prints."""
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
