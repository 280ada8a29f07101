"""FastAPI: a router included twice, a mounted app, a dependency that cleans up behind itself."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

from . import (
    OnPurposeError,
    Site,
    afterwards,
    async_broken,
    async_chunks,
    async_endless,
    context,
)
from .starlette_site import websocket


async def resource() -> AsyncIterator[str]:
    yield "resource"
    await afterwards()


def make() -> FastAPI:
    app, mounted, users = FastAPI(), FastAPI(), APIRouter()

    @users.get("/users/{name}")
    def user(name: str) -> PlainTextResponse:
        return PlainTextResponse(f"user {name}")

    app.include_router(users, prefix="/v1")
    app.include_router(users, prefix="/v2")

    @mounted.get("/things/{id}")
    async def thing(id: int) -> PlainTextResponse:
        return PlainTextResponse(f"thing {id}")

    app.mount("/mounted", mounted)

    @app.get("/hello")
    async def hello() -> PlainTextResponse:
        return PlainTextResponse("hello")

    @app.get("/items/{id}")
    def item(id: int) -> PlainTextResponse:
        return PlainTextResponse(f"item {id}")

    @app.post("/upload")
    async def upload(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    @app.get("/fail")
    async def fail() -> PlainTextResponse:
        return PlainTextResponse("failed", 500)

    @app.get("/raise")
    async def raise_() -> PlainTextResponse:
        raise OnPurposeError

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(async_chunks())

    @app.get("/broken")
    async def broken() -> StreamingResponse:
        return StreamingResponse(async_broken())

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        return StreamingResponse(async_endless())

    @app.get("/context")
    async def context_() -> PlainTextResponse:
        return PlainTextResponse(context())

    @app.get("/background")
    async def background(
        tasks: BackgroundTasks, used: str = Depends(resource)
    ) -> PlainTextResponse:
        tasks.add_task(afterwards)
        return PlainTextResponse("answered")

    app.add_api_websocket_route("/ws", websocket)
    return app


SITE = Site(
    make,
    is_asgi=True,
    item="/items/{id}",
    user="/users/{name}",
    thing="/mounted/things/{id}",
    afterwards=2,
    has_websockets=True,
    # It looks at parameters behind its router: 422.
    routes={"GET /items/x": "/items/{id}", "GET /mounted/things/x": "/mounted/things/{id}"},
)
