"""Middlewares that hand a copy of environ or scope on: what is inside has its own template."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.wsgi import WsgiToAsgi
from conformance import drivers
from fastapi import FastAPI
from flask import Flask
from kits.things import falcon_app, pyramid_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from collections.abc import Callable


def flask_app() -> Any:
    app = Flask(__name__)
    app.add_url_rule("/things/<number>", "thing", lambda number: number)
    return app


async def thing(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.path_params["number"])


def starlette_app() -> Any:
    return Starlette(routes=[Mount("/things", routes=[Route("/{number}", thing)])])


def fastapi_app() -> Any:
    app = FastAPI()
    app.add_route("/things/{number}", thing)
    return app


@pytest.mark.parametrize(
    ("make", "template"),
    [
        (flask_app, "/things/<number>"),
        (pyramid_app, "/things/{number}"),
        (falcon_app, "/things/{number}"),
    ],
)
def test_wsgi(make: Callable[[], Any], template: str, monitor: MetricsMonitor) -> None:
    inner = make()

    def copying(environ: Any, start_response: Any) -> Any:
        return inner({**environ, "SCRIPT_NAME": "/below"}, start_response)

    assert drivers.get(wrap(copying, monitor), "/things/7") == b"7"
    assert [row["route"] for row in monitor.get_routes()] == ["/below" + template]


@pytest.mark.parametrize("copy", [dict, deepcopy])
@pytest.mark.parametrize(
    ("make", "template"),
    [
        (starlette_app, "/things/{number}"),
        (fastapi_app, "/things/{number}"),
        (lambda: WsgiToAsgi(flask_app()), "/things/<number>"),
    ],
    ids=["starlette", "fastapi", "flask"],
)
@pytest.mark.parametrize("is_wrapped_inside", [False, True])
def test_asgi(
    make: Callable[[], Any],
    template: str,
    copy: Callable[[Any], Any],
    is_wrapped_inside: bool,
    monitor: MetricsMonitor,
) -> None:
    inner = wrap(make(), monitor) if is_wrapped_inside else make()

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope if scope["type"] == "lifespan" else copy(scope), receive, send)

    app = wrap(wrap(copying, monitor), monitor)
    client = TestClient(app)
    assert [client.get("/things/7").text for _ in range(2)] == ["7", "7"]
    assert [(row["route"], row["requests"]) for row in monitor.get_routes()] == [(template, 2)]
