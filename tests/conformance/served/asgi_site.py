"""The ASGI app for tests under real servers: streams and uploads of any size.

| route | answers |
|---|---|
| GET /hello | `hello` |
| GET /stream?mb=3 | that many parts of a megabyte, made one at a time; `receive` is never asked |
| GET /events | an endless stream, until the client goes away |
| POST /upload | how many bytes came |
| GET /raise?when=x | an exception "before" or "after" the headers, or in the "middle" |
| GET /leave | an exception that is no `Exception`, before the headers |
| GET /nothing | no response |
| GET /late | waits for the client to go |
| GET /waits | the same, once the response has begun |
| GET /file | the file named by FILE, by `pathsend` where the server has it |
| GET /trailers | `hello` and a trailer |
| WS /ws?how=x | "echo": until the client goes; "refuse", "deny" (by a response); "close" or |
| | "raise", once the client has said something |
| GET /peak | the most memory this process has had, in MB |
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from metricsmw.adapters import wrap

MEGABYTE = 1 << 20


class Stream:
    """By hand, as Starlette's would ask `receive` meanwhile."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = int(parse_qs(scope["query_string"])[b"mb"][0])
        headers = [(b"content-length", str(number * MEGABYTE).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(number):
            body = bytes(MEGABYTE)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0)  # until then a server cannot know that the client has gone
        await send({"type": "http.response.body"})


class Failing:
    """A response that fails at some point."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        when = parse_qs(scope["query_string"])[b"when"][0].decode()
        if when == "before":
            raise LookupError(when)
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        if when == "after":
            raise LookupError(when)
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise LookupError(when)


class Leaving(BaseException):
    """No `Exception`, as what ends a task is none."""


class Raw:
    """An application for a route: Starlette takes functions for something else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def leave(scope: Scope, receive: Receive, send: Send) -> None:
    raise Leaving


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def late(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    await late(scope, receive, send)


async def file(scope: Scope, receive: Receive, send: Send) -> None:
    path = os.environ["FILE"]
    headers = [(b"content-length", str(os.path.getsize(path)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if "http.response.pathsend" in scope.get("extensions", {}):
        await send({"type": "http.response.pathsend", "path": path})
    else:
        await send({"type": "http.response.body", "body": Path(path).read_bytes()})


async def trailers(scope: Scope, receive: Receive, send: Send) -> None:
    has_them = "http.response.trailers" in scope.get("extensions", {})
    start = {"type": "http.response.start", "status": 200, "headers": [(b"trailer", b"x-sum")]}
    await send({**start, "trailers": has_them})
    await send({"type": "http.response.body", "body": b"hello"})
    if has_them:
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"5")]})


async def websocket(socket: WebSocket) -> None:
    how = socket.query_params["how"]
    if how == "refuse":
        await socket.close()
    elif how == "deny":
        await socket.send_denial_response(PlainTextResponse("no", 403))
    else:
        await socket.accept()
        if how in ("close", "raise"):
            await socket.receive_text()
        if how == "close":
            await socket.close(1001)
        elif how == "raise":
            raise LookupError(how)
        else:
            async for text in socket.iter_text():
                await socket.send_text(text)


async def events(request: Request) -> StreamingResponse:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"data: event\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(endless(), media_type="text/event-stream")


async def upload(request: Request) -> PlainTextResponse:
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
    return PlainTextResponse(str(length))


async def peak(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


app = wrap(
    Starlette(
        routes=[
            Route("/hello", lambda request: PlainTextResponse("hello")),
            Route("/stream", Stream()),
            Route("/events", events),
            Route("/upload", upload, methods=["POST"]),
            Route("/peak", peak),
            Route("/raise", Failing()),
            *(
                Route(f"/{app.__name__}", Raw(app))
                for app in (leave, nothing, late, waits, file, trailers)
            ),
            WebSocketRoute("/ws", websocket),
        ]
    )
)
