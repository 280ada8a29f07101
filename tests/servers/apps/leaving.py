"""Apps that keep their carriers, bare and wrapped; /left says what waits for the garbage collector.

The collector runs only when it is asked, at /left: its number is what requests have left behind.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from flask import Flask, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send

gc.disable()
STREAMED = [b"one", b"two"]


def left() -> str:
    """Return how many objects only the garbage collector could free."""
    return str(gc.collect())


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer in one piece or in two."""
    environ["app.large"] = bytearray(1000)
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise RuntimeError("raised on purpose")
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter(STREAMED)
    if path == "/generator":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (part for part in STREAMED)
    body = left().encode() if path == "/left" else b"hello"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in one piece or in two."""
    if scope["type"] != "http":
        await _lifespan(receive, send)
        return
    scope["app.large"] = bytearray(1000)
    path = scope["path"]
    if path == "/fail":
        raise RuntimeError("raised on purpose")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = left().encode() if path == "/left" else b"hello"
    for part in STREAMED if path == "/stream" else [body]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    for _ in range(2):
        message = await receive()
        await send({"type": message["type"] + ".complete"})


def _flask() -> Flask:
    app = Flask("leaving")

    @app.route("/<page>")
    def page(page: str) -> Any:
        request.environ["app.large"] = bytearray(1000)
        if page == "fail":
            raise RuntimeError("raised on purpose")
        if page in ("stream", "generator"):
            return app.response_class(part for part in STREAMED)
        return left() if page == "left" else "hello"

    return app


def _answer() -> Callable[[Request], Awaitable[PlainTextResponse]]:
    async def page(request: Request) -> PlainTextResponse:
        request.scope["app.large"] = bytearray(1000)
        if request.url.path == "/fail":
            raise RuntimeError("raised on purpose")
        return PlainTextResponse(left() if request.url.path == "/left" else "hello")

    return page


def _fastapi() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/{page}", _answer())
    return app


def _starlette() -> Starlette:
    return Starlette(routes=[Route("/{page}", _answer())])


bare_wsgi, wrapped_wsgi = wsgi, wrap(wsgi)
bare_asgi, wrapped_asgi = asgi, wrap(asgi)
bare_flask, wrapped_flask = _flask(), wrap(_flask())
bare_starlette, wrapped_starlette = _starlette(), wrap(_starlette())
bare_fastapi, wrapped_fastapi = _fastapi(), wrap(_fastapi())
