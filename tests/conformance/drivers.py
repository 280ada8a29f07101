"""The plainest servers: one call of an application, its answer held in the hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from metricsmw.adapters.types import ASGIApp, Message, Scope


def new_environ(path: str = "/", method: str = "GET", **more: Any) -> WSGIEnvironment:
    """A request's environ; `path` as WSGI has it."""
    environ: WSGIEnvironment = {"SCRIPT_NAME": "", "PATH_INFO": path}
    environ |= {"REQUEST_METHOD": method, "QUERY_STRING": "", **more}
    setup_testing_defaults(environ)
    return environ


@dataclass
class Answer:
    """What start_response was told, and the body that the application returned."""

    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    body: Any = None

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], None]:
        self.status, self.headers = status, headers
        return self.written.append

    def close(self) -> None:
        """What a server does when it is done with the body."""
        if hasattr(self.body, "close"):
            self.body.close()

    def read(self) -> bytes:
        """Iterate and close."""
        try:
            return b"".join([*self.written, *self.body])
        finally:
            self.close()


def call(app: WSGIApplication, environ: WSGIEnvironment | None = None, **request: Any) -> Answer:
    """Call a WSGI application; the body is neither read nor closed yet."""
    answer = Answer()
    answer.body = app(environ or new_environ(**request), answer.start_response)
    return answer


def get(app: WSGIApplication, path: str = "/", method: str = "GET", **more: Any) -> bytes:
    """One whole WSGI request; its body."""
    return call(app, path=path, method=method, **more).read()


def new_scope(path: str = "/", method: str = "GET", **more: Any) -> Scope:
    """A request's scope."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    scope.update(more)
    return scope


class Exchange:
    """The server's side of one ASGI request, WebSocket or lifespan.

    `messages` are what `receive` answers, in turn; after them it waits for ever. `sent` is what
    came. `on_send`, when it is set, is awaited with each message before that is accepted.
    """

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.sent: list[Message] = []
        self.on_send: Callable[[Message], Awaitable[None]] | None = None

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        if self.on_send is not None:
            await self.on_send(message)
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


async def start(send: Any, status: int = 200, **more: Any) -> None:
    """Send the start of a response."""
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers, **more})


async def part(send: Any, data: bytes = b"", *, more: bool = False) -> None:
    """Send a part of a response's body; the last one unless there is `more`."""
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def hello(scope: Scope, receive: Any, send: Any) -> None:
    """The ASGI application that says hello."""
    await start(send)
    await part(send, b"hello")


def wsgi_hello(environ: WSGIEnvironment, start_response: Any) -> Iterable[bytes]:
    """The WSGI application that says hello."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


async def ask(app: ASGIApp, scope: Scope | None = None, **request: Any) -> Exchange:
    """One whole ASGI request; the exchange as it was at its end."""
    exchange = Exchange(dict(REQUEST))
    await app(scope or new_scope(**request), exchange.receive, exchange.send)
    return exchange


def fetch(app: ASGIApp, scope: Scope | None = None, **request: Any) -> bytes:
    """One whole ASGI request in an event loop of its own; the body of the response."""
    return asyncio.run(ask(app, scope, **request)).body
