"""A request's URL scheme, as the server tells it to the app, is told apart in what is exported."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.exporters.server import exposition

SENT = ["https", "http", "https", "gopher", "https", None]


def ask_wsgi(monitor: MetricsMonitor, schemes: list[str | None]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    wrapped = WSGIMetricsMiddleware(app, monitor)
    for scheme in schemes:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        if scheme is not None:
            environ["wsgi.url_scheme"] = scheme
        wrapped(environ, lambda status, headers, exc_info=None: lambda data: None)


def ask_asgi(monitor: MetricsMonitor, schemes: list[str | None]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def send(message: Any) -> None:
        pass

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask() -> None:
        wrapped = ASGIMetricsMiddleware(app, monitor)
        for scheme in schemes:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            if scheme is not None:
                scope["scheme"] = scheme
            await wrapped(scope, receive, send)

    asyncio.run(ask())


@pytest.mark.parametrize("ask", [ask_wsgi, ask_asgi])
def test_schemes_are_told_apart(monitor: MetricsMonitor, ask: Any) -> None:
    ask(monitor, SENT)
    (durations,) = [
        family
        for family in exposition(monitor).families
        if family.name == "http.server.request.duration"
    ]
    found: Counter[str] = Counter()
    for point in durations.points:
        found[point.attributes["url.scheme"]] += sum(point.counts)
    # Where a scope or an environ has none, it is http.
    assert found == {"https": 3, "http": 2, "_OTHER": 1}
    (row,) = monitor.get_routes()
    assert row["requests"] == len(SENT)
    assert row["status_codes"] == {"200": len(SENT)}
