"""Raw ASGI: no framework, no router, no session; HTTP, WebSocket and lifespan by hand."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from apps import LINES
from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the routes that need neither a router nor a session."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo(scope, receive, send)
    else:
        await _http(scope, receive, send)


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    if path == "/hello":
        await _answer(send, 200, "hello")
    elif path.startswith("/items/"):
        await _answer(send, 200, json.dumps({"id": int(path[7:])}))
    elif path == "/slow":
        query = parse_qs(scope["query_string"].decode())
        seconds = float(query["ms"][0]) / 1000
        if "block" in query:
            time.sleep(seconds)
        else:
            await asyncio.sleep(seconds)
        await _answer(send, 200, json.dumps({"pid": os.getpid()}))
    elif path == "/fail":
        await _answer(send, 500, "failed")
    elif path == "/raise":
        raise RuntimeError("raised on purpose")
    elif path == "/stream":
        await _start(send, 200, "text/plain")
        for line in LINES:
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body"})
    elif path == "/upload":
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await _answer(send, 200, json.dumps({"bytes": length}))
    else:
        await _answer(send, 404, "not found")


async def _answer(send: Send, status: int, text: str) -> None:
    await _start(send, status, "application/json" if text.startswith("{") else "text/plain")
    await send({"type": "http.response.body", "body": text.encode()})


async def _start(send: Send, status: int, kind: str) -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] != "/ws":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        step = (await receive())["type"]
        await send({"type": f"{step}.complete"})
        if step == "lifespan.shutdown":
            return


bare = app
app = wrap(app)
