"""A router behind another's `default=`, Connexion, and templates that other frameworks leave."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.clock import ManualClock


def ok(request: Any) -> PlainTextResponse:
    return PlainTextResponse("ok")


def named(text: str) -> Any:
    """Another endpoint each time."""
    return lambda request: PlainTextResponse(text)


def rows(monitor: MetricsMonitor) -> set[str]:
    return {row["route"] for row in monitor.get_routes()}


def test_a_router_behind_a_router() -> None:
    last = Router([Route("/last/{x}", named("last")), Mount("/m", routes=[Route("/{y}", ok)])])
    middle = Starlette(routes=[Route("/middle/{x}", named("middle"))])
    middle.router.default = last
    outer = Router([Route("/outer/{x}", named("outer"))], default=middle)
    with MetricsMonitor() as monitor:
        client = TestClient(wrap(outer, monitor))
        for path in ("/outer/1", "/middle/1", "/last/1", "/m/1", "/none"):
            client.get(path)
        assert rows(monitor) == {
            "/outer/{x}",
            "/middle/{x}",
            "/last/{x}",
            "/m/{y}",
            "<unmatched>",
        }


@pytest.mark.timeout(30)
def test_routers_behind_each_other_without_end() -> None:
    one = Router([Route("/one/{x}", ok)])
    two = Router([Route("/two/{x}", named("two"))], default=one)
    with MetricsMonitor() as monitor:
        client = TestClient(wrap(two, monitor))
        client.get("/two/1")
        one.default = two
        client.get("/one/1")
        assert rows(monitor) == {"/one/{x}", "/two/{x}"}


SPECIFICATION: dict[str, Any] = {
    "openapi": "3.0.0",
    "info": {"title": "items", "version": "1"},
    "paths": {
        "/items/{i}": {
            "get": {
                "operationId": f"{__name__}.item",
                "parameters": [
                    {"name": "i", "in": "path", "required": True, "schema": {"type": "integer"}}
                ],
                "responses": {"200": {"description": "the item"}},
            }
        }
    },
}


async def item(i: int) -> str:
    return str(i)


def item_of_flask(i: int) -> str:
    return str(i)


@pytest.mark.parametrize("kind", ["AsyncApp", "FlaskApp"])
@pytest.mark.filterwarnings("ignore")
def test_connexion(kind: str) -> None:
    connexion = pytest.importorskip("connexion")
    app = getattr(connexion, kind)(__name__)
    functions = {"AsyncApp": item, "FlaskApp": item_of_flask}
    app.add_api(
        SPECIFICATION, base_path="/v1", resolver=connexion.Resolver(lambda _: functions[kind])
    )
    with MetricsMonitor() as monitor, TestClient(wrap(app, monitor)) as client:
        assert client.get("/v1/items/3").status_code == 200
        assert client.get("/v1/items/x").status_code == 404
        assert client.get("/none").status_code == 404
        assert {row["route"]: row["requests"] for row in monitor.get_routes()} == {
            "/v1/items/{i:int}": 1,
            "<unmatched>": 2,
        }


@pytest.mark.parametrize(
    ("module", "key"), [("lilya", "route_path_template"), ("responder", "route_pattern")]
)
def test_templates_that_are_left_in_scope(
    module: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/none":
            scope[key] = "/items/{i}"
        await PlainTextResponse("ok")(scope, receive, send)

    monkeypatch.setitem(__import__("sys").modules, module, pytest)  # as if it were imported
    with MetricsMonitor() as monitor:
        client = TestClient(wrap(app, monitor))
        client.get("/items/3")
        client.get("/none")
        assert rows(monitor) == {"/items/{i}", "<unmatched>"}


@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("key", ["path_template", "route_path_template"])
def test_a_framework_that_is_imported_late(
    key: str, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app may import its framework as the first request comes, or later."""
    for module in ("lilya", "litestar", "responder"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(0.1)
        if scope["path"] != "/before":
            name = "litestar" if key == "path_template" else "lilya"
            monkeypatch.setitem(sys.modules, name, pytest)  # type: ignore[arg-type]
            scope[key] = "/items/{i}"
        await PlainTextResponse("ok")(scope, receive, send)

    clock = ManualClock()
    with MetricsMonitor(clock=clock) as monitor:
        client = TestClient(wrap(app, monitor))
        for _ in range(requests):
            client.get("/before")
            clock.advance(monitor.window_seconds / 60)
        client.get("/items/3")
        assert rows(monitor) == {"/items/{i}", *["<unmatched>"] * requests}


@pytest.mark.parametrize("kind", ["asgi", "wsgi", "starlette", "flask", "django"])
def test_a_resolver_of_one_s_own(kind: str) -> None:
    from conformance.served.sites import django_site
    from django.core.handlers.wsgi import WSGIHandler
    from flask import Flask
    from werkzeug.test import Client

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    def wsgi(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b"ok"]

    def route(carrier: Any) -> str:
        assert "path" in carrier or "PATH_INFO" in carrier
        return "/mine"

    with django_site.SITE.around(), MetricsMonitor() as monitor:
        apps = {
            "asgi": lambda: asgi,
            "wsgi": lambda: wsgi,
            "starlette": Starlette,
            "flask": lambda: Flask(__name__),
            "django": WSGIHandler,
        }
        app: Any = wrap(apps[kind](), monitor, route=route)
        if kind in ("asgi", "starlette"):
            TestClient(app).get("/x")
        else:
            Client(app).get("/x").close()
        assert rows(monitor) == {"/mine"}


def test_litestar_s_answer_to_an_exception() -> None:
    """A middleware of Litestar's stands inside of what makes answers of exceptions."""
    import litestar
    from litestar.exceptions import NotAuthorizedException

    @litestar.get("/secret")
    async def secret() -> str:
        raise NotAuthorizedException

    @litestar.get("/broken")
    async def broken() -> str:
        raise LookupError

    with MetricsMonitor() as monitor:

        def measured(app: Any) -> Any:
            return ASGIMetricsMiddleware(app, monitor)

        client = TestClient(
            litestar.Litestar([secret, broken], middleware=[measured], logging_config=None),
            raise_server_exceptions=False,
        )
        assert client.get("/secret").status_code == 401
        assert client.get("/broken").status_code == 500
        found = {row["route"]: row["statuses"] for row in monitor.get_routes()}
        assert found == {"/secret": {"4xx": 1}, "/broken": {"5xx": 1}}
        assert monitor.total_errors == 2
