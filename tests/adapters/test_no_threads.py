"""Where no thread can be started, an ASGI app is measured and its metrics answer."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware, metrics_app
from metricsmw.adapters.auth import public


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def get(app: Any, path: str) -> tuple[int, bytes]:
    """Ask an ASGI app; status and body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_the_app_is_measured_and_its_numbers_are_read() -> None:
    with MetricsMonitor(shared=True) as monitor:

        async def ask() -> None:
            app = ASGIMetricsMiddleware(hello, monitor)
            for _ in range(2):
                assert await get(app, "/") == (200, b"hello")
            numbers = metrics_app(monitor, public())
            for path in ("/current", "/statistics", "/routes", "/health", "/export/csv"):
                status, body = await get(numbers, path)
                assert status in (200, 503), (path, body)
            _, body = await get(numbers, "/current")
            assert json.loads(body)["metrics"]["total_requests"] == 2

        loop = asyncio.new_event_loop()  # `asyncio.run` ends with a thread of its own
        try:
            loop.run_until_complete(ask())
        finally:
            loop.close()
        assert monitor.get_health()["mode"] == "shared"
