"""The matrix of frameworks and cases within this process, by the plainest servers."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock

from .framework_kit import (
    REQUESTS,
    SITES,
    STREAM,
    FrameworkKit,
    Numbers,
    ask_both,
    assert_unmatched,
    row_of,
    site_of,
)
from .outcomes import PRECISION
from .plain import Answer, Plain
from .served import sites
from .served.sites import FORMS, INSIDE, OUTSIDE, Site

NOT_THERE = [f"/none/{number}?x={number}" for number in range(10_000)]


class InProcess:
    """A site in each of its forms."""

    def __init__(
        self, site: Site, monitor: MetricsMonitor, clock: ManualClock, release: Path
    ) -> None:
        self.site = site
        self.monitor = monitor
        self.clock = clock
        self.client = Plain(release, site.is_asgi)
        measure = partial(wrap, monitor=monitor, auth=public())
        self.forms = {form: make(site, measure) for form, make in FORMS.items()}
        self.bare = self.forms["bare"]
        self.measured = self.forms["measured"]

    def ask(self, method: str, path: str, body: bytes = b"", form: str = "measured") -> Answer:
        return self.client.ask(self.forms[form], method, path, body)

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

    raising = ("measured", "twice", "mounted", "around")

    def test_each_request(self, served: InProcess) -> None:
        for request_line in REQUESTS:
            served.reset()
            row, status, is_error = ask_both(served, request_line)
            expected = Numbers(1, is_error, 0, {row: (1, {status: 1})})
            assert served.numbers(1) == expected, request_line

    def test_paths_that_are_not_there_share_a_row(self, served: InProcess) -> None:
        """Nor do they take memory, but for what the framework itself keeps of them."""
        logging.disable()  # what is logged is kept, requests and all
        try:
            bare = self.grown(lambda paths: served.client.statuses(served.bare, paths))
            served.reset()
            measured = self.grown(served.ask_all)
            # Django's door for ASGI makes a thread for each request: half a minute for all.
            paths = NOT_THERE[: 2000 if served.site is site_of("django_asgi_site") else None]
            served.ask_all(paths[700:])
        finally:
            logging.disable(logging.NOTSET)
        assert measured - bare < 500
        assert_unmatched(served, len(paths))

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
        served = InProcess(served.site, monitor, served.clock, served.client.release)
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
