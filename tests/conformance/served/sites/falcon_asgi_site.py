"""Falcon by its ASGI door."""

from __future__ import annotations

from typing import Any

import falcon.asgi

from . import (
    OnPurposeError,
    Site,
    afterwards,
    async_broken,
    async_chunks,
    async_endless,
    context,
)


class Text:
    """Answers GET with a text of the route's parameters."""

    def __init__(self, text: str, status: int = 200) -> None:
        self.text = text
        self.status = status

    async def on_get(self, req: Any, resp: Any, **params: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.status = self.status
        resp.text = self.text.format(**params)


class Upload:
    async def on_post(self, req: Any, resp: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = str(len(await req.stream.read()))


class Raise:
    async def on_get(self, req: Any, resp: Any) -> None:
        raise OnPurposeError


class Stream:
    def __init__(self, body: Any) -> None:
        self.body = body

    async def on_get(self, req: Any, resp: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.stream = self.body()


class Context:
    async def on_get(self, req: Any, resp: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = context()


class Background:
    async def on_get(self, req: Any, resp: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = "answered"
        resp.schedule(afterwards)


class WebSocket:
    async def on_websocket(self, req: Any, ws: Any) -> None:
        how = req.get_param("how")
        if how == "refuse":
            await ws.close()
            return
        await ws.accept()
        try:
            while True:
                text = await ws.receive_text()
                if how == "raise":
                    raise OnPurposeError
                await ws.send_text(text)
        except falcon.WebSocketDisconnected:
            pass


def make() -> Any:
    app: Any = falcon.asgi.App()
    user = Text("user {name}")
    for path, resource in {
        "/hello": Text("hello"),
        "/items/{id:int}": Text("item {id}"),
        "/v1/users/{name}": user,
        "/v2/users/{name}": user,
        "/mounted/things/{id:int}": Text("thing {id}"),
        "/upload": Upload(),
        "/fail": Text("failed", 500),
        "/raise": Raise(),
        "/stream": Stream(async_chunks),
        "/broken": Stream(async_broken),
        "/endless": Stream(async_endless),
        "/context": Context(),
        "/background": Background(),
        "/ws": WebSocket(),
    }.items():
        app.add_route(path, resource)
    return app


SITE = Site(
    make,
    is_asgi=True,
    item="/items/{id:int}",
    user="/users/{name}",
    thing="/mounted/things/{id:int}",
    path_has_root=False,
    afterwards=1,
    has_websockets=True,
)
