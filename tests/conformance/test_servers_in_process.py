"""Requests that do not end as they should, under real servers: what the numbers make of them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
import waitress.server
from kits.servers import wait_until
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

from .drivers import hello, part, start, wsgi_hello
from .in_process import (
    hypercorn_server,
    threaded,
    uvicorn_server,
    waitress_server,
    wsgiref_server,
)
from .outcomes import faults

if TYPE_CHECKING:
    from metricsmw.adapters.types import Receive, Scope, Send

Serve = Callable[..., AbstractContextManager[int]]
MEGABYTE = bytes(1 << 20)

ASGI: dict[str, Serve] = {
    "uvicorn-h11": partial(uvicorn_server, http="h11"),
    "uvicorn-httptools": partial(uvicorn_server, http="httptools"),
    "hypercorn": hypercorn_server,
}
asgi_servers = pytest.mark.parametrize("serve", ASGI.values(), ids=ASGI)


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    """On the real clock, as the servers are."""
    with MetricsMonitor() as monitor:
        yield monitor


def settled(monitor: MetricsMonitor, requests: int, errors: int, *, timed: bool) -> None:
    """Once none is in flight, these are the numbers; `timed`: some of them have a latency."""

    def over() -> bool:
        snapshot = monitor.get_current_snapshot()
        return snapshot.total_requests >= requests and snapshot.requests_in_flight == 0

    wait_until(over, f"{requests} requests")
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (requests, errors)
    assert (snapshot.latency_max_ms > 0) is timed
    assert faults(monitor) == 0


def connect(port: int, request: str = "GET / HTTP/1.1", *headers: str) -> socket.socket:
    """A connection with a request on it."""
    lines = "\r\n".join([request, "Host: test", *headers, "", ""])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(lines.encode())
    return connection


def hang_up(connection: socket.socket) -> None:
    """Go away at once, whatever is under way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def read_to_end(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@asgi_servers
def test_requests_that_end_as_they_should(serve: Serve, monitor: MetricsMonitor) -> None:
    """Two on one connection, sent before the first is answered; and one that asks first."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await start(send)
        await part(send, scope["path"].encode() + message["body"])

    close = "Connection: close"
    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port, "GET /one HTTP/1.1")
        connection.sendall(f"GET /two HTTP/1.1\r\nHost: test\r\n{close}\r\n\r\n".encode())
        answers = read_to_end(connection)
        assert answers.count(b"HTTP/1.1 200") == 2
        assert answers.index(b"/one") < answers.index(b"/two")
        settled(monitor, 2, 0, timed=True)
        asking = ("Expect: 100-continue", "Content-Length: 4", close)
        connection = connect(port, "POST /three HTTP/1.1", *asking)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"body")
        answer = read_to_end(connection)
        assert b"/three" in answer
        assert b"body" in answer
        settled(monitor, 3, 0, timed=True)


@asgi_servers
@pytest.mark.parametrize("answers", [False, True])
def test_gone_before_the_headers(serve: Serve, answers: bool, monitor: MetricsMonitor) -> None:
    running = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        running.set()
        assert await receive() == {"type": "http.disconnect"}
        if answers:
            await hello(scope, receive, send)

    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port)
        assert running.wait(20)
        assert monitor.get_current_snapshot().requests_in_flight == 1
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_gone_and_the_application_never_asks(http: str, monitor: MetricsMonitor) -> None:
    """uvicorn's `send` does not say so; it is asked."""
    cycles: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not cycles[0].disconnected:
            await asyncio.sleep(0)
        await hello(scope, receive, send)

    measured = ASGIMetricsMiddleware(app, monitor)

    async def outermost(scope: Scope, receive: Receive, send: Any) -> None:
        cycles.append(send.__self__)
        await measured(scope, receive, send)

    with uvicorn_server(outermost, http) as port:
        connection = connect(port)
        wait_until(lambda: cycles, "the request")
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)


@asgi_servers
def test_gone_in_the_middle_of_a_body(serve: Serve, monitor: MetricsMonitor) -> None:
    """The application never asks, and sends on to its end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        for _ in range(50):
            await part(send, MEGABYTE, more=True)
            await asyncio.sleep(0)  # until then uvicorn itself does not know
        await part(send)

    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)


@asgi_servers
def test_gone_in_the_middle_of_a_stream_of_events(serve: Serve, monitor: MetricsMonitor) -> None:
    ended = threading.Event()

    async def events(request: Any) -> StreamingResponse:
        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"data: event\n\n"
                    await asyncio.sleep(0.001)
            finally:
                ended.set()

        return StreamingResponse(endless(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/", events)])
    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert monitor.get_current_snapshot().requests_in_flight == 1
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)
        assert ended.wait(20)


@asgi_servers
def test_gone_in_the_middle_of_an_upload(serve: Serve, monitor: MetricsMonitor) -> None:
    started = threading.Event()

    async def upload(request: Any) -> StreamingResponse:
        async for chunk in request.stream():
            if chunk:
                started.set()
        raise AssertionError("it was to be cut short")

    app = Starlette(routes=[Route("/", upload, methods=["POST"])])
    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port, "POST / HTTP/1.1", "Content-Length: 1000000")
        connection.sendall(bytes(1000))
        assert started.wait(20)
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)


@pytest.mark.parametrize(
    "serve",
    [
        partial(uvicorn_server, http="h11", timeout_graceful_shutdown=0),
        partial(uvicorn_server, http="httptools", timeout_graceful_shutdown=0),
        partial(hypercorn_server, graceful_timeout=0.0),
    ],
    ids=ASGI,
)
def test_a_server_that_shuts_down_is_no_client_that_goes(
    serve: Serve, monitor: MetricsMonitor
) -> None:
    running = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"some", more=True)
        running.set()
        await asyncio.Event().wait()

    with serve(ASGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port)
        assert running.wait(20)
    connection.close()
    settled(monitor, 1, 1, timed=True)


# --- WSGI -----------------------------------------------------------------------------------------


def megabytes(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(50):
        yield MEGABYTE


class Megabytes:
    """The same by an iterable that is no generator."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        self.chunks = megabytes(environ, start_response)

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


@pytest.mark.parametrize("serve", [wsgiref_server, waitress_server])
@pytest.mark.parametrize("app", [megabytes, Megabytes])
def test_gone_in_the_middle_of_a_wsgi_body(serve: Serve, app: Any, monitor: MetricsMonitor) -> None:
    with serve(WSGIMetricsMiddleware(app, monitor)) as port:
        connection = connect(port)
        assert connection.recv(100)
        hang_up(connection)
        settled(monitor, 1, 0, timed=False)


def test_waitress_that_shuts_down_is_no_client_that_goes(monitor: MetricsMonitor) -> None:
    """On several sockets it closes its connections then, and takes their clients for gone."""
    asked, stop, stopped = threading.Event(), threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"some"
        asked.set()
        assert stopped.wait(20)
        yield b"more"

    server: Any = waitress.server.create_server(
        WSGIMetricsMiddleware(app, monitor), listen="127.0.0.1:0 127.0.0.1:0"
    )

    def run() -> None:
        """As the server's own for SIGINT, which would wait 5 seconds for the request."""
        while not stop.is_set():
            server.asyncore.loop(0.01, map=server.map, count=1)
        server.task_dispatcher.shutdown(timeout=0)
        server.asyncore.close_all(server.map)
        stopped.set()

    with threaded(run):
        try:
            connection = connect(server.effective_listen[0][1])
            assert asked.wait(20)
        finally:
            stop.set()
    with connection:
        settled(monitor, 1, 1, timed=True)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("app", [wsgi_hello, megabytes, Megabytes])
@pytest.mark.filterwarnings("error")
def test_wsgiref_with_the_validator_on_both_sides(
    app: Any, method: str, monitor: MetricsMonitor, capfd: pytest.CaptureFixture[str]
) -> None:
    validated = validator(WSGIMetricsMiddleware(validator(app), monitor))
    with wsgiref_server(validated) as port:
        answer = read_to_end(connect(port, f"{method} / HTTP/1.0"))
        assert answer.startswith(b"HTTP/1.0 200")
        # wsgiref sends the body for HEAD, too.
        expected = len(MEGABYTE) * 50 if app is not wsgi_hello else 5
        assert len(answer.partition(b"\r\n\r\n")[2]) == expected
        settled(monitor, 1, 0, timed=True)
    assert capfd.readouterr().err == ""


def test_waitress_closes_a_file_when_it_is_sent(monitor: MetricsMonitor, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(MEGABYTE)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(len(MEGABYTE)))])
        file = (tmp_path / "file").open("rb")
        files.append(file)
        return environ["wsgi.file_wrapper"](file)

    files: list[Any] = []
    with waitress_server(WSGIMetricsMiddleware(app, monitor)) as port:
        answer = read_to_end(connect(port, "GET / HTTP/1.1", "Connection: close"))
        assert answer.endswith(MEGABYTE)
        settled(monitor, 1, 0, timed=True)
        assert files[0].closed
