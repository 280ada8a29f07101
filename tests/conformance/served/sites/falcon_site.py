"""Falcon by its WSGI door; it has no mounts and no routers in routers."""

from __future__ import annotations

from typing import Any

import falcon

from . import OnPurposeError, Site, broken, chunks, context, endless


class Text:
    """Answers GET with a text of the route's parameters."""

    def __init__(self, text: str, status: int = 200) -> None:
        self.text = text
        self.status = status

    def on_get(self, req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.status = self.status
        resp.text = self.text.format(**params)


class Upload:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = str(len(req.bounded_stream.read()))


class Raise:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise OnPurposeError


class Stream:
    def __init__(self, body: Any) -> None:
        self.body = body

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.stream = self.body()


class Context:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = context()


def make() -> Any:
    app = falcon.App()
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
        "/stream": Stream(chunks),
        "/broken": Stream(broken),
        "/endless": Stream(endless),
        "/context": Context(),
        "/background": Text("answered"),
    }.items():
        app.add_route(path, resource)
    return app


SITE = Site(
    make,
    is_asgi=False,
    item="/items/{id:int}",
    user="/users/{name}",
    thing="/mounted/things/{id:int}",
)
