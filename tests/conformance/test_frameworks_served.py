"""The matrix of frameworks and cases under real servers: each framework, each server."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kits.routes_kit import TOKEN, Api
from kits.servers import Server, serve

from .framework_kit import STREAM, FrameworkKit, Numbers, site_of
from .plain import Answer
from .served.sites import Site
from .test_servers import connect, hang_up

SERVED = Path(__file__).parent / "served"
SERVERS: dict[str, tuple[str, list[str]]] = {
    "gunicorn-sync": ("gunicorn", []),
    "gunicorn-gthread": ("gunicorn", ["--worker-class", "gthread", "--threads", "4"]),
    "gunicorn-gevent": ("gunicorn", ["--worker-class", "gevent"]),
    "waitress": ("waitress", []),
    "wsgiref": ("wsgiref", []),
    "uwsgi": ("uwsgi", ["--pythonpath", str(SERVED)]),
    "granian-wsgi": ("granian", ["--interface", "wsgi"]),
    "uvicorn-h11": ("uvicorn", ["--http", "h11"]),
    "uvicorn-httptools": ("uvicorn", ["--http", "httptools"]),
    "hypercorn": ("hypercorn", []),
    "granian-asgi": ("granian", ["--interface", "asgi"]),
}
# No framework is without a server, and no server without a framework.
PAIRS = [
    ("raw_wsgi", "wsgiref"),
    ("raw_wsgi", "gunicorn-sync"),
    ("flask_site", "gunicorn-gthread"),
    ("flask_site", "uwsgi"),
    ("dispatcher_site", "waitress"),
    ("django_site", "gunicorn-gevent"),
    ("falcon_site", "granian-wsgi"),
    ("bottle_site", "waitress"),
    ("pyramid_site", "gunicorn-sync"),
    ("flask_site", "granian-wsgi"),
    ("django_site", "uwsgi"),
    ("falcon_site", "gunicorn-gthread"),
    ("raw_asgi", "granian-asgi"),
    ("raw_asgi", "hypercorn"),
    ("raw_asgi", "uvicorn-h11"),
    ("django_asgi_site", "granian-asgi"),
    ("django_asgi_site", "uvicorn-httptools"),
    ("starlette_site", "hypercorn"),
    ("fastapi_site", "uvicorn-h11"),
    ("quart_site", "hypercorn"),
    ("litestar_site", "granian-asgi"),
    ("falcon_asgi_site", "uvicorn-httptools"),
]


class OverHTTP:
    """A site under a server."""

    def __init__(self, site: Site, server: Server, release: Path) -> None:
        self.site = site
        self.server = server
        self.release = release
        self.api = Api(server)

    def ask(self, method: str, path: str, body: bytes = b"", *, bare: bool = False) -> Answer:
        return self._ask(method, path, body, bare)

    def ask_slowly(self) -> float:
        answer = self._ask("GET", "/stream", slow=True)
        assert answer.body == STREAM
        return self.held

    def _ask(
        self, method: str, path: str, body: bytes = b"", bare: bool = False, slow: bool = False
    ) -> Answer:
        is_stream = (method, path) == ("GET", "/stream")
        if is_stream:
            self.release.unlink(missing_ok=True)
        else:
            self.release.touch()
        start = time.monotonic()
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=20)
        headers = {"Connection": "close", **({"X-Bare": "1"} if bare else {})}
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            first = response.read1(4) if is_stream else b""
            if slow:  # at least as much as it took so far
                self.held = max(0.1, time.monotonic() - start)
                time.sleep(self.held)
            self.release.touch()
            return Answer(response.status, response.getheaders(), first + response.read())
        except (OSError, http.client.HTTPException):
            if path != "/broken":
                raise
            # Whatever came before: granian may not even have sent the headers.
            return Answer(200, [], b"", "broken off")
        finally:
            connection.close()

    def leave(self, path: str) -> None:
        connection = connect(self.server, f"GET {path} HTTP/1.1")
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


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OverHTTP]:
    site, host = request.param
    name, args = SERVERS[host]
    release = tmp_path_factory.mktemp("release") / "release"
    env = {
        "METRICSMW_TOKEN": TOKEN,
        "SITE": site,
        "RELEASE": str(release),
        "PYTHONPATH": str(SERVED),
    }
    with serve(name, "site_app:app", args=args, env=env) as server:
        yield OverHTTP(site_of(site), server, release)


class TestFrameworksServed(FrameworkKit):
    """All of the kit, for each pair."""

    def test_a_client_that_leaves_in_the_middle_of_a_body(self, served: OverHTTP) -> None:
        if served.site.never_asks and served.server.name == "granian":
            pytest.skip("it tells of a client that has gone by `receive` only")
        super().test_a_client_that_leaves_in_the_middle_of_a_body(served)
