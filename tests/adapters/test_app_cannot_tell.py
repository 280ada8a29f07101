"""What could tell a measured app from a bare one: bodies that nobody closes, results, carriers."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Nothing here is to wait for the garbage collector."""
    gc.disable()
    yield
    gc.enable()


def environ_of(path: str = "/") -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    return environ


def ignore(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
    return lambda data: None


def settled(monitor: MetricsMonitor, total: int, timed: int) -> None:
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (total, 0)
    assert snapshot.requests_in_flight == 0
    assert sum(sum(row["statuses"].values()) for row in monitor.get_routes()) == timed


# --- bodies that nobody closes --------------------------------------------------------------------


class Parts:
    """A body that is no generator, with a `close` of its own."""

    def __init__(self) -> None:
        self.left = [b"one", b"two"]
        self.closed = False

    def __iter__(self) -> Parts:
        return self

    def __next__(self) -> bytes:
        if not self.left:
            raise StopIteration
        return self.left.pop()

    def close(self) -> None:
        self.closed = True


class Bodies:
    """Apps that differ in their body only, and what became of it."""

    def __init__(self) -> None:
        self.finished = False

    def generator(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            yield b"one"
            yield b"two"
        finally:
            self.finished = True

    def returned(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return (part for part in (b"one", b"two"))

    def parts(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Parts()


APPS = ["generator", "returned", "parts"]


@pytest.mark.parametrize("name", APPS)
def test_an_exhausted_body_that_nobody_closes_is_whole(name: str, monitor: MetricsMonitor) -> None:
    app = WSGIMetricsMiddleware(getattr(Bodies(), name), monitor, route=lambda environ: "/")
    for _ in range(3):
        assert sorted(app(environ_of(), ignore)) == [b"one", b"two"]
    settled(monitor, 3, 3)


@pytest.mark.parametrize("name", APPS)
def test_a_body_that_is_dropped_in_the_middle_is_a_client_gone(
    name: str, monitor: MetricsMonitor
) -> None:
    app = WSGIMetricsMiddleware(getattr(Bodies(), name), monitor, route=lambda environ: "/")
    environ = environ_of()
    before = dict(environ)
    body = iter(app(environ, ignore))
    assert next(body) in (b"one", b"two")
    assert monitor.get_current_snapshot().requests_in_flight == 1
    del body
    settled(monitor, 1, 0)
    assert environ == before


@pytest.mark.parametrize(("name", "timed"), [("generator", 0), ("returned", 1), ("parts", 1)])
def test_a_body_that_is_dropped_unread_is_whole_if_it_was_begun(
    name: str, timed: int, monitor: MetricsMonitor
) -> None:
    app = WSGIMetricsMiddleware(getattr(Bodies(), name), monitor, route=lambda environ: "/")
    app(environ_of(), ignore)
    settled(monitor, 1, timed)


def test_a_dropped_body_runs_what_the_app_left_to_the_end_at_once(monitor: MetricsMonitor) -> None:
    bodies = Bodies()
    app = WSGIMetricsMiddleware(bodies.generator, monitor)
    body = iter(app(environ_of(), ignore))
    next(body)
    assert not bodies.finished
    del body
    assert bodies.finished


def test_an_exhausted_body_that_is_closed_later_counts_once(monitor: MetricsMonitor) -> None:
    app = WSGIMetricsMiddleware(Bodies().parts, monitor, route=lambda environ: "/")
    body: Any = app(environ_of(), ignore)
    assert len(list(body)) == 2
    body.close()
    body.close()
    del body
    settled(monitor, 1, 1)


def bridges() -> dict[str, Callable[[Any], Any]]:
    import a2wsgi
    from asgiref.wsgi import WsgiToAsgi
    from starlette.middleware.wsgi import WSGIMiddleware as Starlette
    from uvicorn.middleware.wsgi import WSGIMiddleware as Uvicorn

    return {
        "asgiref": WsgiToAsgi,
        "starlette": Starlette,
        "uvicorn": Uvicorn,
        "a2wsgi": a2wsgi.WSGIMiddleware,
    }


@pytest.mark.parametrize("name", ["asgiref", "starlette", "uvicorn", "a2wsgi"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_below_a_bridge_to_asgi_every_body_is_counted(name: str, monitor: MetricsMonitor) -> None:
    app = WSGIMetricsMiddleware(Bodies().generator, monitor, route=lambda environ: "/")
    bridged = bridges()[name](app)
    for _ in range(2):
        assert ask(bridged)[1] == b"onetwo"
    settled(monitor, 2, 2)


# --- what an ASGI app returns, and scopes made by hand --------------------------------------------


def ask(app: Any, scope: dict[str, Any] | None = None) -> tuple[Any, bytes]:
    """What the app returns, and the body that it sends."""
    body = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    whole = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": [], "root_path": "", "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    return asyncio.run(app(whole if scope is None else scope, receive, send)), body


async def odd(scope: Any, receive: Any, send: Any) -> str:
    if scope.get("type", "http") == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
    return "returned"


@pytest.mark.parametrize("scope", [None, {"type": "lifespan"}, {"type": "other"}, {}])
def test_what_an_app_returns_is_returned(scope: Any, monitor: MetricsMonitor) -> None:
    app = ASGIMetricsMiddleware(odd, monitor, path="/api/metrics")
    assert ask(app, scope)[0] == "returned"


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "http"},
        {"type": "http", "path": "/"},
        {"type": "http", "method": "GET"},
        {"type": "http", "method": "GET", "path": "/", "headers": []},
    ],
)
@pytest.mark.parametrize("settings", [{}, {"path": "/api/metrics"}, {"exclude": ["/none"]}])
def test_a_scope_made_by_hand_is_answered_and_counted(
    scope: dict[str, Any], settings: dict[str, Any], monitor: MetricsMonitor
) -> None:
    app = ASGIMetricsMiddleware(odd, monitor, route=lambda scope: "/", **settings)
    assert ask(app, dict(scope)) == ("returned", b"hello")
    settled(monitor, 1, 1)


@pytest.mark.parametrize("scope", [{"type": "websocket"}, {"type": "websocket", "path": "/"}])
def test_a_websocket_s_scope_made_by_hand_is_answered(
    scope: dict[str, Any], monitor: MetricsMonitor
) -> None:
    app = ASGIMetricsMiddleware(odd, monitor, exclude=["/none"])
    assert ask(app, dict(scope))[0] == "returned"


@pytest.mark.parametrize("environ", [{}, {"PATH_INFO": "/"}, {"REQUEST_METHOD": "GET"}])
@pytest.mark.parametrize("settings", [{}, {"path": "/api/metrics"}, {"exclude": ["/none"]}])
@pytest.mark.parametrize("name", APPS)
def test_an_environ_made_by_hand_is_answered_and_counted(
    environ: dict[str, Any], settings: dict[str, Any], name: str, monitor: MetricsMonitor
) -> None:
    app = WSGIMetricsMiddleware(
        getattr(Bodies(), name), monitor, route=lambda environ: "/", **settings
    )
    assert len(list(app(dict(environ), ignore))) == 2
    settled(monitor, 1, 1)


@pytest.mark.parametrize("exclude", [[], ["/"]])
def test_a_scope_is_the_server_s_again_when_the_request_is_over(
    exclude: list[str], monitor: MetricsMonitor
) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
    before = dict(scope)
    ask(ASGIMetricsMiddleware(odd, monitor, path="/api/metrics", exclude=exclude), scope)
    assert scope == before
    json.dumps(scope)
