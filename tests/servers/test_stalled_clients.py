"""A client of the stream that does not read: its stream ends, and the server ends in spite of it.

No time is asserted: without the deadline of each write these servers wait for as long as the client
is there, and uvicorn does not end.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
from kits.servers import wait_until

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.asgi_app import sub_app
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.off_loop import OFF_LOOP
from metricsmw.adapters.api.sse import Pace, Streams
from metricsmw.adapters.auth import public

WAIT = 20.0
SMALL = 4096  # bytes, of the sockets' buffers; the first event has many times more
ROUTES = 2000
# With and without a write that does not come back before the server ends.
PATIENT, IMPATIENT = Pace(every=0.2, patience=600.0), Pace(every=0.2, patience=0.5)

Serve = Callable[[Any, socket.socket, asyncio.Event], Awaitable[None]]


async def _uvicorn(http: str, app: Any, listener: socket.socket, end: asyncio.Event) -> None:
    config = uvicorn.Config(app, http=http, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await end.wait()
    server.should_exit = True
    await serving


async def _hypercorn(app: Any, listener: socket.socket, end: asyncio.Event) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "CRITICAL"
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait)  # type: ignore[arg-type]


SERVERS: dict[str, Serve] = {
    "uvicorn": lambda *args: _uvicorn("httptools", *args),
    "uvicorn-h11": lambda *args: _uvicorn("h11", *args),
    "hypercorn": _hypercorn,
}


class Running:
    """A server in a thread, and the streams of its app."""

    def __init__(self, serve: Serve, pace: Pace) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        # Accepted connections have its buffer.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self.address = self.listener.getsockname()
        self.monitor = MetricsMonitor(10, max_routes=ROUTES)
        for number in range(ROUTES):
            self.monitor.record_request(1.0, method="GET", route=f"/number/{number}", status=200)
        self.streams = Streams(self.monitor, pace)
        app = sub_app(Handlers(self.monitor, public(), OFF_LOOP), self.streams)
        self.loop = asyncio.new_event_loop()
        self.end = asyncio.Event()
        work = serve(app, self.listener, self.end)
        self.thread = threading.Thread(
            target=self.loop.run_until_complete, args=[work], daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)

    @property
    def has_ended(self) -> bool:
        return not self.thread.is_alive()


@contextmanager
def running(name: str, pace: Pace) -> Iterator[Running]:
    server = Running(SERVERS[name], pace)
    try:
        yield server
    finally:
        server.stop()
        server.thread.join(WAIT)
        server.monitor.close()
        if server.has_ended:
            server.loop.close()


@contextmanager
def stalled(server: Running) -> Iterator[None]:
    """Have a client that asks for the stream and reads nothing of it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        client.connect(server.address)
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        yield


@pytest.mark.parametrize("name", SERVERS)
def test_its_stream_ends(name: str) -> None:
    with running(name, IMPATIENT) as server, stalled(server):
        wait_until(lambda: server.streams.open == 1, "a stream", WAIT)
        wait_until(lambda: server.streams.open == 0, "the end of the stream", WAIT)
        server.stop()
        wait_until(lambda: server.has_ended, "the end of the server", WAIT)


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_ends_at_once(name: str) -> None:
    with running(name, PATIENT) as server, stalled(server):
        wait_until(lambda: server.streams.open == 1, "a stream", WAIT)
        server.stop()
        wait_until(lambda: server.has_ended, "the end of the server", WAIT)
        assert server.streams.open == 0
