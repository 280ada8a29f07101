"""ASGI without a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import (
    OnPurposeError,
    Site,
    afterwards,
    async_broken,
    async_chunks,
    async_endless,
    context,
)

if TYPE_CHECKING:
    from metricsmw.adapters.types import Receive, Scope, Send


STREAMS = {"/stream": async_chunks, "/broken": async_broken, "/endless": async_endless}


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    how = scope["query_string"].decode().removeprefix("how=")
    assert (await receive())["type"] == "websocket.connect"
    if how == "refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if how == "raise":
            raise OnPurposeError
        await send({"type": "websocket.send", "text": message["text"]})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = scope["path"]
    text, status = "not found", 404
    if path == "/raise":
        raise OnPurposeError
    if path in STREAMS:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for chunk in STREAMS[path]():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})
        return
    if path == "/fail":
        text, status = "failed", 500
    elif path == "/context":
        text, status = context(), 200
    elif path == "/background":
        text, status = "answered", 200
    elif path == "/upload":
        length = 0
        more = True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        text, status = str(length), 200
    elif path == "/hello" or "/items/" in path or "/users/" in path or "/things/" in path:
        text, status = path, 200
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
    if path == "/background":
        await afterwards()


SITE = Site(lambda: app, is_asgi=True, has_router=False, afterwards=1, has_websockets=True)
