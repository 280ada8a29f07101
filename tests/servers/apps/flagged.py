"""An ASGI app inside a middleware whose object has flags by the names that servers use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

if TYPE_CHECKING:
    from metricsmw.adapters.types import ASGIApp, Message, Receive, Scope, Send


class Flagged:
    """One request in the middleware, whose flags say nothing of the client."""

    def __init__(self, send: Send) -> None:
        self.closed = self.disconnected = True
        self._send = send

    async def send(self, message: Message) -> None:
        await self._send(message)


def flagging(app: ASGIApp) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = Flagged(send).send
        await app(scope, receive, send)

    return middleware


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


app = flagging(wrap(hello, auth=public()))
