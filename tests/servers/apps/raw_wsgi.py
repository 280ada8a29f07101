"""Raw WSGI: no framework, no router, no session."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from apps import LINES
from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the routes that need neither a router nor a session."""
    path = environ["PATH_INFO"]
    if path == "/hello":
        return _answer(start_response, "200 OK", "hello")
    if path.startswith("/items/"):
        return _answer(start_response, "200 OK", json.dumps({"id": int(path[7:])}))
    if path == "/slow":
        time.sleep(float(parse_qs(environ["QUERY_STRING"])["ms"][0]) / 1000)
        return _answer(start_response, "200 OK", json.dumps({"pid": os.getpid()}))
    if path == "/fail":
        return _answer(start_response, "500 Internal Server Error", "failed")
    if path == "/raise":
        raise RuntimeError("raised on purpose")
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (line.encode() for line in LINES)
    if path == "/upload":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        return _answer(start_response, "200 OK", json.dumps({"bytes": len(body)}))
    return _answer(start_response, "404 Not Found", "not found")


def _answer(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    kind = "application/json" if text.startswith("{") else "text/plain"
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(text)))])
    return [text.encode()]


bare = app
app = wrap(app)
