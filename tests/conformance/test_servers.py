"""Real servers in processes of their own: files by sendfile, clients that go, data of any size."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from kits.routes_kit import TOKEN, Api
from kits.servers import Server, serve, wait_until
from kits.workers import is_gone

from metricsmw import MetricsMonitor

from .outcomes import faults

SERVED = Path(__file__).parent / "served"
CONTENT = bytes(range(256)) * 4096  # of the file that is served
MEGABYTE = 1 << 20


class Host(NamedTuple):
    """A server, how it is told to run, and an app of its kind."""

    name: str
    args: Sequence[str] = ()
    app: str = "wsgi_site:app"

    @property
    def is_wsgi(self) -> bool:
        return self.app.startswith("wsgi")


GTHREAD = ["--worker-class", "gthread", "--threads", "4"]
ASGI = "asgi_site:app"
HOSTS = {
    "gunicorn-sync": Host("gunicorn"),
    "gunicorn-gthread": Host("gunicorn", GTHREAD),
    "gunicorn-gevent": Host("gunicorn", ["--worker-class", "gevent", "--graceful-timeout", "1"]),
    "uwsgi": Host("uwsgi", ["--pythonpath", str(SERVED)]),
    "waitress": Host("waitress"),
    "granian-wsgi": Host("granian", ["--interface", "wsgi"]),
    "granian-asgi": Host("granian", ["--interface", "asgi"], ASGI),
    "uvicorn-h11": Host("uvicorn", ["--http", "h11", "--ws", "wsproto"], ASGI),
    "uvicorn": Host("uvicorn", ["--http", "httptools", "--ws", "websockets"], ASGI),
    "hypercorn": Host("hypercorn", [], ASGI),
}


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> str:
    """Its name."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is served."""
    file = tmp_path_factory.mktemp("served") / "file"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture(scope="module")
def server(host: str, file: Path) -> Iterator[Server]:
    """It, with one worker, running for all tests of this module."""
    env = {"METRICSMW_TOKEN": TOKEN, "FILE": str(file), "PYTHONPATH": str(SERVED)}
    name, args, app = HOSTS[host]
    with serve(name, app, args=args, env=env) as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    """The numbers, at zero; whatever a test asks, no fault may be counted."""
    api = Api(server)
    assert api.post("/reset").status == 200
    api.settled(0)
    yield api
    assert api.get("/health").json()["faults"] == 0


def connect(server: Server, request: str, *headers: str) -> socket.socket:
    """A connection with a request on it."""
    connection = socket.create_connection((server.host, server.port), timeout=20)
    connection.sendall("\r\n".join([request, "Host: test", *headers, "", ""]).encode())
    return connection


def hang_up(connection: socket.socket) -> None:
    """Go away at once, whatever is under way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def among(hosts: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("host", hosts, indirect=True, scope="module")


WSGI_HOSTS = [name for name, host in HOSTS.items() if host.is_wsgi]


@among(WSGI_HOSTS)
def test_a_file(host: str, server: Server, api: Api) -> None:
    """The server sends it by itself where it can."""
    before = int(server.get("/sendfiles").text)
    assert server.get("/file").body == CONTENT
    after = int(server.get("/sendfiles").text)
    metrics = api.settled(3)
    assert metrics["total_errors"] == 0
    if host in ("gunicorn-sync", "gunicorn-gthread"):
        assert after > before
    elif host == "uwsgi":
        (line,) = (line for line in server.output().splitlines() if "GET /file" in line)
        assert "via sendfile()" in line


@among([name for name in HOSTS if name not in WSGI_HOSTS])
@pytest.mark.parametrize("path", ["/file", "/trailers"])
def test_messages_that_not_every_server_knows(
    host: str, path: str, server: Server, api: Api
) -> None:
    """pathsend, and trailers: they end a request as the last byte does."""
    assert server.get(path).body == (CONTENT if path == "/file" else b"hello")
    metrics = api.settled(1)
    assert metrics["total_errors"] == 0
    assert metrics["latency_max_ms"] > 0


@among(WSGI_HOSTS)
@pytest.mark.parametrize("path", ["/stream", "/generated"])
def test_gone_in_the_middle_of_a_body(server: Server, api: Api, path: str) -> None:
    assert_gone(server, api, f"{path}?mb=50")


# granian tells an app of it only where that asks.
@among(["uvicorn-h11", "uvicorn", "hypercorn"])
def test_gone_in_the_middle_of_a_body_whose_app_never_asks(server: Server, api: Api) -> None:
    assert_gone(server, api, "/stream?mb=50")


@among([name for name in HOSTS if name not in WSGI_HOSTS])
def test_gone_in_the_middle_of_a_stream_of_events(server: Server, api: Api) -> None:
    assert_gone(server, api, "/events")


@among([name for name in HOSTS if name not in WSGI_HOSTS])
def test_gone_in_the_middle_of_an_upload(server: Server, api: Api) -> None:
    connection = connect(server, "POST /upload HTTP/1.1", "Content-Length: 1000000")
    connection.sendall(bytes(1000))
    api.until(lambda: api.current()["requests_in_flight"] == 1, "the request")
    hang_up(connection)
    metrics = api.settled(1)
    assert metrics["total_errors"] == 0
    assert metrics["latency_max_ms"] == 0


@among(WSGI_HOSTS)
def test_a_body_is_closed_once(server: Server, api: Api) -> None:
    """Read to its end, left in the middle, or not read at all."""
    before = int(server.get("/closes").text)
    server.get("/stream?mb=3")
    server.request("HEAD", "/stream?mb=3")
    connection = connect(server, "GET /stream?mb=50 HTTP/1.1")
    connection.recv(100)
    hang_up(connection)
    api.settled(4)
    assert int(server.get("/closes").text) == before + 3


@among(HOSTS)
def test_gone_before_the_headers(host: str, server: Server, api: Api, file: Path) -> None:
    asked, release = file.with_suffix(".asked"), file.with_suffix(".release")
    for each in (asked, release):
        each.unlink(missing_ok=True)
    connection = connect(server, "GET /late HTTP/1.1")
    if HOSTS[host].is_wsgi:
        wait_until(asked.exists, "the request")
    else:
        api.until(lambda: api.current()["requests_in_flight"] == 1, "the request")
    hang_up(connection)
    release.touch()
    metrics = api.settled(1)
    assert metrics["total_errors"] == 0
    assert metrics["latency_max_ms"] == 0


def assert_gone(server: Server, api: Api, path: str) -> None:
    """A client that goes is in the total, and nowhere else."""
    connection = connect(server, f"GET {path} HTTP/1.1")
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    hang_up(connection)
    metrics = api.settled(1)
    assert metrics["total_errors"] == 0
    assert metrics["latency_max_ms"] == 0


@among(HOSTS)
def test_head(host: str, server: Server, api: Api) -> None:
    answer = server.request("HEAD", "/stream?mb=3" if HOSTS[host].is_wsgi else "/hello")
    assert (answer.status, answer.body) == (200, b"")
    metrics = api.settled(1)
    assert metrics["total_errors"] == 0
    assert metrics["latency_max_ms"] > 0


@among(HOSTS)
@pytest.mark.parametrize("when", ["before", "after", "middle"])
def test_an_exception_is_one_error(when: str, server: Server, api: Api) -> None:
    """With the status that was sent, or 500; what the client gets is the server's affair."""
    fail(server, api, when)


@among(WSGI_HOSTS)
def test_an_exception_in_close_is_one_error(server: Server, api: Api) -> None:
    fail(server, api, "close")


@among(HOSTS)
@pytest.mark.parametrize("path", ["/leave", "/nothing"])
def test_no_response_is_one_error(path: str, server: Server, api: Api) -> None:
    """Be it for what is no `Exception`; what the client gets is the server's affair."""
    with connect(server, f"GET {path} HTTP/1.1"):
        metrics = api.settled(1)
    assert metrics["total_errors"] == 1
    (row,) = api.routes()
    assert row["statuses"] == {"5xx": 1}


def fail(server: Server, api: Api, when: str) -> None:
    with suppress(OSError, http.client.HTTPException):
        answer = server.get(f"/raise?when={when}")
        if when == "before":
            assert answer.status == 500
        elif when != "after":
            assert (answer.status, answer.body) == (202, b"some")
    metrics = api.settled(1)
    assert metrics["total_errors"] == 1
    (row,) = api.routes()
    # Starlette answers 500 for an exception that comes before the headers.
    assert row["statuses"] == ({"5xx": 1} if when == "before" else {"2xx": 1})


CLOSING = ("gunicorn-sync", "uwsgi")
"""Hosts that close a connection after each answer."""


@among(HOSTS)
def test_many_requests_on_a_connection(host: str, server: Server, api: Api) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    sockets = set()
    for number in range(5):
        connection.request("GET", f"/hello?{number}")
        sockets.add(connection.sock.getsockname())
        assert connection.getresponse().read() == b"hello"
    connection.close()
    assert len(sockets) == (5 if host in CLOSING else 1)
    assert api.settled(5)["total_errors"] == 0


@among(HOSTS)
def test_requests_that_come_before_their_turn(host: str, server: Server, api: Api) -> None:
    """As many are counted as are answered: all, but for servers that close after the first."""
    request = b"GET /hello HTTP/1.1\r\nHost: test\r\n"
    answers = 1 if host in CLOSING else 2
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        received = b""
        while received.count(b"hello") < answers:
            more = connection.recv(1000)
            assert more, received
            received += more
    assert received.count(b"HTTP/1.1 200") == answers
    assert api.settled(answers)["total_errors"] == 0


@among(HOSTS)
def test_a_client_that_asks_before_it_sends(host: str, server: Server, api: Api) -> None:
    """Expect: 100-continue."""
    headers = ["Expect: 100-continue", "Content-Length: 4", "Connection: close"]
    with connect(server, "POST /upload HTTP/1.1", *headers) as connection:
        received = b""
        if host != "uwsgi":  # which waits for the body and says nothing
            received = connection.recv(1000)
            assert received.startswith(b"HTTP/1.1 100")
        connection.sendall(b"body")
        received += b"".join(iter(lambda: connection.recv(1000), b""))
    assert b"HTTP/1.1 200" in received or b"HTTP/1.0 200" in received
    assert b"4" in received.rpartition(b"\r\n\r\n")[2] or b"\r\n4\r\n" in received
    assert api.settled(1)["total_errors"] == 0


class Stop(NamedTuple):
    """How a server is stopped in the middle of a request, and what it makes of that."""

    host: str
    counted: int  # 1: it has the app feel it, an error; 0: the worker just dies
    args: Sequence[str] = ()
    signum: signal.Signals = signal.SIGTERM
    worker: bool = False  # the signal is for that, not for the server

    def __str__(self) -> str:
        return f"{self.host}-{'worker-' * self.worker}{self.signum.name}"


GRACEFUL = ["--graceful-timeout", "1"]
KILL = ["--workers-kill-timeout", "1"]
UVICORN = ["--timeout-graceful-shutdown", "0"]
# uWSGI gives up on a client that takes nothing for 4 seconds, else.
UWSGI = ["--worker-reload-mercy", "1", "--socket-timeout", "60"]
STOPS = [
    Stop("gunicorn-sync", 0, GRACEFUL),
    Stop("gunicorn-sync", 1, [], signal.SIGQUIT, worker=True),
    Stop("gunicorn-gthread", 0, GRACEFUL),
    Stop("gunicorn-gevent", 1, GRACEFUL, worker=True),
    Stop("uwsgi", 0, UWSGI),
    Stop("uwsgi", 1, UWSGI, signal.SIGHUP, worker=True),
    Stop("waitress", 0),
    Stop("granian-wsgi", 0, KILL),
    Stop("granian-asgi", 0, KILL),
    Stop("uvicorn-h11", 1, UVICORN),
    Stop("uvicorn", 1, UVICORN),
    Stop("hypercorn", 1, ["--graceful-timeout", "0"]),
]


@pytest.mark.parametrize(
    ("stop", "path"),
    [(stop, "/stream?mb=50") for stop in STOPS]
    + [(stop, "/waits") for stop in STOPS if not HOSTS[stop.host].is_wsgi],
    ids=str,
)
def test_a_server_that_is_stopped_is_no_client_that_goes(stop: Stop, path: str) -> None:
    """In the middle of a body whose client does not read on, or of a stream that waits."""
    name, args, app = HOSTS[stop.host]
    # Shares the server's numbers, and so has them when that has ended.
    env = {"METRICSMW_DIR": os.environ["METRICSMW_DIR"], "PYTHONPATH": str(SERVED)}
    with (
        MetricsMonitor(shared=True) as monitor,
        serve(name, app, args=[*args, *stop.args], env=env) as server,
        connect(server, f"GET {path} HTTP/1.1") as connection,
    ):
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert monitor.get_current_snapshot().requests_in_flight == 1
        (worker,) = server.worker_pids()
        process = psutil.Process(worker)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, "the client to be awaited")
        os.kill(worker if stop.worker else server.pid, stop.signum)
        wait_until(
            lambda: monitor.get_current_snapshot().requests_in_flight == 0, "the request's end"
        )
        connection.close()  # for which hypercorn waits
        wait_until(lambda: is_gone(worker), "the worker's end")
        snapshot = monitor.get_current_snapshot()
        assert snapshot.requests_in_flight == 0
        assert (snapshot.total_requests, snapshot.total_errors) == (stop.counted, stop.counted)
        assert (snapshot.latency_max_ms > 0) is bool(stop.counted)
        assert faults(monitor) == 0


@pytest.mark.parametrize("args", [[], ["--gevent-monkey-patch"]])
def test_gone_in_the_middle_of_a_body_under_uwsgi_with_gevent(args: Sequence[str]) -> None:
    """uWSGI is not asked, but the connection; gevent's poll() would not see who has gone."""
    name, more, app = HOSTS["uwsgi"]
    env = {"METRICSMW_DIR": os.environ["METRICSMW_DIR"], "PYTHONPATH": str(SERVED)}
    with (
        MetricsMonitor(shared=True) as monitor,
        serve(name, app, args=[*more, "--gevent", "10", *args], env=env) as server,
    ):
        connection = connect(server, "GET /stream?mb=50 HTTP/1.1")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert monitor.get_current_snapshot().requests_in_flight == 1
        hang_up(connection)
        wait_until(
            lambda: monitor.get_current_snapshot().requests_in_flight == 0, "the request's end"
        )
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.total_requests, snapshot.total_errors) == (1, 0)
        assert snapshot.latency_max_ms == 0
        assert faults(monitor) == 0


MEGABYTES = {"gunicorn-sync": 1024, "uvicorn": 1024}
"""How much goes up, and down, in the test of much data: a gigabyte through one of each kind."""


@among(HOSTS)
def test_much_data_takes_no_memory(host: str, server: Server, api: Api) -> None:
    """Down first, up then; the server itself may keep some, but never the size of it."""
    megabytes = MEGABYTES.get(host, 256)
    size = megabytes * MEGABYTE
    server.get("/stream?mb=3")
    before = int(server.get("/peak").text)
    connection = connect(server, f"GET /stream?mb={megabytes} HTTP/1.1", "Connection: close")
    received = 0
    buffer = bytearray(MEGABYTE)
    with connection:
        while got := connection.recv_into(buffer):
            received += got
    assert received > size
    connection = connect(
        server, "POST /upload HTTP/1.1", "Connection: close", f"Content-Length: {size}"
    )
    with connection:
        for _ in range(megabytes):
            connection.sendall(buffer)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
    assert str(size).encode() in answer
    assert int(server.get("/peak").text) - before < 60
    assert api.settled(5)["total_errors"] == 0


# --- WebSockets -----------------------------------------------------------------------------------

CLOSE_FRAME = b"\x88\x80AAAA"
HI_FRAME = b"\x81\x82\0\0\0\0hi"
WEBSOCKET_HOSTS = [name for name, host in HOSTS.items() if not host.is_wsgi]


def handshake(server: Server, how: str, *headers: str) -> tuple[socket.socket, bytes]:
    """A connection that asked to be a WebSocket, and the head of the answer."""
    connection = connect(
        server,
        f"GET /ws?how={how} HTTP/1.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *headers,
    )
    answer = b""
    while b"\r\n\r\n" not in answer and (more := connection.recv(1)):
        answer += more
    return connection, answer


def open_websockets(api: Api, number: int) -> None:
    """Wait until so many are open; none of them is a request."""
    api.until(lambda: api.current()["websocket_connections"] == number, f"{number} WebSockets")
    assert api.current()["total_requests"] == 0


@among(WEBSOCKET_HOSTS)
@pytest.mark.parametrize("how", ["refuse", "deny"])
def test_a_websocket_that_is_refused(how: str, server: Server, api: Api) -> None:
    connection, answer = handshake(server, how)
    with connection:
        assert b" 403" in answer.partition(b"\r\n")[0]
        if how == "deny":
            assert connection.recv(1000).removeprefix(b"2\r\n").startswith(b"no")
    open_websockets(api, 0)


@among(WEBSOCKET_HOSTS)
@pytest.mark.parametrize("how", ["close", "raise"])
def test_a_websocket_that_the_server_ends(how: str, server: Server, api: Api) -> None:
    connection, answer = handshake(server, how)
    with connection:
        assert b" 101" in answer
        open_websockets(api, 1)
        connection.sendall(HI_FRAME)
        # uvicorn just hangs up for an exception.
        assert connection.recv(1000)[:1] in (CLOSE_FRAME[:1], CLOSE_FRAME[: how == "close"])
        with suppress(ConnectionError):
            connection.sendall(CLOSE_FRAME)
            while connection.recv(1000):
                pass
    open_websockets(api, 0)


@among(WEBSOCKET_HOSTS)
def test_two_hundred_websockets_that_are_all_killed(server: Server, api: Api) -> None:
    connections = []
    for _ in range(200):
        connection, answer = handshake(server, "echo")
        connections.append(connection)
        assert b" 101" in answer
    open_websockets(api, 200)
    for connection in connections[:50]:
        connection.sendall(CLOSE_FRAME)
        connection.close()
    open_websockets(api, 150)
    for connection in connections[50:]:
        hang_up(connection)
    open_websockets(api, 0)
