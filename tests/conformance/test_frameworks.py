"""The matrix of frameworks and cases within this process, by the plainest servers."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

from .drivers import wsgi_hello
from .framework_kit import SITES, FrameworkKit, Numbers, row_of, site_of
from .outcomes import rows
from .plain import Answer, Plain
from .served.sites import UNMATCHED, Site

PATHS = int(os.environ.get("CONFORMANCE_PATHS", "700"))
"""How many paths each framework is asked for that are not there; the raw apps, always 10,000."""


class InProcess:
    """A site, bare and measured; below a `prefix`, by SCRIPT_NAME or root_path."""

    def __init__(
        self, site: Site, monitor: MetricsMonitor, release: Path, prefix: str = ""
    ) -> None:
        self.site = site
        self.monitor = monitor
        self.release = release
        self.client = Plain(release, site.is_asgi, prefix, site.path_has_root)
        self.bare = site.make()
        self.measured: Any = wrap(site.make(), monitor)

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
        for number in range(PATHS):
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
