"""Litestar: routers, one handler under two of them, and another Litestar mounted."""

from collections.abc import AsyncIterator

import litestar
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream
from litestar.types import Receive, Scope, Send

from . import (
    UNMATCHED,
    OnPurposeError,
    Site,
    afterwards,
    async_broken,
    async_chunks,
    async_endless,
    context,
)


@litestar.get("/hello", media_type="text/plain", sync_to_thread=False)
def hello() -> str:
    return "hello"


@litestar.get("/items/{id:int}", media_type="text/plain")
async def item(id: int) -> str:
    return f"item {id}"


@litestar.get("/users/{name:str}", media_type="text/plain")
async def user(name: str) -> str:
    return f"user {name}"


@litestar.get("/things/{id:int}", media_type="text/plain")
async def thing(id: int) -> str:
    return f"thing {id}"


@litestar.post("/upload", media_type="text/plain", status_code=200)
async def upload(request: litestar.Request) -> str:
    return str(len(await request.body()))


@litestar.get("/fail", media_type="text/plain", status_code=500)
async def fail() -> str:
    return "failed"


@litestar.get("/raise", media_type="text/plain")
async def raise_() -> str:
    raise OnPurposeError


@litestar.get("/stream", media_type="text/plain")
async def stream() -> Stream:
    def body() -> AsyncIterator[bytes]:
        return async_chunks()

    return Stream(body())


@litestar.get("/broken", media_type="text/plain")
async def broken() -> Stream:
    return Stream(async_broken())


@litestar.get("/endless", media_type="text/plain")
async def endless() -> Stream:
    return Stream(async_endless())


@litestar.get("/context", media_type="text/plain")
async def context_() -> str:
    return context()


@litestar.get("/background", media_type="text/plain")
async def background() -> litestar.Response[str]:
    return litestar.Response("answered", background=BackgroundTask(afterwards))


@litestar.websocket("/ws")
async def websocket(socket: litestar.WebSocket, how: str) -> None:
    if how == "refuse":
        await socket.close()
        return
    await socket.accept()
    async for text in socket.iter_data():
        if how == "raise":
            raise OnPurposeError
        await socket.send_text(text)


def make() -> litestar.Litestar:
    inner = litestar.Litestar([thing], openapi_config=None)

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)

    return litestar.Litestar(
        [
            hello,
            item,
            litestar.Router("/v1", route_handlers=[user]),
            litestar.Router("/v2", route_handlers=[user]),
            litestar.asgi("/mounted", is_mount=True, copy_scope=False)(mounted),
            upload,
            fail,
            raise_,
            stream,
            broken,
            endless,
            context_,
            background,
            websocket,
        ],
        openapi_config=None,
    )


SITE = Site(
    make,
    is_asgi=True,
    item="/items/{id}",
    user="/users/{name}",
    thing="/mounted/things/{id}",
    afterwards=1,
    has_websockets=True,
    routes={
        # Its router does not say whose path has another method, of which HEAD is one.
        "HEAD /hello": UNMATCHED,
        "HEAD /items/7": UNMATCHED,
        "HEAD /stream": UNMATCHED,
        "DELETE /items/7": UNMATCHED,
        "PROPFIND /items/7": UNMATCHED,
        "GET /hello/": "/hello",  # the same to it
    },
)
