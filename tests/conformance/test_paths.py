"""Which requests are counted, and under which name, whatever their paths and methods are."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

from .drivers import ask, fetch, get, hello, wsgi_hello
from .outcomes import assert_counted, complete, rows

if TYPE_CHECKING:
    from collections.abc import Iterable

Request = Callable[..., bytes]
"""One whole request, by path and method, to an app that is wrapped twice, outside with settings."""


def over_wsgi(monitor: MetricsMonitor, asked: str, method: str = "GET", **settings: Any) -> bytes:
    app: Any = WSGIMetricsMiddleware(wsgi_hello, monitor)
    app = WSGIMetricsMiddleware(app, monitor, **settings)
    return get(app, asked.encode().decode("latin-1"), method)


def over_asgi(monitor: MetricsMonitor, asked: str, method: str = "GET", **settings: Any) -> bytes:
    app: Any = ASGIMetricsMiddleware(hello, monitor)
    app = ASGIMetricsMiddleware(app, monitor, **settings)
    return fetch(app, path=asked, method=method)


either = pytest.mark.parametrize("request_over", [over_wsgi, over_asgi], ids=["WSGI", "ASGI"])
PATTERN = re.compile(r"\.ico$")


@either
@pytest.mark.parametrize(
    ("exclude", "path", "counted"),
    [
        (["/static"], "/static", False),
        (["/static"], "/static/a.css", False),
        (["/static"], "/statics", False),  # a prefix of the path, and no more
        (["/static/"], "/statics", True),
        (["/static"], "/my/static", True),
        (["/a", "/b"], "/b", False),
        ("/a", "/a", False),
        ([PATTERN], "/favicon.ico", False),
        (PATTERN, "/favicon.ico", False),
        ([PATTERN], "/favicon.ico/x", True),
        (["/\u00fcber"], "/\u00fcber/uns", False),
        ([re.compile("\u00fc")], "/gr\u00fcn", False),
        ([], "/static", True),
    ],
)
def test_excluded_paths(
    request_over: Request, exclude: Any, path: str, counted: bool, monitor: MetricsMonitor
) -> None:
    """By the outermost middleware, for those further in, too."""
    assert request_over(monitor, path, exclude=exclude) == b"hello"
    assert_counted(monitor, *[complete()] * counted)


@pytest.mark.parametrize("kind", [WSGIMetricsMiddleware, ASGIMetricsMiddleware])
@pytest.mark.parametrize("path", ["", "/", "//", "metrics", "http://x/metrics", 7, b"/metrics"])
def test_a_path_that_is_none_is_refused(kind: Any, path: Any, monitor: MetricsMonitor) -> None:
    rule = re.escape(f"path must start with a slash and go on, like '/api/metrics', got {path!r}")
    with pytest.raises(ValueError, match=f"^{rule}$"):
        kind(hello, monitor, path=path)


@either
@pytest.mark.parametrize("below", ["/deep/er", "/deep/er/", "/deep/er/health"])
def test_a_path_may_have_slashes_at_its_end(
    request_over: Request, below: str, monitor: MetricsMonitor
) -> None:
    assert request_over(monitor, below, path="/deep/er//") != b"hello"
    assert_counted(monitor)
    assert request_over(monitor, "/deep/ernest", path="/deep/er//") == b"hello"
    assert_counted(monitor, complete())


@either
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"]
)
def test_methods(request_over: Request, method: str, monitor: MetricsMonitor) -> None:
    request_over(monitor, "/", method)
    assert rows(monitor) == {f"{method} <unmatched>": 1}


@either
@pytest.mark.parametrize("method", ["PROPFIND", "get", "", "\xff", "x" * 100_000])
def test_unknown_methods_share_a_row(
    request_over: Request, method: str, monitor: MetricsMonitor
) -> None:
    request_over(monitor, "/", method)
    request_over(monitor, "/", "BREW")
    assert rows(monitor) == {"_OTHER <unmatched>": 2}


@either
@pytest.mark.parametrize("path", ["/caf\xe9", "/%2e%2e/x", "", "*", "//x", "/\x00", "/\U0001f600"])
def test_odd_paths(request_over: Request, path: str, monitor: MetricsMonitor) -> None:
    assert request_over(monitor, path, path="/metrics", exclude=["/static"]) == b"hello"
    assert_counted(monitor, complete())
    assert rows(monitor) == {"GET <unmatched>": 1}


def not_found(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("404 Not Found", [])
    return [b"not found"]


def ask_wsgi(monitor: MetricsMonitor, numbers: range) -> None:
    app = WSGIMetricsMiddleware(not_found, monitor)
    for number in numbers:
        get(app, f"/none/{number}", f"M{number}" if number % 2 else "GET")


def ask_asgi(monitor: MetricsMonitor, numbers: range) -> None:
    routes = [Route("/item/{id}", lambda request: PlainTextResponse("item"))]
    app = ASGIMetricsMiddleware(Starlette(routes=routes), monitor)

    async def ask_all() -> None:
        for number in numbers:
            await ask(app, path=f"/none/{number}", method=f"M{number}" if number % 2 else "GET")

    asyncio.run(ask_all())


@pytest.mark.parametrize("ask_for", [ask_wsgi, ask_asgi])
def test_ten_thousand_paths_that_are_not_there(
    ask_for: Callable[[MetricsMonitor, range], None], monitor: MetricsMonitor
) -> None:
    ask_for(monitor, range(1_000))
    before = sys.getallocatedblocks()
    ask_for(monitor, range(1_000, 10_000))
    assert sys.getallocatedblocks() - before < 2_000
    assert monitor.total_requests == monitor.total_errors == 10_000
    assert rows(monitor) == {"GET <unmatched>": 5_000, "_OTHER <unmatched>": 5_000}
