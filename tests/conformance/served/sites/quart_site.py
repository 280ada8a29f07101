"""Quart: nested blueprints, one of them registered twice, and another Quart mounted.

Its tasks run beside an answer, not after it.
"""

from __future__ import annotations

from typing import Any

from hypercorn.middleware import DispatcherMiddleware
from quart import Blueprint, Quart, Response, request, websocket

from . import (
    OnPurposeError,
    Site,
    async_broken,
    async_chunks,
    async_endless,
    context,
)


def make_mounted() -> Quart:
    app = Quart(__name__)

    @app.get("/things/<int:id>")
    def thing(id: int) -> str:
        return f"thing {id}"

    return app


def make() -> Any:
    app = Quart(__name__)
    users = Blueprint("users", __name__, url_prefix="/users")

    @users.get("/<name>")
    async def user(name: str) -> str:
        return f"user {name}"

    for version in ("v1", "v2"):
        outer = Blueprint(version, __name__, url_prefix=f"/{version}")
        outer.register_blueprint(users)
        app.register_blueprint(outer)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.get("/items/<int:id>")
    async def item(id: int) -> str:
        return f"item {id}"

    @app.post("/upload")
    async def upload() -> str:
        body: Any = await request.get_data()
        return str(len(body))

    @app.get("/fail")
    async def fail() -> tuple[str, int]:
        return "failed", 500

    @app.get("/raise")
    async def raise_() -> str:
        raise OnPurposeError

    @app.get("/stream")
    async def stream() -> Response:
        return Response(async_chunks())

    @app.get("/broken")
    async def broken() -> Response:
        return Response(async_broken())

    @app.get("/endless")
    async def endless() -> Response:
        return Response(async_endless())

    @app.get("/context")
    async def context_() -> str:
        return context()

    @app.get("/background")
    async def background() -> str:
        return "answered"

    @app.websocket("/ws")
    async def socket() -> None:
        how = websocket.args["how"]
        if how == "refuse":
            await websocket.close(1000)
            return
        await websocket.accept()
        while True:
            text = await websocket.receive()
            if how == "raise":
                raise OnPurposeError
            await websocket.send(text)

    return DispatcherMiddleware({"/mounted": make_mounted(), "": app})


SITE = Site(
    make,
    is_asgi=True,
    item="/items/<int:id>",
    user="/users/<name>",
    thing="/mounted/things/<int:id>",
    has_websockets=True,
    mounts_below=False,  # hypercorn's dispatcher looks at the whole path
)
