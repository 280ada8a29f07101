"""A WSGI app inside an ASGI app, over the usual bridges: counted once, by its own template."""

from __future__ import annotations

from typing import Any

import a2wsgi
import pytest
from asgiref.wsgi import WsgiToAsgi
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware.wsgi import WSGIMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient

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
