"""Real servers in processes of their own: files by sendfile, clients that go, data of any size."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from kits.routes_kit import TOKEN, Api
from kits.servers import Server, serve

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
    "gunicorn-gevent": Host("gunicorn", ["--worker-class", "gevent"]),
    "uwsgi": Host("uwsgi", ["--pythonpath", str(SERVED)]),
    "waitress": Host("waitress"),
    "granian-wsgi": Host("granian", ["--interface", "wsgi"]),
    "granian-asgi": Host("granian", ["--interface", "asgi"], ASGI),
    "uvicorn": Host("uvicorn", [], ASGI),
    "hypercorn": Host("hypercorn", [], ASGI),
}


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> str:
    """Its name."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It, with one worker, running for all tests of this module."""
    file = tmp_path_factory.mktemp("served") / "file"
    file.write_bytes(CONTENT)
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


@among(WSGI_HOSTS)
@pytest.mark.parametrize("path", ["/stream", "/generated"])
def test_gone_in_the_middle_of_a_body(server: Server, api: Api, path: str) -> None:
    assert_gone(server, api, f"{path}?mb=50")


@among([name for name in HOSTS if name not in WSGI_HOSTS])
def test_gone_in_the_middle_of_a_stream_of_events(server: Server, api: Api) -> None:
    assert_gone(server, api, "/events")


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


@among(["gunicorn-sync", "uvicorn"])
def test_much_data_takes_no_memory(server: Server, api: Api) -> None:
    """200 MB down and 200 MB up."""
    size = 200 * MEGABYTE
    server.get("/stream?mb=3")
    before = int(server.get("/peak").text)
    connection = connect(server, "GET /stream?mb=200 HTTP/1.1", "Connection: close")
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
        for _ in range(200):
            connection.sendall(buffer)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
    assert str(size).encode() in answer
    assert int(server.get("/peak").text) - before < 30
    assert api.settled(5)["total_errors"] == 0
