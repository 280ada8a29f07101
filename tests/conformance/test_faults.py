"""Metrics that fail: the application's answer is untouched, and the fault is logged and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.engine.recording.routes import RouteTables

from .drivers import (
    Exchange,
    call,
    fetch,
    get,
    hello,
    new_environ,
    new_scope,
    part,
    start,
    wsgi_hello,
)
from .outcomes import assert_counted, complete, failed, faults, gone
from .served.sites.django_site import make_wsgi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metricsmw.adapters.types import Receive, Scope, Send


def broken(*_: object, **__: object) -> Any:
    raise LookupError("broken")


class BrokenStr:
    """A user id that cannot be written down."""

    __str__ = broken


Run = Callable[..., None]
"""run(monitor, settings of the middleware …): one request that is whole, and its answer checked."""


def over_wsgi(monitor: MetricsMonitor, **settings: Any) -> None:
    assert get(WSGIMetricsMiddleware(wsgi_hello, monitor, **settings)) == b"hello"


def over_wsgi_streaming(monitor: MetricsMonitor, **settings: Any) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        wsgi_hello(environ, start_response)
        yield b"hel"
        yield b"lo"

    assert get(WSGIMetricsMiddleware(app, monitor, **settings)) == b"hello"


def over_asgi(monitor: MetricsMonitor, **settings: Any) -> None:
    assert fetch(ASGIMetricsMiddleware(hello, monitor, **settings)) == b"hello"


def over_asgi_streaming(monitor: MetricsMonitor, **settings: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"hel", more=True)
        await part(send, b"lo")

    assert fetch(ASGIMetricsMiddleware(app, monitor, **settings)) == b"hello"


class OwnError(Exception):
    """Raised by an application."""


def wsgi_failing(monitor: MetricsMonitor, **settings: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise OwnError

    with pytest.raises(OwnError) as caught:
        get(WSGIMetricsMiddleware(app, monitor, **settings))
    assert caught.value.__context__ is None


def asgi_failing(monitor: MetricsMonitor, **settings: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise OwnError

    with pytest.raises(OwnError) as caught:
        fetch(ASGIMetricsMiddleware(app, monitor, **settings))
    assert caught.value.__context__ is None


def over_django(monitor: MetricsMonitor, **settings: Any) -> None:
    from django.http import HttpResponse

    assert ask_django(monitor, lambda request: HttpResponse("hello"), **settings) == b"hello"


def over_django_streaming(monitor: MetricsMonitor, **settings: Any) -> None:
    from django.http import StreamingHttpResponse

    def view(request: Any) -> Any:
        return StreamingHttpResponse([b"hel", b"lo"])

    assert ask_django(monitor, view, **settings) == b"hello"


def django_failing(monitor: MetricsMonitor, **settings: Any) -> None:
    def view(request: Any) -> Any:
        raise OwnError

    with pytest.raises(OwnError) as caught:
        ask_django(monitor, view, **settings)
    assert caught.value.__context__ is None


def django_left(monitor: MetricsMonitor, **settings: Any) -> None:
    from django.http import StreamingHttpResponse

    def view(request: Any) -> Any:
        return StreamingHttpResponse([b"one", b"two"])

    assert ask_django(monitor, view, chunks=1, **settings) == b"one"


def ask_django(
    monitor: MetricsMonitor,
    view: Callable[[Any], Any],
    chunks: int | None = None,
    *,
    route: Callable[[Any], str] | None = None,
    user: Callable[[Any], Any] | None = None,
) -> bytes:
    """One request through Django's own middleware; so many chunks of the answer are read."""
    make_wsgi()
    from django.test import RequestFactory

    from metricsmw.adapters.django import MetricsMiddleware

    class Match:
        @property
        def route(self) -> str:
            return "" if route is None else route(self)

    class Measured(MetricsMiddleware):
        def user_of(self, request: Any) -> Any:
            return None if user is None else user(request)

    Measured.monitor = monitor
    request = RequestFactory().get("/")
    request.resolver_match = Match()  # type: ignore[assignment]
    response: Any = Measured(view)(request)
    try:
        return b"".join(islice(response, chunks))
    finally:
        response.close()


def wsgi_left(monitor: MetricsMonitor, **settings: Any) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        yield b"two"

    answer = call(WSGIMetricsMiddleware(app, monitor, **settings))
    assert next(iter(answer.body)) == b"one"
    answer.close()


def asgi_left(monitor: MetricsMonitor, **settings: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await start(send)
        await part(send)

    exchange = Exchange({"type": "http.disconnect"})
    app_ = ASGIMetricsMiddleware(app, monitor, **settings)
    asyncio.run(app_(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]


STREAMING: list[Run] = [over_wsgi_streaming, over_asgi_streaming, over_django_streaming]
WHOLE: list[Run] = [over_wsgi, over_asgi, over_django, *STREAMING]
FAILED: list[Run] = [wsgi_failing, asgi_failing, django_failing]
LEFT: list[Run] = [wsgi_left, asgi_left, django_left]
every_way = pytest.mark.parametrize("run", WHOLE + FAILED + LEFT)

TIMES = 3


def assert_told(monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """One line with its traceback, however often it failed; and each time counted."""
    assert faults(monitor) == TIMES
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("metricsmw", logging.ERROR)
    assert what in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    monitor.recorder.begin()  # which a gauge below zero would hide
    assert monitor.get_current_snapshot().requests_in_flight == 1
    monitor.recorder.cancel()


@every_way
@pytest.mark.parametrize(
    ("setting", "what"), [("route", "the route resolver"), ("user", "the user resolver")]
)
def test_a_resolver_that_fails(
    run: Run, setting: str, what: str, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is counted all the same."""
    for _ in range(TIMES):
        run(monitor, **{setting: broken})
    assert_told(monitor, caplog, what)
    assert monitor.total_requests == TIMES
    assert monitor.total_errors == (TIMES if run in FAILED else 0)


def test_a_server_that_cannot_be_asked(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it was itself that has closed the body: it counts as a client that has gone."""

    class Channel:
        __module__ = "waitress.channel"
        server = property(broken)

        def client_disconnected(self) -> bool:
            return True

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield from wsgi_hello(environ, start_response)
        yield b"more"

    for _ in range(TIMES):
        environ = new_environ(**{"waitress.client_disconnected": Channel().client_disconnected})
        body: Any = WSGIMetricsMiddleware(app, monitor)(environ, lambda *_: broken)
        assert next(iter(body)) == b"hello"
        body.close()
    assert_told(monitor, caplog, "asking the server for its client")
    assert_counted(monitor, *[gone()] * TIMES)


@pytest.mark.parametrize("run", WHOLE)
def test_a_user_that_cannot_be_written_down(
    run: Run, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(TIMES):
        run(monitor, user=lambda request: BrokenStr())
    assert_told(monitor, caplog, "the user resolver")
    assert_counted(monitor, *[complete()] * TIMES)


@every_way
@pytest.mark.parametrize("settings", [{}, {"route": lambda request: "/x"}])
def test_a_store_that_fails(
    run: Run,
    settings: dict[str, Any],
    monitor: MetricsMonitor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request is lost to the numbers, and no longer in flight."""
    # A complete response is recorded in one call, which looks up the route's row itself.
    monkeypatch.setattr(RouteTables, "find", broken)
    for name in ("end", "fail", "abandon"):
        monkeypatch.setattr(monitor.recorder, name, broken)
    for _ in range(TIMES):
        run(monitor, **settings)
    monkeypatch.undo()
    assert_told(monitor, caplog, "recording a request")
    assert_counted(monitor)


@pytest.mark.parametrize("run", STREAMING)
def test_a_first_byte_that_cannot_be_recorded(
    run: Run,
    monitor: MetricsMonitor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request is counted all the same."""
    monkeypatch.setattr(monitor.recorder, "streamed", broken)
    for _ in range(TIMES):
        run(monitor)
    monkeypatch.undo()
    assert_told(monitor, caplog, "recording a request")
    assert_counted(monitor, *[complete()] * TIMES)


@every_way
def test_a_store_that_fails_at_the_beginning(
    run: Run,
    monitor: MetricsMonitor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor.recorder, "begin_exchange", broken)
    for _ in range(TIMES):
        run(monitor)
    monkeypatch.undo()
    assert_told(monitor, caplog, "recording a request")
    assert_counted(monitor)


@every_way
def test_a_store_that_fails_altogether(
    run: Run, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RouteTables, "find", broken)
    for name in ("end", "fail", "abandon", "streamed", "user", "cancel"):
        monkeypatch.setattr(monitor.recorder, name, broken)
    run(monitor, user=lambda request: "ada")
    monkeypatch.undo()
    assert faults(monitor)
    assert monitor.total_requests == 0


@pytest.mark.parametrize("run", WHOLE)
def test_the_same_requests_without_a_fault(
    run: Run, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    run(monitor, route=lambda request: "/x", user=lambda request: "ada")
    assert_counted(monitor, complete())
    assert monitor.get_active_user_ids() == ["ada"]
    assert faults(monitor) == 0
    assert not caplog.records


def test_a_websocket_that_cannot_be_counted(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not counted as opened is not counted as closed, either."""
    monitor.increment_websocket_connections()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        monkeypatch.undo()

    for _ in range(TIMES):
        monkeypatch.setattr(monitor.recorder, "websocket_opened", broken)
        exchange = Exchange()
        scope = new_scope() | {"type": "websocket"}
        asyncio.run(
            ASGIMetricsMiddleware(app, monitor)(scope, exchange.receive, exchange.send)  # type: ignore[arg-type]
        )
        assert [message["type"] for message in exchange.sent] == ["websocket.accept"]
    assert_told(monitor, caplog, "counting a WebSocket")
    assert monitor.get_websocket_connections() == 1


def test_a_segment_that_cannot_be_opened(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    monkeypatch.setattr(monitor.recorder, "open", broken)
    for _ in range(TIMES):
        exchange = Exchange()
        asyncio.run(
            ASGIMetricsMiddleware(app, monitor)(
                {"type": "lifespan"}, exchange.receive, exchange.send
            )  # type: ignore[arg-type]
        )
    monkeypatch.undo()
    assert seen == ["lifespan"] * TIMES
    assert_told(monitor, caplog, "opening the worker's segment")


@pytest.mark.parametrize("kind", [WSGIMetricsMiddleware, ASGIMetricsMiddleware])
def test_an_auth_policy_that_fails(
    kind: Any, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """The sub-app answers 500 and says nothing; the application goes on."""
    is_wsgi = kind is WSGIMetricsMiddleware
    app = kind(wsgi_hello if is_wsgi else hello, monitor, path="/metrics", auth=broken)
    ask: Callable[..., bytes] = get if is_wsgi else fetch
    for _ in range(TIMES):
        assert ask(app, path="/metrics/current") == b'{"error":"Internal error"}'
    assert ask(app, path="/") == b"hello"
    assert_told(monitor, caplog, "")
    assert_counted(monitor, complete())


def test_what_failed_before_does_not_hide_what_fails_now(monitor: MetricsMonitor) -> None:
    """An exception of the application has no fault of ours for its context."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        raise OwnError

    with pytest.raises(OwnError) as caught:
        fetch(ASGIMetricsMiddleware(app, monitor, route=broken, user=broken))
    assert caught.value.__context__ is None
    assert_counted(monitor, failed(200))
