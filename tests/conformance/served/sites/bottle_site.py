"""Bottle, with another Bottle mounted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bottle  # type: ignore[import-untyped]

from . import UNMATCHED, OnPurposeError, Site, broken, chunks, context, endless


def raise_() -> str:
    raise OnPurposeError


def fail() -> str:
    bottle.response.status = 500
    return "failed"


def upload() -> str:
    return str(len(bottle.request.body.read()))


def stream() -> Iterator[bytes]:
    return chunks()


def make() -> Any:
    app, mounted = bottle.Bottle(), bottle.Bottle()
    mounted.route("/things/<id:int>", callback=lambda id: f"thing {id}")
    app.mount("/mounted/", mounted)
    app.route("/hello", callback=lambda: "hello")
    app.route("/items/<id:int>", callback=lambda id: f"item {id}")
    for version in ("v1", "v2"):
        app.route(f"/{version}/users/<name>", callback=lambda name: f"user {name}")
    app.route("/upload", method="POST", callback=upload)
    app.route("/fail", callback=fail)
    app.route("/raise", callback=raise_)
    app.route("/stream", callback=stream)
    app.route("/broken", callback=broken)
    app.route("/endless", callback=endless)
    app.route("/context", callback=context)
    app.route("/background", callback=lambda: "answered")
    return app


SITE = Site(
    make,
    is_asgi=False,
    item="/items/<id:int>",
    user="/users/<name>",
    thing="/mounted/things/<id:int>",
    routes={
        # Its router does not say whose path has another method.
        "OPTIONS /items/7": UNMATCHED,
        "DELETE /items/7": UNMATCHED,
        "PROPFIND /items/7": UNMATCHED,
        "GET /v1/users/%FF%FE": UNMATCHED,  # nothing is left of that name
    },
)
