"""ASGI or WSGI: told by what an application takes itself, or by hand."""

from __future__ import annotations

import functools
import wsgiref.validate
from typing import Any

import pytest
import webob
import webob.dec
import werkzeug.local
import werkzeug.test
import werkzeug.wrappers
import wrapt
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


def wsgi(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


class Slot:
    """Its `__call__` is an attribute, as that of Sentry's and Honeybadger's middlewares."""

    __slots__ = ("__call__", "app")

    def __init__(self, app: Any) -> None:
        self.app = app
        self.__call__ = self._asgi3

    async def _asgi3(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def of_another_signature(function: Any) -> Any:
    """A decorator that makes an application of a view."""

    @functools.wraps(function)
    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [function(environ)]

    return application


def of_any_arguments(function: Any) -> Any:
    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return traced


def unnamed(function: Any) -> Any:
    def traced(*args: Any) -> Any:
        return function(*args)

    return traced


@werkzeug.wrappers.Request.application
def of_werkzeug(request: Any) -> Any:
    return werkzeug.wrappers.Response("hello")


@webob.dec.wsgify
def of_webob(request: Any) -> Any:
    return webob.Response("hello")


WSGI = {
    "Werkzeug's application": of_werkzeug,
    "WebOb's wsgify": of_webob,
    "wsgiref's validator": wsgiref.validate.validator(wsgi),
    "another signature": of_another_signature(lambda environ: b"hello"),
    "any arguments": of_any_arguments(wsgi),
    "any arguments, twice": of_any_arguments(of_any_arguments(wsgi)),
    "any arguments, without saying of what": unnamed(wsgi),
}
ASGI = {
    "a slot": Slot(asgi),
    "any arguments": of_any_arguments(asgi),
    "any arguments, twice": of_any_arguments(of_any_arguments(asgi)),
    "any arguments of an object": of_any_arguments(Slot(asgi)),
}


@pytest.mark.parametrize("app", WSGI.values(), ids=WSGI)
@pytest.mark.filterwarnings("ignore")
def test_wsgi(app: Any) -> None:
    with MetricsMonitor() as monitor:
        wrapped = wrap(app, monitor)
        assert isinstance(wrapped, WSGIMetricsMiddleware)
        with werkzeug.test.Client(wrapped).get("/") as answer:
            assert answer.get_data() == b"hello"
        assert monitor.total_requests == 1


@pytest.mark.parametrize("app", ASGI.values(), ids=ASGI)
def test_asgi(app: Any) -> None:
    with MetricsMonitor() as monitor:
        wrapped = wrap(app, monitor)
        assert isinstance(wrapped, ASGIMetricsMiddleware)
        assert TestClient(wrapped).get("/").text == "hello"
        assert monitor.total_requests == 1


def called(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


PROXIES = {
    "CallableObjectProxy": wrapt.CallableObjectProxy,
    "FunctionWrapper": lambda app: wrapt.FunctionWrapper(app, called),
    "LocalProxy": lambda app: werkzeug.local.LocalProxy(lambda: app),
    "twice": lambda app: wrapt.CallableObjectProxy(wrapt.FunctionWrapper(app, called)),
}


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
@pytest.mark.parametrize("kind", [Flask, Starlette, FastAPI])
def test_a_proxy_of_a_framework_s_object(kind: Any, proxy: Any) -> None:
    """As tools that watch apps put around one."""
    app = proxy(kind("name") if kind is Flask else kind())
    with MetricsMonitor() as monitor:
        assert wrap(app, monitor) is app
        if kind is Flask:
            werkzeug.test.Client(app).get("/").close()
        else:
            # A test client takes a proxy for an app of ASGI 2.
            async def server(scope: Any, receive: Any, send: Any) -> None:
                await app(scope, receive, send)

            TestClient(server).get("/")
        assert monitor.total_requests == 1


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
def test_a_proxy_of_a_function(proxy: Any) -> None:
    with MetricsMonitor() as monitor:
        assert isinstance(wrap(proxy(asgi), monitor), ASGIMetricsMiddleware)
        assert isinstance(wrap(proxy(wsgi), monitor), WSGIMetricsMiddleware)


def test_said_by_hand() -> None:
    def either(a: Any, b: Any = None, c: Any = None) -> Any:
        return wsgi(a, b) if c is None else asgi(a, b, c)

    with MetricsMonitor() as monitor:
        with pytest.raises(TypeError, match='kind="asgi"'):
            wrap(either, monitor)
        assert TestClient(wrap(either, monitor, kind="asgi")).get("/").text == "hello"
        with werkzeug.test.Client(wrap(either, monitor, kind="wsgi")).get("/") as answer:
            assert answer.get_data() == b"hello"
        assert monitor.total_requests == 2
        wrong: Any = "cgi"
        for app in (either, Starlette()):
            with pytest.raises(ValueError, match="'cgi'"):
                wrap(app, monitor, kind=wrong)
        nothing: Any = None
        with pytest.raises(TypeError, match="cannot be called"):
            wrap(nothing, monitor, kind="wsgi")


@pytest.mark.parametrize(
    ("module", "name", "way_out"),
    [
        ("aiohttp.web_app", "Application", "aiohttp is neither"),
        ("tornado.web", "Application", "Tornado is neither"),
        ("robyn", "Robyn", "Robyn is neither"),
        ("dash.dash", "Dash", r"\.server"),
    ],
)
def test_what_is_refused_is_told_why(module: str, name: str, way_out: str) -> None:
    """By classes of these names: the packages are not needed here."""
    kind: Any = type(name, (), {"__module__": module})
    with pytest.raises(TypeError, match=way_out):
        wrap(kind(), MetricsMonitor())
