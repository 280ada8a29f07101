"""WSGI without a framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import OnPurposeError, Site, broken, chunks, context, endless

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


STREAMS = {"/stream": chunks, "/broken": broken, "/endless": endless}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    text, status = "not found", "404 Not Found"
    if path == "/raise":
        raise OnPurposeError
    if path in STREAMS:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return STREAMS[path]()
    if path == "/fail":
        text, status = "failed", "500 Internal Server Error"
    elif path == "/context":
        text, status = context(), "200 OK"
    elif path == "/background":
        text, status = "answered", "200 OK"
    elif path == "/upload":
        length = int(environ.get("CONTENT_LENGTH") or 0)
        text, status = str(len(environ["wsgi.input"].read(length))), "200 OK"
    elif path == "/hello" or "/items/" in path or "/users/" in path or "/things/" in path:
        text, status = path, "200 OK"
    body = text.encode("latin-1")
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


SITE = Site(lambda: app, is_asgi=False, has_router=False)
