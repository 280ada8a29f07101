"""A release of a framework that the glue does not fit: it is reported, the app is measured.

Each piece of glue is made to fail in the way a release of tomorrow would: its module cannot be
imported, or what it reads of the framework is not there.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import bottle
import falcon
import falcon.asgi
import flask
import pytest
import quart
from conformance import drivers
from django.core.wsgi import get_wsgi_application
from django.test.utils import override_settings
from fastapi import FastAPI
from kits.django_site import called, environ_of
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import resolvers, wrap
from metricsmw.adapters.resolvers import flask as flask_resolver
from metricsmw.adapters.resolvers import quart as quart_resolver


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


@pytest.fixture(autouse=True)
def looks_of_its_own() -> Iterator[None]:
    """What a test finds of a framework is forgotten."""
    lookups = (resolvers.starlette_resolver, resolvers.fastapi_resolver)
    for look in lookups:
        look.cache_clear()
    yield
    for look in lookups:
        look.cache_clear()


def starlette_app() -> Any:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/{name}", hello)])


def fastapi_app() -> Any:
    app = FastAPI()
    app.get("/{name}")(lambda name: "hello")
    return app


def flask_app() -> Any:
    app = flask.Flask("hello")
    app.add_url_rule("/<name>", view_func=lambda name: "hello")
    return app


def quart_app() -> Any:
    async def hello(name: str) -> str:
        return "hello"

    app = quart.Quart("hello")
    app.add_url_rule("/<name>", view_func=hello)
    return app


class Hello:
    def on_get(self, request: Any, response: Any, name: str) -> None:
        response.text = "hello"


def falcon_app() -> Any:
    app = falcon.App()
    app.add_route("/{name}", Hello())
    return app


def bottle_app() -> Any:
    app = bottle.Bottle()
    app.route("/<name>", callback=lambda name: "hello")
    return app


def ask(app: Any, is_asgi: bool) -> bytes:
    if is_asgi:
        return TestClient(app).get("/you").content
    return drivers.get(app, "/you")


def is_measured(monitor: MetricsMonitor, faults: int) -> None:
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.total_errors) == (1, 0)
    assert snapshot.requests_in_flight == 0
    assert monitor.get_health()["faults"] == faults


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a module of the adapters fail as it is imported."""
    package, _, attribute = name.rpartition(".")
    monkeypatch.delattr(sys.modules[package], attribute, raising=False)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


HOSTS = [
    pytest.param(starlette_app, True, "metricsmw.adapters.starlette", id="starlette"),
    pytest.param(fastapi_app, True, "metricsmw.adapters.starlette", id="fastapi"),
    pytest.param(flask_app, False, "metricsmw.adapters.flask", id="flask"),
]


@pytest.mark.parametrize(("make", "is_asgi", "glue"), HOSTS)
def test_glue_that_cannot_be_imported(
    make: Any,
    is_asgi: bool,
    glue: str,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without(monkeypatch, glue)
    app = wrap(make(), monitor)
    assert b"hello" in ask(app, is_asgi)
    is_measured(monitor, faults=1)
    assert "measuring an app by its framework" in caplog.text


@pytest.mark.parametrize(("make", "is_asgi", "glue"), HOSTS)
def test_glue_that_fails_half_way(
    make: Any, is_asgi: bool, glue: str, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = importlib.import_module(glue)
    instrument = host.instrument

    def fail(*args: Any, **settings: Any) -> None:
        instrument(*args, **settings)
        raise AttributeError("not in this release")

    monkeypatch.setattr(host, "instrument", fail)
    app = wrap(make(), monitor)
    assert b"hello" in ask(app, is_asgi)
    is_measured(monitor, faults=1)


def test_django_glue_that_cannot_be_imported(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "metricsmw.adapters.django")
    with override_settings(MIDDLEWARE=[]):
        app = wrap(get_wsgi_application(), monitor)
        assert b"".join(called(app, environ_of("/"))) == b"hello"
    is_measured(monitor, faults=1)


@pytest.mark.parametrize("name", ["starlette", "fastapi"])
def test_routes_that_cannot_be_looked_up(
    name: str, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = wrap(fastapi_app(), monitor)
    without(monkeypatch, "metricsmw.adapters.resolvers.starlette")
    for _ in range(3):
        assert b"hello" in ask(app, True)
    assert monitor.total_requests == 3
    assert monitor.get_health()["faults"] == 1  # it is not imported again


@pytest.mark.parametrize(
    "framework",
    [each for each in resolvers.FRAMEWORKS if each.install is not None],
    ids=lambda each: each.name,
)
@pytest.mark.parametrize("is_asgi", [True, False])
def test_hooks_that_cannot_be_installed(
    framework: resolvers.Framework,
    is_asgi: bool,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, framework.name, ModuleType(framework.name))
    if framework.name not in resolvers.bridge.MODULES:  # of which the module itself is empty here
        without(monkeypatch, f"metricsmw.adapters.resolvers.{framework.name.partition('.')[0]}")
    app = wrap(drivers.hello if is_asgi else drivers.wsgi_hello, monitor)
    assert b"hello" in ask(app, is_asgi)
    is_measured(monitor, faults=1)
    assert framework.name in caplog.text


class Broken:
    """Stands for what a hook reads, and has nothing of it."""

    def get(self, *_: object) -> Any:
        raise AttributeError("not in this release")


@pytest.mark.parametrize(
    ("make", "is_asgi", "glue", "name", "broken"),
    [
        (quart_app, True, quart_resolver, "_context", Broken()),
        (flask_app, False, flask_resolver, "get_context", Broken().get),
    ],
    ids=["quart", "flask"],
)
def test_hooks_that_find_nothing(
    make: Any,
    is_asgi: bool,
    glue: Any,
    name: str,
    broken: Any,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = wrap(make(), monitor)
    monkeypatch.setattr(glue, name, broken)
    assert b"hello" in ask(app, is_asgi)
    is_measured(monitor, faults=1)


def test_a_wrong_argument_is_no_fault(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for make in (starlette_app, flask_app, bottle_app):
        with pytest.raises(TypeError, match="exclude must hold path prefixes"):
            wrap(make(), monitor, exclude=[7])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="auth must be None or a policy"):
            wrap(make(), monitor, auth="secret")  # type: ignore[arg-type]
    assert not caplog.text
    assert monitor.get_health()["faults"] == 0
