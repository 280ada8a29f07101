"""The live stream is offered where the server is known to serve many at once, and only there."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable
from typing import Any

import a2wsgi
import pytest
import werkzeug.test
from fastapi import FastAPI
from kits.servers import serve

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public


def status_of(ask: Callable[[], int]) -> int | None:
    """Return what asking for the stream answers; None where it holds who asked."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(10)
    return answers[0] if answers else None


def test_not_below_a_bridge_to_wsgi() -> None:
    app: Any = a2wsgi.ASGIMiddleware(wrap(FastAPI(), MetricsMonitor(), auth=public()))

    def ask() -> int:
        with werkzeug.test.Client(app).get("/api/metrics/stream") as answer:
            answer.get_data()
            return answer.status_code

    assert status_of(ask) == 406


def test_not_on_lambda() -> None:
    mangum = pytest.importorskip("mangum")
    app = mangum.Mangum(wrap(FastAPI(), MetricsMonitor(), auth=public()), lifespan="off")
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/api/metrics/stream",
        "rawQueryString": "",
        "headers": {"host": "test"},
        "requestContext": {
            "http": {
                "method": "GET",
                "path": "/api/metrics/stream",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
            },
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }

    def ask() -> int:
        # Mangum runs its app in the thread's current event loop, and makes none by itself.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return int(app(event, None)["statusCode"])
        finally:
            loop.close()

    assert status_of(ask) == 406


def test_a_django_asgi_app_streams() -> None:
    env = {"METRICSMW_TOKEN": "secret"}
    with serve("uvicorn", "apps.django_asgi:app", env=env, ready="/hello") as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
        headers = {"Authorization": "Bearer secret"}
        connection.request("GET", "/api/metrics/stream", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline()
        connection.close()
