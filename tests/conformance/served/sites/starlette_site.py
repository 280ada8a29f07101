"""Starlette: mounts, one of them used twice, beside a middleware of its own.

Which in older releases runs background tasks beside the last byte: FastAPI's site has them.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket

from . import (
    OnPurposeError,
    Site,
    async_broken,
    async_chunks,
    async_endless,
    context,
)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def item(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"item {request.path_params['id']}")


async def user(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"user {request.path_params['name']}")


async def thing(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"thing {request.path_params['id']}")


async def upload(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def fail(request: Request) -> PlainTextResponse:
    return PlainTextResponse("failed", 500)


async def raise_(request: Request) -> PlainTextResponse:
    raise OnPurposeError


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(async_chunks())


async def broken(request: Request) -> StreamingResponse:
    return StreamingResponse(async_broken())


async def endless(request: Request) -> StreamingResponse:
    return StreamingResponse(async_endless())


async def context_(request: Request) -> PlainTextResponse:
    return PlainTextResponse(context())


async def background(request: Request) -> PlainTextResponse:
    return PlainTextResponse("answered")


async def passes_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


async def websocket(socket: WebSocket) -> None:
    how = socket.query_params["how"]
    if how == "refuse":
        await socket.close()
        return
    await socket.accept()
    async for text in socket.iter_text():
        if how == "raise":
            raise OnPurposeError
        await socket.send_text(text)


def make() -> Starlette:
    users = [Route("/users/{name}", user)]
    mounted = Starlette(routes=[Route("/things/{id:int}", thing)])
    return Starlette(
        routes=[
            Host("{name}.example", Router([Route("/hosted/{id}", hello)])),
            Route("/hello", hello),
            Route("/items/{id:int}", item),
            Mount("/v1", routes=users),
            Mount("/v2", routes=users),
            Mount("/mounted", mounted),
            Route("/upload", upload, methods=["POST"]),
            Route("/fail", fail),
            Route("/raise", raise_),
            Route("/stream", stream),
            Route("/broken", broken),
            Route("/endless", endless),
            Route("/context", context_),
            Route("/background", background),
            WebSocketRoute("/ws", websocket),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes_on)],
    )


SITE = Site(
    make,
    is_asgi=True,
    item="/items/{id:int}",
    user="/users/{name}",
    thing="/mounted/things/{id:int}",
    has_websockets=True,
    ends_broken=True,  # the exception comes out of BaseHTTPMiddleware behind the last byte
)
