"""Real servers for tests: started on a free loopback port, asked until they answer, surely stopped.

    with serve("gunicorn", "apps.flask_app:app", workers=4, args=["--preload"]) as server:
        assert server.get("/hello").status == 200
        os.kill(server.worker_pids()[0], signal.SIGKILL)

Rules
- A server is started the way its users start it: its own command, its own command line (`args` is
  appended as it stands), in a process of its own.
- It runs in a session of its own, and leaving the `with` block, however that happens, ends every
  process of that session: politely first, then with SIGKILL.
- Readiness is asked, not waited for: some connection has answered over HTTP, and as many workers
  live as were ordered. The question goes to a route whose requests are in no number.
- What the server prints goes to a file, which is shown where a test fails.
- The apps are imported as `apps.<module>` from the folder `tests/servers`. The repository's root is
  kept off the import path: its `metricsmw` folder would hide the installed package.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import pytest

APPS_ROOT = Path(__file__).resolve().parent.parent / "servers"
READY_PATH = "/api/metrics/health"
START_ATTEMPTS = 5
START_SECONDS = 40.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02

T = TypeVar("T")

LIVE: list[Server] = []
"""Servers running now; the output of each is attached to the report of a test that fails."""


class ServerError(AssertionError):
    """A server did not start, or ended by itself; the message holds what it printed."""


class PortTakenError(ServerError):
    """Somebody else took the port between its choice and the server's bind."""


# -- command lines: how a user starts `app` with `workers` workers on `port` -----------------------


def _gunicorn(app: str, port: int, workers: int) -> list[str]:
    return ["gunicorn", app, "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]


def _uvicorn(app: str, port: int, workers: int) -> list[str]:
    return ["uvicorn", app, "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]


def _hypercorn(app: str, port: int, workers: int) -> list[str]:
    return ["hypercorn", app, "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]


def _granian(app: str, port: int, workers: int) -> list[str]:
    return ["granian", app, "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]


def _waitress(app: str, port: int, workers: int) -> list[str]:
    if workers != 1:
        raise ValueError(f"waitress is one process, asked for workers={workers}")
    return ["waitress-serve", f"--listen=127.0.0.1:{port}", app]


def _uwsgi(app: str, port: int, workers: int) -> list[str]:
    return [
        "uwsgi", "--http-socket", f"127.0.0.1:{port}", "--module", app, "--processes", str(workers),
        "--master", "--need-app", "--die-on-term", "--home", sys.prefix,
        "--pythonpath", str(APPS_ROOT),
    ]  # fmt: skip


def _wsgiref(app: str, port: int, workers: int) -> list[str]:
    if workers != 1:
        raise ValueError(f"wsgiref is one process, asked for workers={workers}")
    module, _, name = app.partition(":")
    code = (
        f"from wsgiref.simple_server import make_server; from {module} import {name} as app;"
        f" make_server('127.0.0.1', {port}, app).serve_forever()"
    )
    return ["python", "-c", code]


COMMANDS: dict[str, Callable[[str, int, int], list[str]]] = {
    "gunicorn": _gunicorn,
    "uvicorn": _uvicorn,
    "hypercorn": _hypercorn,
    "granian": _granian,
    "waitress": _waitress,
    "uwsgi": _uwsgi,
    "wsgiref": _wsgiref,
}


# -- what tests hold in their hands ----------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One HTTP response, read to its end. `headers` has lower-case names."""

    status: int
    headers: dict[str, str]
    cookies: list[str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON, which the response must also have declared it to be."""
        declared = self.headers.get("content-type", "")
        assert declared.split(";")[0] == "application/json", f"{self.status} {declared!r}"
        return json.loads(self.body)


class Server:
    """A running server. Each request goes over a fresh connection, so any worker may answer it."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.host = "127.0.0.1"
        self.port = port
        self.url = f"http://{self.host}:{port}"
        self.patience = 10.0  # seconds that tests wait for its numbers to settle
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The process that was started: the master where the server has one."""
        return self._process.pid

    def worker_pids(self) -> list[int]:
        """Processes that answer requests, sorted: the master's children, or else itself."""
        with suppress(psutil.NoSuchProcess):
            children = [c.pid for c in psutil.Process(self.pid).children() if _serves(c)]
            return sorted(children) or [self.pid]
        return []

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Ask over a fresh connection. Raises OSError or HTTPException where none answers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.headers.get_all("set-cookie") or [],
                response.read(),
            )
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers)

    def post(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("POST", path, headers, b"")

    def signal(self, signum: int) -> None:
        """Send a signal to the process that was started (a worker: `os.kill`)."""
        self._process.send_signal(signum)

    def reach_all_workers(self, path: str = "/slow?ms=50&block=1") -> int:
        """Ask `path` until every worker has answered; returns how many requests that took.

        The route answers {"pid": …} and keeps its worker busy meanwhile, so that the next
        connection goes to another one.
        """
        asked = 0
        answered: set[int] = set()
        with ThreadPoolExecutor(2 * len(self.worker_pids()) + 2) as pool:

            def all_answered() -> bool:
                nonlocal asked
                wanted = set(self.worker_pids())
                batch = list(pool.map(lambda _: self.get(path).json()["pid"], wanted))
                asked += len(batch)
                answered.update(batch)
                return answered >= wanted

            wait_until(all_answered, f"an answer from each worker of {self.name}")
        return asked

    def output(self) -> str:
        """What the server has printed so far, both streams."""
        return self._log.read_text(errors="replace")

    def ended(self) -> bool:
        """Whether the process that was started is gone."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End every process of the server's session; returns when none is left."""
        session = self.pid
        if not self.ended():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not alive_in_group(session), f"the end of {self.name}")


@contextmanager
def serve(
    name: str,
    app: str,
    *,
    workers: int = 1,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    ready: str = READY_PATH,
    within: Sequence[str] = (),
) -> Iterator[Server]:
    """Run `app` ("apps.module:name") under the server `name` for the time of the block.

    args: appended to the server's command line. env: added to the environment, which starts out as
    this process's without its METRICSMW_* settings, so that workers find each other as they would
    anywhere. ready: the path that is asked until anything answers. within: the words of a command
    that goes on to run the server's, in the same process.
    A server that is not installed skips the test, and fails it where CI=true.
    """
    folder = Path(tempfile.mkdtemp(prefix="served-"))
    try:
        server = _start(name, app, workers, args, env or {}, ready, folder, within)
        LIVE.append(server)
        try:
            yield server
        except BaseException:
            # By the time the test's report is written, this server is no longer in LIVE.
            print(f"\n--- output of {name} ---\n{server.output()}", file=sys.stderr)
            raise
        finally:
            LIVE.remove(server)
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(probe: Callable[[], T], what: str, seconds: float = START_SECONDS) -> T:
    """Ask `probe` until its answer is true, and return that; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(POLL_SECONDS)
    return answer


# -- starting --------------------------------------------------------------------------------------


def _start(
    name: str,
    app: str,
    workers: int,
    args: Sequence[str],
    extra: Mapping[str, str],
    ready: str,
    folder: Path,
    within: Sequence[str],
) -> Server:
    """A server that answers; another port is tried where somebody else was quicker."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("METRICSMW_")}
    # HOME: gunicorn keeps a control socket there, one for all servers of a user.
    env |= {"PYTHONPATH": str(APPS_ROOT), "PYTHONUNBUFFERED": "1", "HOME": str(folder), **extra}
    for attempt in range(START_ATTEMPTS):
        port = free_port()
        command, *line = COMMANDS[name](app, port, workers)
        log = folder / f"{attempt}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*within, _executable(command), *line, *args],
                cwd=APPS_ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(name, port, process, log)
        try:
            wait_until(lambda: _is_ready(server, workers, ready), f"{name} to answer")  # noqa: B023
            return server
        except BaseException as failure:
            server.stop()
            if not isinstance(failure, PortTakenError):
                print(f"\n--- output of {name} ---\n{server.output()}", file=sys.stderr)
                raise
    raise ServerError(f"{name} found no free port in {START_ATTEMPTS} attempts")


def _is_ready(server: Server, workers: int, path: str) -> bool:
    if server.ended():
        taken = "address already in use" in server.output().lower()
        kind = PortTakenError if taken else ServerError
        raise kind(f"{server.name} ended before it answered, with {server._process.returncode}")
    with suppress(OSError, http.client.HTTPException):
        server.request("GET", path, timeout=5.0)
        return len(server.worker_pids()) >= workers
    return False


def _executable(name: str) -> str:
    """The path of a server's command beside this interpreter."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    return found or missing(f"{name} is not installed")


def missing(reason: str) -> NoReturn:
    """Skip this test; where CI=true nothing may be missing, so fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A port that nobody listens on, below the range that outgoing connections are given."""
    while True:
        # Not `random`: property tests seed it.
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# -- processes -------------------------------------------------------------------------------------


def _serves(process: psutil.Process) -> bool:
    """Whether a master's child answers requests: multiprocessing's helper does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and not any(
            "multiprocessing.resource_tracker" in part for part in process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def alive_in_group(group: int) -> list[int]:
    """Processes of a process group that still run (zombies nobody has buried do not)."""
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
    return alive
