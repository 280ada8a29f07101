"""The matrix of frameworks and cases within this process, by the plainest servers."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock

from .drivers import wsgi_hello
from .framework_kit import SITES, STREAM, FrameworkKit, Numbers, assert_unmatched, row_of, site_of
from .outcomes import PRECISION, rows
from .plain import Answer, Plain
from .served import sites
from .served.sites import INSIDE, OUTSIDE, UNMATCHED, Site

PATHS = int(os.environ.get("CONFORMANCE_PATHS", "700"))
"""How many paths each framework is asked for that are not there, 700 or more."""
NOT_THERE = [f"/none/{number}?x={number}" for number in range(PATHS)]


class InProcess:
    """A site, bare and measured; below a `prefix`, by SCRIPT_NAME or root_path."""

    def __init__(
        self,
        site: Site,
        monitor: MetricsMonitor,
        clock: ManualClock,
        release: Path,
        prefix: str = "",
    ) -> None:
        self.site = site
        self.monitor = monitor
        self.clock = clock
        self.release = release
        self.client = Plain(release, site.is_asgi, prefix, site.path_has_root)
        self.bare = site.make()
        self.measured: Any = wrap(site.make(), monitor, auth=public())

    def ask(self, method: str, path: str, body: bytes = b"", *, bare: bool = False) -> Answer:
        return self.client.ask(self.bare if bare else self.measured, method, path, body)

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

    def read(self, path: str) -> Any:
        return json.loads(self.ask("GET", f"/api/metrics{path}").body)

    def ask_slowly(self, seconds: float = 1.0) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sites, "passing", lambda: self.clock.advance(seconds))
            assert self.ask("GET", "/stream").body == STREAM
        return seconds

    def leave(self, path: str) -> None:
        replace(self.client, leaves=True).ask(self.measured, "GET", path)

    def ask_all(self, paths: list[str]) -> None:
        assert self.client.statuses(self.measured, paths) <= {404}


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
        clock = ManualClock()
        monitor = stack.enter_context(MetricsMonitor(clock=clock))
        yield InProcess(site, monitor, clock, release)


class TestFrameworks(FrameworkKit):
    """All of the kit, for each site."""

    @pytest.mark.parametrize("request_line", ["GET /items/7", "GET /mounted/things/7", "GET /none"])
    def test_below_a_prefix(self, served: InProcess, request_line: str) -> None:
        """Which is part of a template, as clients see it."""
        mounted = InProcess(served.site, served.monitor, served.clock, served.release, "/shop")
        method, path = request_line.split()
        served.reset()
        answer = mounted.ask(method, path)
        assert answer.status == served.ask(method, path, bare=True).status
        row = row_of(served.site, request_line)
        if not row.endswith(UNMATCHED):
            row = row.replace(" ", " /shop")
        assert list(served.numbers(1).rows) == [row]

    def test_paths_that_are_not_there_share_a_row(self, served: InProcess) -> None:
        """Nor do they take memory, but for what the framework itself keeps of them."""
        logging.disable()  # what is logged is kept, requests and all
        try:
            bare = self.grown(lambda paths: served.client.statuses(served.bare, paths))
            served.reset()
            measured = self.grown(served.ask_all)
            served.ask_all(NOT_THERE[700:])
        finally:
            logging.disable(logging.NOTSET)
        assert measured - bare < 500
        assert_unmatched(served, len(NOT_THERE))

    def grown(self, ask_for: Callable[[list[str]], object]) -> int:
        """How many blocks of memory are kept of 500 paths, after 200 others."""
        ask_for(NOT_THERE[:200])
        gc.collect()
        before = sys.getallocatedblocks()
        ask_for(NOT_THERE[200:700])
        gc.collect()
        return sys.getallocatedblocks() - before

    def test_percentiles_of_a_route(self, served: InProcess) -> None:
        """They are those of requests that there were, within the bound; so is the first byte."""
        # Of its own: no more than sixteen routes have their first byte for themselves.
        monitor = MetricsMonitor(clock=served.clock)
        served = InProcess(served.site, monitor, served.clock, served.release)
        latencies = [0.001 * 1.37**number for number in range(20)]
        for latency in latencies:
            served.ask_slowly(latency)
        (row,) = served.read("/routes")["routes"]
        for percent, rank in ((50, 10), (95, 19), (99, 20)):
            exact = pytest.approx(latencies[rank - 1] * 1000, rel=PRECISION)
            assert row[f"latency_p{percent}_ms"] == exact
            assert row[f"latency_ttfb_p{percent}_ms"] < 0.01

    def test_what_runs_after_the_answer_is_in_no_latency(
        self, served: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And runs, as without us."""
        times = 0

        def passing() -> None:
            nonlocal times
            times += 1
            served.clock.advance(5)

        monkeypatch.setattr(sites, "passing", passing)
        served.reset()
        assert served.ask("GET", "/background").body == b"answered"
        assert times == served.site.afterwards
        assert list(served.numbers(1).rows) == [row_of(served.site, "GET /background")]
        assert served.monitor.get_current_snapshot().latency_max_ms == 0

    def test_the_context_goes_both_ways(self, served: InProcess) -> None:
        """What is set outside is seen inside, and as much the other way round as without us."""

        def around(app: Any) -> Any:
            def wsgi(environ: Any, start_response: Any) -> Any:
                OUTSIDE.set("outside")
                body = app(environ, start_response)
                seen.append(INSIDE.get())
                return body

            async def asgi(scope: Any, receive: Any, send: Any) -> None:
                OUTSIDE.set("outside")
                await app(scope, receive, send)
                seen.append(INSIDE.get())

            return asgi if served.site.is_asgi else wsgi

        seen: list[str] = []
        for app in (served.bare, served.measured):
            answer = copy_context().run(served.client.ask, around(app), "GET", "/context")
            assert answer.body == b"outside"
        assert seen[0] == seen[1]
        if not served.site.has_router:
            assert seen[0] == "inside"

    def test_wrapped_twice_it_counts_once(self, served: InProcess) -> None:
        twice = InProcess(served.site, served.monitor, served.clock, served.release)
        twice.measured = wrap(twice.measured, served.monitor)
        served.reset()
        assert twice.ask("GET", "/items/7").body == b"item 7" or not served.site.has_router
        assert list(served.numbers(1).rows) == [row_of(served.site, "GET /items/7")]
        assert served.numbers(1).requests == 1


@pytest.mark.parametrize("name", ["falcon_site", "pyramid_site", "bottle_site", "flask_site"])
def test_wrapped_inside_of_a_dispatcher(name: str, monitor: MetricsMonitor, tmp_path: Path) -> None:
    """Each app first and the whole then: counted once, under the template with its prefix."""
    site = site_of(name)
    app = wrap(DispatcherMiddleware(wsgi_hello, {"/shop": wrap(site.make(), monitor)}), monitor)
    client = Plain(tmp_path / "release", is_asgi=False)
    assert client.ask(app, "GET", "/shop/items/7").body == b"item 7"
    assert rows(monitor) == {f"GET /shop{site.item}": 1}


@pytest.mark.parametrize(
    "name", ["quart_site", "litestar_site", "fastapi_site", "django_asgi_site"]
)
def test_wrapped_inside_of_a_mount(name: str, monitor: MetricsMonitor, tmp_path: Path) -> None:
    site = site_of(name)
    client = Plain(tmp_path / "release", is_asgi=True)
    with site.around():
        app: Any = Starlette(routes=[Mount("/shop", wrap(site.make(), monitor))])
        assert client.ask(wrap(app, monitor), "GET", "/shop/items/7").body == b"item 7"
    assert rows(monitor) == {f"GET /shop{site.item}": 1}
