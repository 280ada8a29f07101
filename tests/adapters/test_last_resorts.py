"""Bodies that nobody closes, requests that come again, and what an app can tell of us."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import webob
import werkzeug.test
from asgiref.wsgi import WsgiToAsgi
from conformance import drivers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


def counted(monitor: MetricsMonitor) -> tuple[int, int]:
    snapshot = monitor.get_current_snapshot()
    return snapshot.total_requests, snapshot.requests_in_flight


class Streaming:
    """A WSGI app whose body is a generator; `ended` says that its `finally` ran."""

    ended = False

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return self.body()

    def body(self) -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            self.ended = True


# --- a body that nobody closes --------------------------------------------------------------------


def test_a_bridge_that_never_closes(monitor: MetricsMonitor) -> None:
    client = TestClient(WsgiToAsgi(wrap(Streaming(), monitor)))
    assert client.get("/").text == "onetwo"
    assert counted(monitor) == (1, 0)


def test_exhausted_and_not_closed(monitor: MetricsMonitor) -> None:
    app = Streaming()
    answer = drivers.call(wrap(app, monitor))
    assert b"".join(answer.body) == b"onetwo"
    answer.body = None
    assert counted(monitor) == (1, 0)


def test_dropped_in_the_middle(monitor: MetricsMonitor) -> None:
    app = Streaming()
    answer = drivers.call(wrap(app, monitor))
    parts = iter(answer.body)
    assert next(parts) == b"one"
    del parts
    answer.body = None
    assert app.ended
    assert counted(monitor) == (1, 0)


# --- a request that comes again -------------------------------------------------------------------


def test_the_same_environ_again(monitor: MetricsMonitor) -> None:
    app = wrap(drivers.wsgi_hello, monitor)
    request = webob.Request.blank("/")
    for _ in range(2):
        assert request.get_response(app).body == b"hello"
    assert counted(monitor) == (2, 0)


def test_the_same_scope_again(monitor: MetricsMonitor) -> None:
    app = wrap(drivers.hello, monitor)
    scope = drivers.new_scope()
    for _ in range(2):
        assert drivers.fetch(app, scope) == b"hello"
    assert counted(monitor) == (2, 0)


def test_webtest(monitor: MetricsMonitor) -> None:
    webtest = pytest.importorskip("webtest")
    client = webtest.TestApp(wrap(drivers.wsgi_hello, monitor), lint=True)
    for _ in range(2):
        assert client.get("/").body == b"hello"
    assert counted(monitor) == (2, 0)


# --- what an app can tell -------------------------------------------------------------------------


def test_what_an_app_returns_is_passed_on(monitor: MetricsMonitor) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> str:
        await drivers.hello(scope, receive, send)
        return "no ASGI app returns anything"

    exchange = drivers.Exchange(dict(drivers.REQUEST))
    measured: Any = wrap(app, monitor)
    returned = asyncio.run(measured(drivers.new_scope(), exchange.receive, exchange.send))
    assert returned == "no ASGI app returns anything"


def test_a_scope_without_a_method(monitor: MetricsMonitor) -> None:
    app = wrap(drivers.hello, monitor)
    scope = {"type": "http", "path": "/"}
    assert drivers.fetch(app, scope) == b"hello"
    assert counted(monitor) == (1, 0)
    assert monitor.get_health()["faults"] == 0


def test_a_scope_without_a_path(monitor: MetricsMonitor) -> None:
    app = wrap(drivers.hello, monitor)
    assert drivers.fetch(app, {"type": "http", "method": "GET"}) == b"hello"
    assert counted(monitor) == (1, 0)


def test_an_environ_without_a_method(monitor: MetricsMonitor) -> None:
    app = wrap(drivers.wsgi_hello, monitor)
    answer = drivers.Answer()
    assert app({}, answer.start_response) == [b"hello"]
    assert counted(monitor) == (1, 0)
    assert monitor.get_health()["faults"] == 0


def test_nothing_stays_in_environ_or_scope(monitor: MetricsMonitor) -> None:
    environ, scope = drivers.new_environ(), drivers.new_scope()
    keys = set(environ), set(scope)
    drivers.call(wrap(drivers.wsgi_hello, monitor), environ).read()
    drivers.fetch(wrap(drivers.hello, monitor), scope)
    assert (set(environ), set(scope)) == keys


@pytest.mark.parametrize("host", ["starlette", "fastapi", "flask"])
def test_a_request_leaves_nothing_to_collect(host: str, monitor: MetricsMonitor) -> None:
    """Nothing more than the bare app."""
    from fastapi import FastAPI
    from flask import Flask
    from starlette.applications import Starlette

    def make() -> Any:
        if host == "flask":
            app: Any = Flask(__name__)
            app.add_url_rule("/x", "x", lambda: "x")
            return app
        app = Starlette() if host == "starlette" else FastAPI()
        app.add_route("/x", lambda request: PlainTextResponse("x"))
        return app

    def objects(app: Any) -> float:
        def ask() -> None:
            if host == "flask":
                drivers.get(app, "/x")
            else:
                loop.run_until_complete(drivers.ask(app, path="/x"))

        for _ in range(5):
            ask()
        # The least of some: threads of other tests may leave something, too.
        return min(left_by(ask) for _ in range(3))

    def left_by(ask: Callable[[], None]) -> float:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                ask()
            return gc.collect() / 20
        finally:
            gc.enable()

    loop = asyncio.new_event_loop()
    try:
        bare, wrapped = objects(make()), objects(wrap(make(), monitor))
    finally:
        loop.close()
    assert wrapped <= bare + 1


# --- files ----------------------------------------------------------------------------------------


def test_no_file_is_touched_in_the_event_loop() -> None:
    blockbuster = pytest.importorskip("blockbuster")
    with MetricsMonitor(shared=True) as monitor:
        app = wrap(drivers.hello, monitor)

        async def ask() -> None:
            with blockbuster.blockbuster_ctx():
                await drivers.ask(app)

        asyncio.run(ask())
        assert counted(monitor) == (1, 0)
        assert monitor.get_health()["faults"] == 0


def test_werkzeug_s_client_twice(monitor: MetricsMonitor) -> None:
    client = werkzeug.test.Client(wrap(Streaming(), monitor))
    for _ in range(2):
        with client.get("/") as answer:
            assert answer.get_data() == b"onetwo"
    assert counted(monitor) == (2, 0)
