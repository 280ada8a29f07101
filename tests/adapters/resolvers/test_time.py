"""The time that an app's own resolvers take is not counted as its requests' latency."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from werkzeug.test import Client

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.clock import ManualClock


def resolvers(clock: ManualClock) -> dict[str, Callable[[Any], str]]:
    def slowly(_: object) -> str:
        clock.advance(3.0)
        return "/slow"

    return {"route": slowly, "user": slowly}


def assert_only_the_app_was_timed(monitor: MetricsMonitor) -> None:
    assert monitor.get_current_snapshot().latency_max_ms == 500.0
    (row,) = monitor.get_routes()
    assert (row["route"], row["latency_max_ms"]) == ("/slow", 500.0)
    assert monitor.get_active_user_ids() == ["/slow"]


def test_of_wsgi(monitor: MetricsMonitor, clock: ManualClock) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        clock.advance(0.5)
        start_response("200 OK", [])
        return [b"hello"]

    Client(wrap(app, monitor, kind="wsgi", **resolvers(clock))).get("/")
    assert_only_the_app_was_timed(monitor)


def test_of_asgi(monitor: MetricsMonitor, clock: ManualClock) -> None:
    def app(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        clock.advance(0.5)
        return PlainTextResponse("hello")(scope, receive, send)

    TestClient(wrap(app, monitor, kind="asgi", **resolvers(clock))).get("/")
    assert_only_the_app_was_timed(monitor)
