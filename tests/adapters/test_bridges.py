"""A WSGI app inside an ASGI app, over the usual bridges: counted once, by its own template."""

from __future__ import annotations

from typing import Any

import a2wsgi
import bottle  # type: ignore[import-untyped]
import pytest
from asgiref.wsgi import WsgiToAsgi
from conformance import drivers
from flask import Flask
from kits.things import falcon_app, pyramid_app
from starlette.applications import Starlette
from starlette.middleware.wsgi import WSGIMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from uvicorn.middleware.wsgi import _WSGIMiddleware
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap


def flask_app() -> Flask:
    app = Flask(__name__)

    @app.get("/things/<int:number>")
    def thing(number: int) -> str:
        return str(number)

    @app.get("/stream")
    def stream() -> Any:
        return (part for part in ("one ", "two"))

    return app


@pytest.mark.parametrize("bridge", [WSGIMiddleware, WsgiToAsgi, a2wsgi.WSGIMiddleware])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_counted_once_by_the_outermost(bridge: Any) -> None:
    with MetricsMonitor() as monitor:
        inner = wrap(flask_app(), monitor)
        app = wrap(Starlette(routes=[Mount("/old", app=bridge(inner))]), monitor)
        client = TestClient(app)
        assert client.get("/old/things/7").text == "7"
        assert client.get("/old/stream").text == "one two"
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.total_requests, snapshot.requests_in_flight) == (2, 0)
        routes = {row["route"] for row in monitor.get_routes()}
        assert routes == {"/old/things/<int:number>", "/old/stream"}


def bottle_app() -> Any:
    app = bottle.Bottle()
    app.route("/things/<number>")(lambda number: number)
    return app


@pytest.mark.parametrize("mount", ["", "/old/{tenant}"])
@pytest.mark.parametrize(
    ("make", "template"),
    [
        (flask_app, "/things/<int:number>"),
        (falcon_app, "/things/{number}"),
        (bottle_app, "/things/<number>"),
        (pyramid_app, "/things/{number}"),
    ],
)
@pytest.mark.parametrize(
    "bridge", [WSGIMiddleware, WsgiToAsgi, a2wsgi.WSGIMiddleware, _WSGIMiddleware]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bare_app_behind_a_bridge(bridge: Any, make: Any, template: str, mount: str) -> None:
    with MetricsMonitor() as monitor:
        bridged = bridge(make())
        app = wrap(Starlette(routes=[Mount(mount, app=bridged)]) if mount else bridged, monitor)
        assert TestClient(app).get(mount.replace("{tenant}", "ann") + "/things/7").text == "7"
        assert monitor.total_requests == 1
        assert [row["route"] for row in monitor.get_routes()] == [mount + template]


def test_an_app_that_fails_behind_a_bridge() -> None:
    app = Flask(__name__)
    app.add_url_rule("/boom", "boom", lambda: 1 // 0)
    app.testing = True  # so that it is the server that answers
    with MetricsMonitor() as monitor:
        client = TestClient(wrap(WsgiToAsgi(app), monitor), raise_server_exceptions=False)
        client.get("/boom")
        assert [(row["route"], row["status_codes"]) for row in monitor.get_routes()] == [
            ("/boom", {"500": 1})
        ]
        (error,) = monitor.get_errors()
        assert error["type"] == "ZeroDivisionError"


def test_a_bare_asgi_app_behind_a_bridge() -> None:
    async def thing(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["number"])

    inner = Starlette(routes=[Route("/things/{number}", thing)])
    with MetricsMonitor() as monitor:
        measured: Any = wrap(a2wsgi.ASGIMiddleware(inner), monitor)
        app = DispatcherMiddleware(lambda *_: [], {"/new": measured})
        assert drivers.get(app, "/new/things/7") == b"7"
        assert monitor.total_requests == 1
        assert [row["route"] for row in monitor.get_routes()] == ["/new/things/{number}"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sub_app_of_what_is_wrapped_behind_a_bridge_is_not_counted() -> None:
    with MetricsMonitor() as monitor:
        bridged = a2wsgi.WSGIMiddleware(wrap(flask_app(), monitor))
        app = wrap(Starlette(routes=[Mount("/old", app=bridged)]), monitor)
        assert TestClient(app).get("/old/api/metrics/health").status_code == 200
        assert monitor.total_requests == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_monitors_count_it_once_each() -> None:
    with MetricsMonitor() as outer, MetricsMonitor() as inner:
        bridged = WSGIMiddleware(wrap(flask_app(), inner))
        app = wrap(Starlette(routes=[Mount("/old", app=bridged)]), outer)
        assert TestClient(app).get("/old/things/7").text == "7"
        assert outer.total_requests == inner.total_requests == 1


def test_a_server_that_calls_something_else_a_scope() -> None:
    class Server:
        scope = 5

        def start_response(self, *_: object) -> None:
            pass

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    with MetricsMonitor() as monitor:
        wrap(Starlette(), monitor)  # as an ASGI app may have the other one inside
        measured: Any = wrap(app, monitor)
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        assert measured(environ, Server().start_response) == [b"hello"]
        assert monitor.total_requests == 1
