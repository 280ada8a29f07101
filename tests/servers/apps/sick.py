"""A site whose requests may keep their worker from answering others."""

from __future__ import annotations

import time

from flask import Flask, request

from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

app = Flask(__name__)


@app.get("/hello")
def hello() -> str:
    return "hello"


@app.get("/sleep")
def sleep() -> str:
    time.sleep(request.args.get("seconds", 60.0, float))
    return "slept"


@app.get("/spin")
def spin() -> str:
    end = time.monotonic() + request.args.get("seconds", 60.0, float)
    while time.monotonic() < end:
        pass
    return "spun"


app = wrap(app, auth=public())
