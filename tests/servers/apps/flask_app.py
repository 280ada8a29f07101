"""Flask, with its signed-cookie session."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask, Response, request, session

from apps import LINES, SECRET, USER
from metricsmw.adapters import wrap

app = Flask(__name__)
app.secret_key = SECRET


@app.get("/hello")
def hello() -> str:
    return "hello"


@app.get("/items/<int:id>")
def item(id: int) -> dict[str, int]:
    return {"id": id}


@app.get("/slow")
def slow() -> dict[str, int]:
    time.sleep(request.args.get("ms", type=float, default=0.0) / 1000)
    return {"pid": os.getpid()}


@app.get("/fail")
def fail() -> tuple[str, int]:
    return "failed", 500


@app.get("/raise")
def raise_() -> str:
    raise RuntimeError("raised on purpose")


@app.get("/stream")
def stream() -> Iterator[str]:
    yield from LINES


@app.post("/upload")
def upload() -> dict[str, int]:
    return {"bytes": len(request.get_data())}


@app.post("/login")
def login() -> Response:
    session["user_id"] = USER
    return Response("logged in")


app = wrap(app)
