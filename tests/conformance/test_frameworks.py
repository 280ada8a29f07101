"""The matrix of frameworks and cases within this process, by the plainest servers."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

from . import drivers
from .framework_kit import SITES, Answer, FrameworkKit, Numbers, row_of, site_of
from .served.sites import UNMATCHED, Site


class Exchange(drivers.Exchange):
    """Answers a whole response with a disconnect, as servers do."""

    def __init__(self, body: bytes, release: Path) -> None:
        super().__init__({"type": "http.request", "body": body, "more_body": False})
        self.release = release
        self.over = asyncio.Event()

    async def receive(self) -> Any:
        if not self.messages:
            await self.over.wait()
            return dict(drivers.DISCONNECT)
        return await super().receive()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message.get("body"):
            self.release.touch()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.over.set()


class InProcess:
    """A site, bare and measured; below a `prefix`, by SCRIPT_NAME or root_path."""

    def __init__(
        self, site: Site, monitor: MetricsMonitor, release: Path, prefix: str = ""
    ) -> None:
        self.site = site
        self.monitor = monitor
        self.release = release
        self.prefix = prefix
        self.bare = site.make()
        self.measured: Any = wrap(site.make(), monitor)

    def ask(self, method: str, path: str, body: bytes = b"", *, bare: bool = False) -> Answer:
        app = self.bare if bare else self.measured
        self.release.unlink(missing_ok=True)
        if self.site.is_asgi:
            return asyncio.run(self.ask_asgi(app, method, path, body))
        return self.ask_wsgi(app, method, path, body)

    def ask_wsgi(self, app: Any, method: str, path: str, body: bytes) -> Answer:
        path, _, query = path.partition("?")
        environ = drivers.new_environ(
            unquote_to_bytes(path).decode("latin-1"),
            method,
            SCRIPT_NAME=self.prefix,
            QUERY_STRING=query,
            CONTENT_LENGTH=str(len(body)),
            REMOTE_ADDR="127.0.0.1",
            SERVER_PROTOCOL="HTTP/1.1",
            **{"wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO()},
        )
        answer = drivers.Answer()
        parts: list[bytes] = []
        error = None
        try:
            answer.body = app(environ, answer.start_response)
            try:
                for part in answer.body:
                    parts.append(part)
                    self.release.touch()
            finally:
                answer.close()
        except Exception as raised:
            error = type(raised).__name__
        return Answer(int(answer.status[:3] or 500), answer.headers, b"".join(parts), error)

    async def ask_asgi(self, app: Any, method: str, path: str, body: bytes) -> Answer:
        path, _, query = path.partition("?")
        exchange = Exchange(body, self.release)
        scope = drivers.new_scope(
            (self.prefix if self.site.path_has_root else "")
            + unquote_to_bytes(path).decode("utf-8", "replace"),
            method,
            raw_path=path.encode(),
            root_path=self.prefix,
            query_string=query.encode(),
            headers=[(b"host", b"test"), (b"content-length", str(len(body)).encode())],
            client=("127.0.0.1", 1),
            server=("127.0.0.1", 80),
        )
        error = None
        try:
            await app(scope, exchange.receive, exchange.send)
        except Exception as raised:
            error = type(raised).__name__
        status, headers = 500, []
        for message in exchange.sent:
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(a.decode(), b.decode("latin-1")) for a, b in message["headers"]]
        return Answer(status, headers, exchange.body, error)

    def numbers(self, requests: int) -> Numbers:
        snapshot = self.monitor.get_current_snapshot()
        rows = {
            f"{row['method']} {row['route']}": (row["requests"], row["statuses"])
            for row in self.monitor.get_routes()
        }
        return Numbers(
            snapshot.total_requests, snapshot.total_errors, snapshot.requests_in_flight, rows
        )

    def reset(self) -> None:
        self.monitor.reset_statistics()

    def table(self) -> list[dict[str, Any]]:
        return self.monitor.get_routes()


@pytest.fixture(scope="module", params=SITES)
def name(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="module")
def served(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    site = site_of(name)
    release = tmp_path_factory.mktemp("release") / "release"
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RELEASE", str(release))
        stack.enter_context(site.around())
        monitor = stack.enter_context(MetricsMonitor())
        yield InProcess(site, monitor, release)


class TestFrameworks(FrameworkKit):
    """All of the kit, for each site."""

    @pytest.mark.parametrize("request_line", ["GET /items/7", "GET /mounted/things/7", "GET /none"])
    def test_below_a_prefix(self, served: InProcess, request_line: str) -> None:
        """Which is part of a template, as clients see it."""
        mounted = InProcess(served.site, served.monitor, served.release, "/shop")
        method, path = request_line.split()
        served.reset()
        answer = mounted.ask(method, path)
        assert answer.status == served.ask(method, path, bare=True).status
        row = row_of(served.site, request_line)
        if not row.endswith(UNMATCHED):
            row = row.replace(" ", " /shop")
        assert list(served.numbers(1).rows) == [row]

    def test_many_paths_that_are_not_there_take_no_memory(self, served: InProcess) -> None:
        """Those of the framework's own aside: it is the bare one that is compared with."""
        logging.disable()  # what is logged is kept, requests and all
        try:
            grown = {bare: self.grown(served, bare) for bare in (True, False)}
        finally:
            logging.disable(logging.NOTSET)
        assert grown[False] - grown[True] < 500

    def grown(self, served: InProcess, bare: bool) -> int:
        for number in range(700):
            if number == 200:
                gc.collect()
                before = sys.getallocatedblocks()
            served.ask("GET", f"/none/{number}", bare=bare)
        gc.collect()
        return sys.getallocatedblocks() - before

    def test_wrapped_twice_it_counts_once(self, served: InProcess) -> None:
        twice = InProcess(served.site, served.monitor, served.release)
        twice.measured = wrap(twice.measured, served.monitor)
        served.reset()
        assert twice.ask("GET", "/items/7").body == b"item 7" or not served.site.has_router
        assert list(served.numbers(1).rows) == [row_of(served.site, "GET /items/7")]
        assert served.numbers(1).requests == 1
