"""Objects of others may lead anywhere: every walk over them ends."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import werkzeug.test
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware


class Itself:
    """Its `app` is itself."""

    @property
    def app(self) -> Itself:
        return self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("itself")(scope, receive, send)


class Another:
    """Its `app` is another one each time, without end."""

    def __getattr__(self, name: str) -> Another:
        return Another()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("another")(scope, receive, send)


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [MagicMock, Itself, Another])
@pytest.mark.parametrize("mount", [lambda app: Mount("/m", app), lambda app: Host("m.test", app)])
@pytest.mark.filterwarnings("ignore")
def test_what_is_mounted(make: Any, mount: Any) -> None:
    with MetricsMonitor() as monitor:
        app = wrap(Starlette(routes=[Route("/items/{i}", hello), mount(make())]), monitor)
        assert TestClient(app).get("/items/3").status_code == 200
        assert monitor.get_routes()[0]["route"] == "/items/{i}"


@pytest.mark.timeout(30)
def test_routers_that_are_mounted_in_each_other() -> None:
    inner, outer = Router(), Router()
    inner.routes[:] = [Route("/items/{i}", hello), Mount("/outer", outer)]
    outer.routes[:] = [Mount("/inner", inner)]
    with MetricsMonitor() as monitor:
        app = wrap(Starlette(routes=[Mount("/a", outer)]), monitor)
        assert TestClient(app).get("/a/inner/items/3").status_code == 200
        assert monitor.get_routes()[0]["route"] == "/a/inner/items/{i}"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [Itself, Another])
def test_what_is_wrapped(make: Any) -> None:
    with MetricsMonitor() as monitor:
        app = wrap(make(), monitor)
        assert TestClient(app).get("/").status_code == 200
        assert monitor.total_requests == 1


@pytest.mark.timeout(30)
def test_a_middleware_of_ours_around_itself() -> None:
    with MetricsMonitor() as monitor:
        ours: Any = ASGIMetricsMiddleware(Itself(), monitor)
        ours.app = ours
        assert isinstance(wrap(ours, monitor), ASGIMetricsMiddleware)


@pytest.mark.timeout(30)
def test_a_wsgi_app_of_flask_s_that_is_a_mock() -> None:
    app: Any = Flask(__name__)
    app.wsgi_app = MagicMock(return_value=[b"mocked"])
    with MetricsMonitor() as monitor:
        environ = werkzeug.test.create_environ()
        assert wrap(app, monitor).wsgi_app(environ, lambda *_: None) == [b"mocked"]
        assert monitor.total_requests == 1
