"""What pickles bare pickles wrapped: Ray Serve and `multiprocessing`'s spawn send apps so."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import cloudpickle  # type: ignore[import-untyped,unused-ignore]
import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def raw(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


def raw_wsgi(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [])
    return [b"hello"]


def of(kind: type[Starlette]) -> Any:
    app = kind()
    # Starlette's own state cannot be loaded, bare or wrapped.
    app.state = SimpleNamespace()  # type: ignore[assignment]
    app.add_route("/hello", hello)
    return app


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("kind", [FastAPI, Starlette])
def test_the_copy_is_measured_by_the_process_that_loads_it(
    kind: type[Starlette], asked_before: bool
) -> None:
    app = wrap(of(kind), path="/metrics", auth=public(), exclude=["/health"])
    if asked_before:
        assert TestClient(app).get("/hello").text == "hello"
    data = cloudpickle.dumps(app)
    get_metrics_monitor().reset_statistics()
    copied = pickle.loads(data)
    assert isinstance(copied, kind)
    client = TestClient(copied)
    assert client.get("/hello").text == "hello"
    assert get_metrics_monitor().total_requests == 1
    assert client.get("/metrics/health").status_code == 200
    assert get_metrics_monitor().get_routes()[0]["route"] == "/hello"
    client.get("/health")
    assert get_metrics_monitor().total_requests == 1


class Slotted(Starlette):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.slot = "kept"


class Again(Starlette):
    """Pickles as what makes it."""

    slot = "kept"

    def __reduce__(self) -> Any:
        return Again, ()


class Loaded(Again):
    """Pickles in a way of its own, with a state."""

    def __reduce__(self) -> Any:
        return Loaded, (), {"slot": "kept"}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [Slotted, Again, Loaded])
def test_subclasses_that_pickle_otherwise(kind: type[Starlette], protocol: int) -> None:
    app: Any = kind()
    app.state = SimpleNamespace()
    copied: Any = pickle.loads(pickle.dumps(wrap(app), protocol))
    assert type(copied).__mro__[1] is kind
    assert copied.slot == "kept"
    get_metrics_monitor().reset_statistics()
    TestClient(copied).get("/")
    assert get_metrics_monitor().total_requests == 1
    again: Any = pickle.loads(pickle.dumps(copied, protocol))
    TestClient(again).get("/")
    assert get_metrics_monitor().total_requests == 2


def test_a_monitor_of_its_own_is_private_in_the_copy_too() -> None:
    with MetricsMonitor(window_seconds=60) as monitor:
        app = wrap(of(Starlette), monitor, auth=public())
        copied: Any = pickle.loads(cloudpickle.dumps(app))
        client = TestClient(copied)
        client.get("/hello")
        statistics = client.get("/api/metrics/statistics").json()["statistics"]
        assert statistics["configuration"]["window_seconds"] == 60
        assert statistics["totals"]["total_requests"] == 1
        assert monitor.total_requests == 0


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
def test_a_shallow_copy(kind: type[Starlette]) -> None:
    bare = copy.copy(of(kind))
    assert TestClient(bare).get("/hello").text == "hello"
    with MetricsMonitor() as monitor:
        copied = copy.copy(wrap(of(kind), monitor))
        assert TestClient(copied).get("/hello").text == "hello"
        assert monitor.total_requests == 1


@pytest.mark.parametrize(
    ("app", "kind"), [(raw, ASGIMetricsMiddleware), (raw_wsgi, WSGIMetricsMiddleware)]
)
def test_the_middlewares(app: Any, kind: type) -> None:
    wrapped = wrap(app, path="/metrics")
    copied = pickle.loads(cloudpickle.dumps(wrapped))
    assert isinstance(copied, kind)
    if app is raw:
        assert TestClient(copied).get("/").text == "hello"
    else:
        assert copied({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None) == [b"hello"]
    assert get_metrics_monitor().total_requests == 1


def test_a_wrapped_flask_is_as_before() -> None:
    """Bare ones cannot be pickled; what they say of it stays the same kind of error."""
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(Flask(__name__))
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(wrap(Flask(__name__)))


def test_a_shallow_copy_of_a_wrapped_flask_is_a_bare_one() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(Flask(__name__), monitor)
        copied = copy.copy(app)
        assert copied.test_client().get("/").status_code == 404
        assert monitor.total_requests == 0
        assert app.test_client().get("/").status_code == 404
        assert monitor.total_requests == 1
