"""`metricsmw demo`: serve the demo app with several workers, send it traffic, show its numbers.

Everything shown is read from the server's own `/api/metrics/current`, as any client would read it.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

import httpx
import websockets

import metricsmw
from metricsmw.cli.output import complain, write
from metricsmw.cli.text import plain

USERS = ("ada", "brian", "chitra", "dmitri", "esra")
WEBSOCKETS = 3
MAX_IN_FLIGHT = 50
START_SECONDS = 60.0
STOP_SECONDS = 10.0
DRAIN_SECONDS = 2
LINE_EVERY_SECONDS = {"terminal": 1.0, "pipe": 3.0}

UNITS = {"rpm": "a minute", "pct": "%", "ms": "ms", "mb": "MB"}

# What the traffic asks for, and how often of a hundred requests.
MIX: tuple[tuple[int, Callable[[], str]], ...] = (
    (44, lambda: "/fast"),
    (30, lambda: f"/items/{random.randint(1, 105)}"),
    (6, lambda: "/me"),
    (8, lambda: "/slow"),
    (6, lambda: "/stream"),
    (3, lambda: "/fail"),
    (3, lambda: f"/no-such-page/{random.randint(1, 10_000)}"),
)


class CurrentFields(TypedDict):
    """The fields of `/api/metrics/current` that the summary line names."""

    request_rate_rpm: float
    error_rate_pct: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    active_users: int
    websocket_connections: int
    workers: int
    cpu_usage_pct: float
    memory_usage_mb: float


class DemoError(Exception):
    """The demo cannot go on; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class DemoServer:
    """The running demo server: its bearer token, its main process and what it wrote."""

    token: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def check(self) -> None:
        """Raise `DemoError` where the server has ended by itself."""
        code = self.process.poll()
        if code is not None:
            raise DemoError(f"the server ended with exit code {code}\n{self.last_words()}")

    def last_words(self) -> str:
        """Return the last lines of what the server wrote."""
        self.output.seek(0)
        return "\n".join(self.output.read().decode(errors="replace").splitlines()[-20:])


@contextmanager
def _server(host: str, port: int, workers: int) -> Iterator[DemoServer]:
    """Serve the demo app under uvicorn in child processes, until the end of the block.

    They run in a session of their own, so that a Ctrl-C in the terminal reaches only the demo,
    which then stops them in order; whatever is left of them after that is killed.
    """
    token = secrets.token_urlsafe(24)
    # Its numbers must not mix with those of another server that METRICSMW_DIR names.
    environment = {name: value for name, value in os.environ.items() if name != "METRICSMW_DIR"}
    environment["METRICSMW_TOKEN"] = token
    environment["METRICSMW_DEMO_SESSION_SECRET"] = secrets.token_hex()
    command = [
        *(sys.executable, "-m", "uvicorn", "metricsmw.cli.demo_app:app"),
        *("--app-dir", str(Path(metricsmw.__file__).parent.parent)),
        *("--host", host, "--port", str(port), "--workers", str(workers)),
        *("--log-level", "warning", "--no-access-log"),
        *("--timeout-graceful-shutdown", str(DRAIN_SECONDS)),
    ]
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryDirectory(prefix="metricsmw-demo-") as folder,
    ):
        environment["METRICSMW_DEMO_HISTORY"] = str(Path(folder, "history.db"))
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield DemoServer(token, process, output)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(options: argparse.Namespace) -> int:
    """Run the demo until `--seconds` have passed, Ctrl-C or SIGTERM; return the exit code."""
    # The demo talks to its own server only, whatever proxy the environment names.
    os.environ["no_proxy"] = "*"
    try:
        asyncio.run(_demo(options))
    except DemoError as error:
        complain("demo", error)
        return error.code
    return 0


async def _demo(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    port = _usable_port(options.host, options.port)
    address = _address(options.host, port)
    with _server(options.host, port, options.workers) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers) as reader:
            await _started(server, reader, stop)
            if stop.is_set():
                return
            _introduce(address, server.token, options)
            shown = asyncio.create_task(_show(server, reader, stop, options.seconds))
            traffic = asyncio.create_task(_traffic(address, options.rate))
            done, rest = await asyncio.wait({shown, traffic}, return_when=asyncio.FIRST_COMPLETED)
            await _cancelled(rest)
            for task in done:
                task.result()


def _usable_port(host: str, port: int) -> int:
    """Return `port`, or a free one where it is 0; `DemoError` where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} on {host} is in use: name another with --port (0: any free)"
            else:
                reason = f"cannot listen on {host} port {port}: {error.strerror or error}"
            raise DemoError(reason, code=2) from error
        usable: int = probe.getsockname()[1]
    return usable


def _address(host: str, port: int) -> str:
    """Return "host:port" as a client on this machine names a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _started(server: DemoServer, reader: httpx.AsyncClient, stop: asyncio.Event) -> None:
    """Return once the server answers or `stop` is set."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not stop.is_set():
        with suppress(httpx.TransportError):
            if (await reader.get("/api/metrics/health")).status_code == 200:
                return
        server.check()
        if asyncio.get_running_loop().time() > deadline:
            raise DemoError(f"no answer within {START_SECONDS:g} s\n{server.last_words()}")
        await asyncio.sleep(0.1)


def _introduce(address: str, token: str, options: argparse.Namespace) -> None:
    workers = f"{options.workers} worker{'s' if options.workers > 1 else ''}"
    write(
        f"Demo app at http://{address} with {workers}, {options.rate:g} requests a second.\n"
        "Its live page, with the token in the link:\n\n"
        f"  http://{address}/api/metrics/#token={token}\n\n"
        "Its numbers, from another terminal:\n\n"
        f'  curl -H "Authorization: Bearer {token}" http://{address}/api/metrics/current\n\n'
        f"or in a browser, logged in to the demo app at http://{address}/login/you\n"
        f"{'' if options.seconds else 'Ctrl-C ends it.'}"
    )


async def _show(
    server: DemoServer, reader: httpx.AsyncClient, stop: asyncio.Event, seconds: float | None
) -> None:
    """Print the summary line again and again until `stop` or the end, then the whole snapshot."""
    terminal = sys.stdout.isatty()
    every = LINE_EVERY_SECONDS["terminal" if terminal else "pipe"]
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds if seconds else float("inf")
    snapshot = None
    while not stop.is_set() and (left := end - loop.time()) > 0:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), min(every, left))
        server.check()
        # A worker that was killed takes open connections along; the next read finds another.
        with suppress(httpx.TransportError):
            answer = await reader.get("/api/metrics/current")
            answer.raise_for_status()
            snapshot = answer.json()["metrics"]
            _print_line(snapshot, terminal)
    if terminal:
        print()
    if snapshot is not None:
        write(f"\n{_table(snapshot)}")


def _print_line(snapshot: CurrentFields, terminal: bool) -> None:
    """Print the summary in one line; on a terminal over the last one, cut to its width."""
    line = (
        f"{snapshot['request_rate_rpm']:.0f} requests/min"
        f" | errors {snapshot['error_rate_pct']:.1f} %"
        f" | p50 {snapshot['latency_p50_ms']:.1f}"
        f" p95 {snapshot['latency_p95_ms']:.1f}"
        f" p99 {snapshot['latency_p99_ms']:.1f} ms"
        f" | users {snapshot['active_users']}"
        f" | ws {snapshot['websocket_connections']}"
        f" | workers {snapshot['workers']}"
        f" | cpu {snapshot['cpu_usage_pct']:.1f} %"
        f" | memory {snapshot['memory_usage_mb']:.0f} MB"
    )
    if terminal:
        # The last column stays free: a character there would wrap on some terminals.
        print(
            f"\r{plain(line)[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True
        )
    else:
        write(line)


def _table(snapshot: CurrentFields) -> str:
    """Return one row a field: its name, its value and the unit that its name ends in."""
    wide = max(map(len, snapshot))
    return "\n".join(
        f"{name:<{wide}}  {value} {UNITS.get(name.rpartition('_')[2], '')}".rstrip()
        for name, value in snapshot.items()
    )


async def _traffic(address: str, rate: float) -> None:
    """Send `rate` requests a second and keep some WebSockets open, until cancelled.

    Half of the requests come from logged-in users over kept connections, half from strangers over
    a new connection each, so that every worker gets some. While `MAX_IN_FLIGHT` are unanswered no
    more are sent.
    """
    requests: set[asyncio.Task[None]] = set()
    talks = {asyncio.create_task(_talk(f"ws://{address}/ws")) for _ in range(WEBSOCKETS)}
    weights, paths = zip(*MIX, strict=True)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        stranger, *users = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=f"http://{address}",
                    limits=httpx.Limits(max_keepalive_connections=kept),
                )
            )
            for kept in (0, *(10 for _ in USERS))
        ]
        try:
            for name, user in zip(USERS, users, strict=True):
                await _get(user, f"/login/{name}")
            due = loop.time()
            while True:
                # Falling behind by more than a second is not made up for.
                due = max(due + 1 / rate, loop.time() - 1)
                await asyncio.sleep(due - loop.time())
                if len(requests) < MAX_IN_FLIGHT:
                    client = random.choice((stranger, random.choice(users)))
                    path = random.choices(paths, weights)[0]
                    request = asyncio.create_task(_get(client, path()))
                    requests.add(request)
                    request.add_done_callback(requests.discard)
        finally:
            await _cancelled(requests | talks)


async def _get(client: httpx.AsyncClient, path: str) -> None:
    with suppress(httpx.TransportError):
        await client.get(path)


async def _talk(url: str) -> None:
    """Hold a WebSocket for some time, a message a second, then open the next; for ever."""
    while True:
        with suppress(OSError, asyncio.TimeoutError, websockets.WebSocketException):
            async with websockets.connect(url) as connection:
                for _ in range(random.randint(10, 40)):
                    await connection.send("hello")
                    await connection.recv()
                    await asyncio.sleep(1)
        await asyncio.sleep(1)


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and return once they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
