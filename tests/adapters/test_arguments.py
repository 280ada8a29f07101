"""Arguments that cannot be meant are refused at once, by a sentence with the value in it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import fastapi
import flask
import litestar
import pytest
import quart
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Router

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


def wsgi(environ: Any, start_response: Any) -> Any:
    return [b"hello"]


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


HOSTS: dict[str, Callable[[], Any]] = {
    "WSGI": lambda: wsgi,
    "ASGI": lambda: asgi,
    "Flask": lambda: Flask(__name__),
    "Starlette": Starlette,
    "FastAPI": FastAPI,
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"monitor": 60}, "monitor must be a MetricsMonitor or None, got 60; for a window of 60 s"),
        ({"monitor": True}, "monitor must be a MetricsMonitor or None, got True"),
        ({"monitor": "/metrics"}, "got '/metrics'; for another path give path='/metrics'"),
        ({"monitor": MetricsMonitor}, "monitor must be a MetricsMonitor or None, got <class"),
        ({"user": "X-User"}, "user must be a function that takes a request's environ or scope"),
        ({"user": "X-User"}, "got 'X-User'"),
        ({"route": "/x"}, "route must be a function .* got '/x'"),
        ({"path": "metrics"}, "path must start with a slash and go on, .* got 'metrics'"),
        ({"path": None}, "path must start with a slash and go on, .* got None"),
        ({"path": 60}, "path must start with a slash and go on, .* got 60"),
        ({"exclude": 5}, "exclude must hold path prefixes .* got 5"),
        ({"exclude": [5]}, "exclude must hold path prefixes .* got 5"),
        ({"auth": 5}, "auth must be None or a policy such as token"),
        ({"health_thresholds": {"nonsense": 5}}, "no snapshot field 'nonsense'"),
    ],
)
@pytest.mark.parametrize("host", HOSTS)
def test_wrap(host: str, arguments: dict[str, Any], said: str) -> None:
    with MetricsMonitor() as monitor:
        app = HOSTS[host]()
        before = dict(vars(app))
        with pytest.raises((TypeError, ValueError), match=said):
            wrap(app, **{"monitor": monitor, **arguments})
        if "auth" not in arguments:
            assert vars(app) == before  # nothing was begun


@pytest.mark.parametrize("make", [WSGIMetricsMiddleware, ASGIMetricsMiddleware])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"monitor": 60}, "got 60"), ({"user": "X"}, "got 'X'"), ({"route": 5}, "got 5")],
)
def test_the_middlewares(make: Any, arguments: dict[str, Any], said: str) -> None:
    with MetricsMonitor() as monitor, pytest.raises(TypeError, match=said):
        make(wsgi, **{"monitor": monitor, **arguments})


class NoApp:
    def __init__(self, name: str, size: int) -> None: ...


class NoAsyncApp:
    def __init__(self, a: Any, b: Any, c: Any) -> None: ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Empty: ...


def make_app() -> Any:
    return asgi


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (fastapi.APIRouter(), "wrap the FastAPI application that includes it"),
        (flask.Blueprint("shop", __name__), "wrap the Flask application that registers it"),
        (quart.Blueprint("shop", __name__), "wrap the Quart application that registers it"),
        (litestar.Router("/", route_handlers=[]), "wrap the Litestar application"),
        (None, "got None of type builtins.NoneType; it cannot be called$"),
        (types, "it is a module: wrap the application in it$"),
        ("app:app", "got 'app:app' .* it is a text: wrap the application that it names$"),
        (NoApp, "it is a class: wrap an instance of it"),
        (NoAsyncApp, "it is a class: wrap an instance of it"),
        (Empty, "it is a class: wrap an instance of it"),
        (make_app, "if it makes the application, wrap what it returns"),
    ],
)
def test_what_is_no_application(app: Any, said: str) -> None:
    with MetricsMonitor() as monitor, pytest.raises(TypeError, match=said) as caught:
        wrap(app, monitor)
    assert repr(app) in str(caught.value)


class IterableApp:
    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"hello"])


class AwaitableApp:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def __await__(self) -> Iterator[None]:
        yield


class MadeOtherwise:
    def __new__(cls, environ: Any, start_response: Any) -> Any:
        return [b"hello"]


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (IterableApp, WSGIMetricsMiddleware),
        (AwaitableApp, ASGIMetricsMiddleware),
        (MadeOtherwise, WSGIMetricsMiddleware),
        (Router(), ASGIMetricsMiddleware),  # which is an application by itself
    ],
)
def test_what_is_one(app: Any, kind: type) -> None:
    with MetricsMonitor() as monitor:
        assert isinstance(wrap(app, monitor, exclude=iter(["/x"])), kind)
