"""The matrix of frameworks and cases under real servers: each framework, each server."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from h2.errors import ErrorCodes
from kits.routes_kit import TOKEN, Api
from kits.servers import Server, serve

from .framework_kit import SITES, STREAM, FrameworkKit, Numbers, row_of, site_of
from .plain import Answer
from .test_http2 import Client
from .test_servers import CLOSE_FRAME, HI_FRAME, connect, handshake, hang_up, open_websockets

SERVED = Path(__file__).parent / "served"
WSGI, ASGI = "site_app:wsgi", "site_app:asgi"
SERVERS: dict[str, tuple[str, list[str], str]] = {
    "gunicorn-sync": ("gunicorn", [], WSGI),
    "gunicorn-gthread": ("gunicorn", ["--worker-class", "gthread", "--threads", "4"], WSGI),
    "gunicorn-gevent": ("gunicorn", ["--worker-class", "gevent"], WSGI),
    "waitress": ("waitress", [], WSGI),
    "wsgiref": ("wsgiref", [], "site_app:validated"),
    "uwsgi": ("uwsgi", ["--pythonpath", str(SERVED)], WSGI),
    "granian-wsgi": ("granian", ["--interface", "wsgi"], WSGI),
    "uvicorn-h11": ("uvicorn", ["--http", "h11", "--ws", "wsproto"], ASGI),
    "uvicorn-httptools": ("uvicorn", ["--http", "httptools", "--ws", "websockets"], ASGI),
    "hypercorn": ("hypercorn", [], ASGI),
    "hypercorn-h2": ("hypercorn", ["--keep-alive", "1"], ASGI),
    "granian-asgi": ("granian", ["--interface", "asgi"], ASGI),
}
PAIRS = [
    (server, site)
    for server, (_, _, app) in SERVERS.items()
    for site in SITES
    if site_of(site).is_asgi == app.endswith("asgi")
]


# granian tells of a client that has gone by `receive` only, which these do not ask; hypercorn keeps
# such an app in its last `send` for good.
UNHEARD = [
    ("granian-asgi", "raw_asgi"),
    ("granian-asgi", "falcon_asgi_site"),
    ("hypercorn-h2", "raw_asgi"),
    ("hypercorn-h2", "falcon_asgi_site"),
    ("hypercorn-h2", "starlette_site"),
]


class OverHTTP:
    """A site under a server."""

    def __init__(self, name: str, host: str, server: Server, release: Path) -> None:
        self.site = site_of(name)
        self.host = host
        self.name = name
        self.server = server
        self.release = release
        self.api = Api(server, {"X-Site": name})

    def ask_slowly(self) -> float:
        answer = self.ask("GET", "/stream", slow=True)
        assert answer.body == STREAM
        return self.held

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        form: str = "measured",
        slow: bool = False,
    ) -> Answer:
        is_stream = (method, path) == ("GET", "/stream")
        if is_stream:
            self.release.unlink(missing_ok=True)
        else:
            self.release.touch()
        start = time.monotonic()

        def first_part_came() -> None:
            if slow:  # at least as much as it took so far
                self.held = max(0.1, time.monotonic() - start)
                time.sleep(self.held)
            self.release.touch()

        try:
            return self.exchange(method, path, body, form, first_part_came if is_stream else None)
        except (OSError, http.client.HTTPException):
            # Whatever came before: granian may not even have sent the headers.
            if path == "/broken":
                return Answer(200, [], b"", "broken off")
            if self.host == "uwsgi":  # which answers an exception by nothing at all
                return Answer(500, [], b"", "broken off")
            raise

    def exchange(
        self, method: str, path: str, body: bytes, form: str, on_part: Callable[[], None] | None
    ) -> Answer:
        """One request; `on_part` is called when the first part of its answer is there."""
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=20)
        headers = {"Connection": "close", "X-Site": self.name, "X-Form": form}
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            first = b""
            if on_part:
                first = response.read1(4)
                on_part()
            return Answer(response.status, response.getheaders(), first + response.read())
        finally:
            connection.close()

    def leave(self, path: str) -> None:
        connection = connect(self.server, f"GET {path} HTTP/1.1", f"X-Site: {self.name}")
        assert connection.recv(1000).startswith(b"HTTP/1.")
        hang_up(connection)

    def ask_all(self, paths: list[str]) -> None:
        assert {self.ask("GET", path).status for path in paths} == {404}

    def numbers(self, requests: int) -> Numbers:
        metrics = self.api.settled(requests)
        rows = {
            f"{row['method']} {row['route']}": (row["requests"], row["statuses"])
            for row in self.api.routes()
        }
        return Numbers(
            metrics["total_requests"], metrics["total_errors"], metrics["requests_in_flight"], rows
        )

    def reset(self) -> None:
        assert self.api.post("/reset").status == 200

    def read(self, path: str) -> Any:
        return self.api.get(path).json()


class OverHTTP2(OverHTTP):
    """The same by the other protocol, each request on a connection of its own."""

    def exchange(
        self, method: str, path: str, body: bytes, form: str, on_part: Callable[[], None] | None
    ) -> Answer:
        client = Client(self.server)
        with client.socket:
            stream = client.ask(path, method, body, {"x-site": self.name, "x-form": form})
            while on_part and stream not in client.bodies:
                client.read()
            if on_part:
                on_part()
            client.read_all({stream})
        body = client.bodies.get(stream, b"")
        return Answer(client.statuses[stream], client.headers[stream], body)

    def leave(self, path: str) -> None:
        # The connection stays: without it, hypercorn leaves apps in the middle of `send` for good.
        self.left = client = Client(self.server)
        stream = client.ask(path, headers={"x-site": self.name})
        while stream not in client.bodies:
            client.read()
        client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        client.flush()


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Server, Path]]:
    """Each server, with all sites of its kind."""
    name, args, app = SERVERS[request.param]
    release = tmp_path_factory.mktemp("release") / "release"
    env = {"METRICSMW_TOKEN": TOKEN, "PYTHONPATH": str(SERVED)}
    env |= {"RELEASE": str(release), "RELEASED": "yes"}
    with serve(name, app, args=args, env=env) as server:
        yield request.param, server, release


@pytest.fixture
def served(running: tuple[str, Server, Path], site: str) -> OverHTTP:
    host, server, release = running
    return (OverHTTP2 if host.endswith("h2") else OverHTTP)(site, host, server, release)


def among(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("running", "site"), pairs, ids=map("-".join, pairs), indirect=["running"], scope="module"
    )


@among(PAIRS)
class TestFrameworksServed(FrameworkKit):
    """All of the kit, for each framework and each server of its kind."""

    def test_a_client_that_leaves_in_the_middle_of_a_body(self, served: OverHTTP) -> None:
        if (served.host, served.name) in UNHEARD:
            pytest.skip("the app is not told, or not let go")
        super().test_a_client_that_leaves_in_the_middle_of_a_body(served)


@among([(host, site) for host, site in PAIRS if site_of(site).has_websockets and host[-2:] != "h2"])
@pytest.mark.parametrize("how", ["echo", "killed", "refuse", "raise"])
def test_a_websocket(served: OverHTTP, how: str) -> None:
    """Open from its accept to its end, whichever side ends it and how; never a request."""
    served.reset()
    asked = "echo" if how == "killed" else how
    connection, answer = handshake(served.server, asked, f"X-Site: {served.name}")
    with connection:
        if how == "refuse":
            assert b" 403" in answer.partition(b"\r\n")[0]
        else:
            assert b" 101" in answer
            open_websockets(served.api, 1)
            connection.sendall(HI_FRAME)
        if asked == "echo":
            assert connection.recv(1000).endswith(b"hi")
        if how == "killed":
            hang_up(connection)
        elif how == "echo":
            connection.sendall(CLOSE_FRAME)
    open_websockets(served.api, 0)


@among([pair for pair in PAIRS if pair[1] == "starlette_site"])
def test_a_host_of_its_own(served: OverHTTP) -> None:
    served.reset()
    headers = {"X-Site": served.name, "Host": "ann.example"}
    for path, status in (("/hosted/7", 200), ("/none", 404)):
        assert served.server.get(path, headers).status == status
    assert served.numbers(2).rows.keys() == {"GET /hosted/{id}", "GET <unmatched>"}


@among([(host, site) for host, site in PAIRS if site_of(site).afterwards])
def test_what_runs_after_the_answer_is_not_waited_for(served: OverHTTP) -> None:
    """By the client, nor by the count: it is still running when both have all there is."""
    served.reset()
    served.release.unlink(missing_ok=True)
    answer = served.exchange("GET", "/background", b"", "measured", None)
    assert (answer.status, answer.body) == (200, b"answered")
    row = row_of(served.site, "GET /background")
    assert served.numbers(1) == Numbers(1, 0, 0, {row: (1, {"2xx": 1})})
    assert not served.release.exists()
    served.release.touch()
