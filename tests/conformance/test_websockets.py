"""WebSockets: the gauge is exact at each step, and none of them is in the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public

from .drivers import Exchange, new_scope
from .outcomes import assert_counted, faults

if TYPE_CHECKING:
    from metricsmw.adapters.types import ASGIApp, Message, Receive, Scope, Send

CONNECT: Message = {"type": "websocket.connect"}
TEXT: Message = {"type": "websocket.receive", "text": "hello"}
GONE: Message = {"type": "websocket.disconnect", "code": 1006}
ACCEPT: Message = {"type": "websocket.accept"}
CLOSE: Message = {"type": "websocket.close", "code": 1000}

Handler = Callable[["Receive", "Send", Callable[[], int]], Awaitable[None]]


def handshake(path: str = "/ws", **more: Any) -> Scope:
    return new_scope(path, **more) | {"type": "websocket"}


def served(
    handler: Handler, monitor: MetricsMonitor, *messages: Message, **request: Any
) -> Exchange:
    """Run a handler on one handshake; it can ask how many connections are open."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(receive, send, monitor.get_websocket_connections)

    exchange = Exchange(dict(CONNECT), *map(dict, messages))
    measured = ASGIMetricsMiddleware(app, monitor, exclude=["/quiet"])
    try:
        asyncio.run(measured(handshake(**request), exchange.receive, exchange.send))  # type: ignore[arg-type]
    finally:
        assert monitor.get_websocket_connections() == 0
        assert_counted(monitor)
        assert faults(monitor) == 0
    return exchange


async def accepted(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
    assert await receive() == CONNECT
    assert connections() == 0
    await send(dict(ACCEPT))
    assert connections() == 1


def test_the_client_ends_it(monitor: MetricsMonitor) -> None:
    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        await accepted(receive, send, connections)
        assert await receive() == TEXT
        await send({"type": "websocket.send", "text": "hello"})
        assert connections() == 1
        assert await receive() == GONE
        assert connections() == 0
        await send(dict(CLOSE))  # as some do all the same
        assert connections() == 0

    sent = served(handler, monitor, TEXT, GONE).sent
    assert sent == [ACCEPT, {"type": "websocket.send", "text": "hello"}, CLOSE]


def test_the_server_ends_it(monitor: MetricsMonitor) -> None:
    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        await accepted(receive, send, connections)
        await send(dict(CLOSE))
        assert connections() == 0
        assert await receive() == GONE

    assert served(handler, monitor, GONE).sent == [ACCEPT, CLOSE]


def test_a_refused_handshake_is_none(monitor: MetricsMonitor) -> None:
    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        await send(dict(CLOSE))
        assert connections() == 0

    assert served(handler, monitor).sent == [CLOSE]


def test_a_denial_response_is_none(monitor: MetricsMonitor) -> None:
    denial: list[Message] = [
        {"type": "websocket.http.response.start", "status": 403, "headers": []},
        {"type": "websocket.http.response.body", "body": b"no"},
    ]

    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        for message in denial:
            await send(message)
            assert connections() == 0

    assert served(handler, monitor).sent == denial


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_that_fails(
    error: type[BaseException], when: str, monitor: MetricsMonitor
) -> None:
    raised = error()

    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        if when == "after":
            await accepted(receive, send, connections)
        raise raised

    with pytest.raises(error) as caught:
        served(handler, monitor)
    if error is ValueError:  # asyncio makes its own of the others
        assert caught.value is raised


def test_a_handler_that_just_returns(monitor: MetricsMonitor) -> None:
    served(accepted, monitor)


def test_an_accept_that_fails_opens_nothing(monitor: MetricsMonitor) -> None:
    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        with pytest.raises(OSError, match="gone"):
            await send(dict(ACCEPT))
        assert connections() == 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def fails(message: Message) -> None:
            raise OSError("gone")

        await ASGIMetricsMiddleware(inner, monitor)(scope, receive, fails)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(receive, send, monitor.get_websocket_connections)

    exchange = Exchange(dict(CONNECT))
    asyncio.run(app(handshake(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert monitor.get_websocket_connections() == 0


def test_a_send_that_finds_nobody_ends_it(monitor: MetricsMonitor) -> None:
    """What servers raise is an OSError; the handler may live on."""

    async def gone(message: Message) -> None:
        if message["type"] == "websocket.send":
            raise ConnectionResetError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send, monitor.get_websocket_connections)
        with pytest.raises(ConnectionResetError):
            await send({"type": "websocket.send", "text": "anybody?"})
        assert monitor.get_websocket_connections() == 0

    exchange = Exchange(dict(CONNECT))
    exchange.on_send = gone
    measured = ASGIMetricsMiddleware(app, monitor)
    asyncio.run(measured(handshake(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert monitor.get_websocket_connections() == 0


def test_a_server_that_is_asked(monitor: MetricsMonitor) -> None:
    """The app only sends, and the server drops what it sends to nobody."""

    class Hypercorn(Exchange):
        __module__ = "hypercorn.protocol.ws_stream"
        closed = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send, monitor.get_websocket_connections)
        await send({"type": "websocket.send", "text": "hello"})
        assert monitor.get_websocket_connections() == 1
        exchange.closed = True
        await send({"type": "websocket.send", "text": "hello"})
        assert monitor.get_websocket_connections() == 0

    exchange = Hypercorn(dict(CONNECT))
    measured = ASGIMetricsMiddleware(app, monitor)
    asyncio.run(measured(handshake(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert monitor.get_websocket_connections() == 0


@pytest.mark.parametrize("path", ["/quiet", "/quiet/ws"])
def test_an_excluded_path_is_in_no_gauge(path: str, monitor: MetricsMonitor) -> None:
    async def handler(receive: Receive, send: Send, connections: Callable[[], int]) -> None:
        await send(dict(ACCEPT))
        assert connections() == 0

    assert served(handler, monitor, path=path).sent == [ACCEPT]


def test_wrapped_twice_it_counts_once(monitor: MetricsMonitor) -> None:
    other = MetricsMonitor()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accepted(receive, send, monitor.get_websocket_connections)
        assert other.get_websocket_connections() == 1

    measured: ASGIApp = app
    for each in (monitor, other, monitor):
        measured = ASGIMetricsMiddleware(measured, each, path="/metrics", auth=public())
    exchange = Exchange(dict(CONNECT))
    asyncio.run(measured(handshake(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert monitor.get_websocket_connections() == other.get_websocket_connections() == 0


def test_many_at_once_that_all_break_off(monitor: MetricsMonitor) -> None:
    async def main() -> None:
        everybody_in, breaking_off = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(dict(ACCEPT))
            if monitor.get_websocket_connections() == 200:
                everybody_in.set()
            await breaking_off.wait()
            assert await receive() == GONE

        measured = ASGIMetricsMiddleware(app, monitor)
        exchanges = [Exchange(dict(GONE)) for _ in range(200)]
        tasks = [
            asyncio.ensure_future(measured(handshake(), each.receive, each.send))
            for each in exchanges
        ]
        await everybody_in.wait()
        for task in tasks[:50]:
            task.cancel()
        await asyncio.gather(*tasks[:50], return_exceptions=True)
        assert monitor.get_websocket_connections() == 150
        breaking_off.set()
        await asyncio.gather(*tasks[50:])
        assert monitor.get_websocket_connections() == 0

    asyncio.run(main())
    assert_counted(monitor)
