"""Builds without a GIL report a complete response step by step: resolvers run without the lock."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import metricsmw.engine.recording.recorder
from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.clock import ManualClock


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_everything_is_counted(interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metricsmw.engine.recording.recorder, "NEEDS_LOCK", True)
    clock = ManualClock()

    def route(request: Any) -> str:
        clock.advance(0.25)  # which is not the request's
        return "/x"

    settings: Any = {"route": route, "user": lambda request: "ann"}

    async def take(*_: object) -> None:
        pass

    with MetricsMonitor(clock=clock) as monitor:
        if interface == "wsgi":
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
            measured: Any = WSGIMetricsMiddleware(wsgi_app, monitor, **settings)
            assert measured(environ, lambda *_: None) == [b"hello"]
        else:
            scope = {"type": "http", "method": "GET", "path": "/"}
            app = ASGIMetricsMiddleware(asgi_app, monitor, **settings)
            asyncio.run(app(scope, take, take))  # type: ignore[arg-type]
        (row,) = monitor.get_routes()
        assert (row["route"], row["statuses"]) == ("/x", {"2xx": 1})
        assert monitor.get_active_user_ids() == ["ann"]
        snapshot = monitor.get_current_snapshot()
        assert snapshot.requests_in_flight == 0
        assert snapshot.latency_max_ms < 1


def test_a_captured_request_is_asked_for_its_user_without_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user's own lock may be held by a thread that waits for this one."""
    monkeypatch.setattr(metricsmw.engine.recording.recorder, "NEEDS_LOCK", True)
    clock = ManualClock()
    asked: list[bool] = []

    def user(environ: Any) -> str:
        other = threading.Thread(target=monitor.record_request, args=(1.0,), daemon=True)
        other.start()
        other.join(5)
        asked.append(not other.is_alive())
        return "ann"

    def app(environ: Any, start_response: Any) -> list[bytes]:
        clock.advance(1)
        return wsgi_app(environ, start_response)

    with MetricsMonitor(clock=clock, capture=("user",)) as monitor:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        measured: Any = WSGIMetricsMiddleware(app, monitor, user=user)
        measured(environ, lambda *_: None)
        assert asked == [True]
        (captured,) = monitor.get_slowest()
        assert captured["user"] == "ann"


def test_an_exception_is_asked_for_its_message_without_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metricsmw.engine.recording.recorder, "NEEDS_LOCK", True)
    asked: list[bool] = []

    class TalkingError(Exception):
        def __str__(self) -> str:
            other = threading.Thread(target=monitor.record_request, args=(1.0,), daemon=True)
            other.start()
            other.join(5)
            asked.append(not other.is_alive())
            return "no"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise TalkingError
        except TalkingError:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})

    async def take(*_: object) -> None:
        pass

    with MetricsMonitor(capture=("message",)) as monitor:
        scope = {"type": "http", "method": "GET", "path": "/"}
        asyncio.run(ASGIMetricsMiddleware(app, monitor)(scope, take, take))  # type: ignore[arg-type]
        (error,) = monitor.get_errors()
        assert (error["message"], error["count"], asked) == ("no", 1, [True])
        assert monitor.get_current_snapshot().requests_in_flight == 0
