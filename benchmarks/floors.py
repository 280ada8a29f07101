"""The least a middleware can do: wrappers that take the time and the status and record nothing.

Two floors a protocol. The *floor* takes the end when the app returns. The *honest floor* takes it
when the last byte was handed to the server, as the middlewares must: after the `send` of the last
body was awaited (ASGI), at the iterable's `close()` where the body is not a list (WSGI). It is
written in the cheapest way that we know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from raw import ASGIApp, Message, Receive, Scope, Send

    Headers = list[tuple[str, str]]


class ASGIFloor:
    """Start, status, end after the app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        def timed_send(message: Message) -> Awaitable[None]:
            nonlocal status
            if "status" in message:
                status = message["status"]
            return send(message)

        start = perf_counter()
        await self.app(scope, receive, timed_send)
        perf_counter() - start


class ASGIHonestFloor:
    """Start, status, end after the last body was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = ASGIExchange()
        exchange.inner = send
        exchange.start = perf_counter()
        await self.app(scope, receive, exchange.send)


class ASGIExchange:
    """One request: slots and a bound method are cheaper than a closure with as many variables."""

    __slots__ = ("inner", "start", "status")

    inner: Send
    start: float
    status: int

    def send(self, message: Message) -> Awaitable[None]:
        if "status" in message:
            self.status = message["status"]
        elif not message.get("more_body"):
            return self.send_last(message)
        return self.inner(message)

    async def send_last(self, message: Message) -> None:
        await self.inner(message)
        perf_counter() - self.start


class WSGIFloor:
    """Start, status, end when the app returns."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status = ""

        def timed_start(
            line: str, headers: Headers, exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal status
            status = line
            if exc_info is None:
                return start_response(line, headers)
            return start_response(line, headers, exc_info)

        start = perf_counter()
        body = self.app(environ, timed_start)
        perf_counter() - start
        return body


class WSGIHonestFloor:
    """Start, status, end when the app returns a list, else at `close()`."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = WSGIExchange()
        exchange.inner = start_response
        exchange.start = perf_counter()
        body = self.app(environ, exchange.start_response)
        if type(body) is list:
            perf_counter() - exchange.start
            return body
        exchange.body = body
        return exchange


class WSGIExchange:
    """One request, and its body until `close()`; the bytes do not pass through it."""

    __slots__ = ("body", "inner", "start", "status")

    body: Iterable[bytes]
    inner: StartResponse
    start: float
    status: str

    def start_response(
        self, line: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        self.status = line
        if exc_info is None:
            return self.inner(line, headers)
        return self.inner(line, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)

    def close(self) -> None:
        self.body.close()  # type: ignore[attr-defined]
        perf_counter() - self.start
