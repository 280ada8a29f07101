"""Django wherever it stands: rows, users, WebSockets and the session's identity by one `wrap`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import a2wsgi
import httpx
import pytest
import werkzeug.test
from asgiref.wsgi import WsgiToAsgi
from conformance.served.sites import django_site
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

SETTINGS = {
    "ROOT_URLCONF": __name__,
    "ALLOWED_HOSTS": ["*"],
    "DEBUG": False,
    "STATIC_URL": "/static/",
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
    "MIDDLEWARE": ["django.contrib.sessions.middleware.SessionMiddleware"],
}


def login(request: HttpRequest) -> HttpResponse:
    request.session["user"] = "ada"
    return HttpResponse("in")


def item(request: HttpRequest, i: int) -> HttpResponse:
    return HttpResponse(str(i))


urlpatterns = [path("items/<int:i>/", item), path("login/", login)]


@contextmanager
def settings() -> Iterator[None]:
    with django_site.SITE.around(), override_settings(**SETTINGS):
        yield


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with settings():
        yield


def of_whitenoise(app: Any) -> Any:
    return pytest.importorskip("whitenoise").WhiteNoise(app)


def of_opentelemetry(app: Any) -> Any:
    return pytest.importorskip("opentelemetry.instrumentation.wsgi").OpenTelemetryMiddleware(app)


def of_sentry(app: Any) -> Any:
    return pytest.importorskip("sentry_sdk.integrations.wsgi").SentryWsgiMiddleware(app)


def of_closure(app: Any) -> Any:
    def inner(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return inner


def of_copying(app: Any) -> Any:
    """A middleware that hands a copy of environ on."""

    def inner(environ: Any, start_response: Any) -> Any:
        return app(dict(environ), start_response)

    return inner


def of_dispatcher(app: Any) -> Any:
    return DispatcherMiddleware(app, {"/other": Flask("other")})


WSGI = {
    "itself": lambda app: app,
    "StaticFilesHandler": StaticFilesHandler,
    "WhiteNoise": of_whitenoise,
    "OpenTelemetry": of_opentelemetry,
    "Sentry": of_sentry,
    "closure": of_closure,
    "copying": of_copying,
    "dispatcher": of_dispatcher,
    "a bridge from ASGI": lambda app: a2wsgi.ASGIMiddleware(ASGIHandler()),
    "all of them": lambda app: of_sentry(of_whitenoise(StaticFilesHandler(of_opentelemetry(app)))),
}


@pytest.mark.parametrize("make", WSGI.values(), ids=WSGI)
def test_wsgi(make: Any) -> None:
    with MetricsMonitor() as monitor:
        client = werkzeug.test.Client(wrap(make(WSGIHandler()), monitor))
        for asked in ("/items/3/", "/none/", "/login/", "/items/4/"):
            client.get(asked).close()
        assert {row["route"]: row["requests"] for row in monitor.get_routes()} == {
            "/items/<int:i>/": 2,
            "/login/": 1,
            "<unmatched>": 1,
        }
        assert monitor.get_active_user_ids() == ["ada"]
        # By the session, without a policy or a token.
        answer = client.get("/api/metrics/current")
        assert answer.status_code == 200
        assert answer.json is not None
        assert answer.json["metrics"]["total_requests"] == 4
        assert (
            werkzeug.test.Client(client.application).get("/api/metrics/current").status_code == 401
        )
        assert client.get("/api/metrics/health").status_code == 200
        assert monitor.total_requests == 4


def of_opentelemetry_asgi(app: Any) -> Any:
    return pytest.importorskip("opentelemetry.instrumentation.asgi").OpenTelemetryMiddleware(app)


def of_sentry_asgi(app: Any) -> Any:
    return pytest.importorskip("sentry_sdk.integrations.asgi").SentryAsgiMiddleware(app)


def of_channels(app: Any) -> Any:
    from channels.generic.websocket import WebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter

    sockets = URLRouter([path("ws/", WebsocketConsumer.as_asgi())])
    return ProtocolTypeRouter({"http": app, "websocket": sockets})


def of_copying_asgi(app: Any) -> Any:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await app(dict(scope), receive, send)

    return inner


ASGI = {
    "itself": lambda app: app,
    "ASGIStaticFilesHandler": ASGIStaticFilesHandler,
    "Channels": of_channels,
    "OpenTelemetry": of_opentelemetry_asgi,
    "Sentry": of_sentry_asgi,
    "copying": of_copying_asgi,
    "asgiref's bridge from WSGI": lambda app: of_sentry_asgi(WsgiToAsgi(WSGIHandler())),
    "a2wsgi's": lambda app: a2wsgi.WSGIMiddleware(StaticFilesHandler(WSGIHandler())),
    "Channels in Sentry": lambda app: of_sentry_asgi(of_channels(app)),
}


@pytest.mark.parametrize("make", ASGI.values(), ids=ASGI)
def test_asgi(make: Any) -> None:
    with MetricsMonitor() as monitor:
        app = wrap(make(ASGIHandler()), monitor)

        async def ask() -> None:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.get("/api/metrics/current")).status_code == 401
                for asked in ("/items/3/", "/none/", "/login/", "/items/4/"):
                    await client.get(asked)
                answer = await client.get("/api/metrics/current")
                assert answer.status_code == 200
                assert answer.json()["metrics"]["total_requests"] == 4

        asyncio.run(ask())
        assert {row["route"]: row["requests"] for row in monitor.get_routes()} == {
            "/items/<int:i>/": 2,
            "/login/": 1,
            "<unmatched>": 1,
        }
        assert monitor.get_active_user_ids() == ["ada"]


def test_channels_sockets_are_counted() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(of_channels(ASGIHandler()), monitor)
        with TestClient(app).websocket_connect("/ws/"):
            assert monitor.get_websocket_connections() == 1
        assert monitor.get_websocket_connections() == 0
        assert monitor.total_requests == 0


def test_mounted_in_a_starlette() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(Starlette(routes=[Mount("/django", ASGIHandler())]), monitor)
        assert TestClient(app).get("/django/items/3/").status_code == 200
        assert [row["route"] for row in monitor.get_routes()] == ["/django/items/<int:i>/"]


def test_mounted_beside_a_flask() -> None:
    flask = Flask(__name__)
    flask.add_url_rule("/page", "page", lambda: "page")
    with MetricsMonitor() as monitor:
        app = wrap(DispatcherMiddleware(flask, {"/django": WSGIHandler()}), monitor)
        client = werkzeug.test.Client(app)
        client.get("/django/items/3/").close()
        client.get("/page").close()
        routes = {row["route"] for row in monitor.get_routes()}
        assert routes == {"/django/items/<int:i>/", "/page"}
        assert client.get("/api/metrics/health").status_code == 200


def test_what_is_wrapped_twice_counts_once() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(of_whitenoise(wrap(WSGIHandler(), monitor)), monitor, path="/outer")
        client = werkzeug.test.Client(app)
        client.get("/items/3/").close()
        assert [row["route"] for row in monitor.get_routes()] == ["/items/<int:i>/"]
        for path_ in ("/outer/health", "/api/metrics/health"):
            assert client.get(path_).status_code == 200
        assert monitor.total_requests == 1
