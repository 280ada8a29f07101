"""Requests that fail count once, whatever fails with them, and whatever they asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send


class OwnError(Exception):
    """Raised by an application."""


def broken(*_: object) -> Any:
    raise LookupError("broken")


def wsgi_broken_stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"one"
    yield b"two"
    raise OwnError


async def asgi_broken_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    raise OwnError


def over_wsgi(app: Any, monitor: MetricsMonitor) -> None:
    measured = WSGIMetricsMiddleware(app, monitor)
    body: Any = measured({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: lambda data: None)
    try:
        for _ in body:
            pass
    finally:
        body.close()


def over_asgi(app: Any, monitor: MetricsMonitor) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: object) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/"}
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(scope, receive, send))


Serve = Callable[..., None]
BROKEN_STREAMS = [(over_wsgi, wsgi_broken_stream), (over_asgi, asgi_broken_stream)]


@pytest.mark.parametrize(("serve", "app"), BROKEN_STREAMS)
def test_a_first_byte_of_a_broken_stream_that_cannot_be_recorded(serve: Serve, app: Any) -> None:
    with MetricsMonitor() as monitor:
        monitor.recorder.streamed = broken
        monitor.recorder.begin()  # of another one: less than none in flight would show as none
        with pytest.raises(OwnError):
            serve(app, monitor)
        assert monitor.get_current_snapshot().requests_in_flight == 1
        assert (monitor.total_requests, monitor.total_errors) == (1, 1)
        assert monitor.get_health()["faults"] == 1


def test_asking_for_a_websocket_hides_no_exception() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise OwnError

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_UPGRADE": "websocket"}
    with MetricsMonitor() as monitor:
        with pytest.raises(OwnError):
            WSGIMetricsMiddleware(app, monitor)(environ, lambda *_: lambda data: None)
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.total_requests, snapshot.total_errors) == (1, 1)
        assert snapshot.requests_in_flight == 0


@pytest.mark.parametrize(("serve", "app"), BROKEN_STREAMS)
def test_the_class_of_an_exception_that_escapes_is_told(serve: Serve, app: Any) -> None:
    with MetricsMonitor() as monitor:
        with pytest.raises(OwnError):
            serve(app, monitor)
        (total,) = (one for one in monitor.read().server.route_totals() if one.answer.error)
        assert total.answer.status == 200  # as it was sent
        assert total.answer.error == f"{OwnError.__module__}.OwnError"
        assert monitor.total_errors == 1
