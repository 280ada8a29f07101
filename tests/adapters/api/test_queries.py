"""A query that is no text is a 400 on every route, under WSGI and ASGI, and changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from metricsmw import MetricsMonitor
from metricsmw.adapters.api import asgi_app, wsgi_app
from metricsmw.adapters.api.answers import ROUTES
from metricsmw.adapters.auth import public

EACH = [(path, method) for path, methods in ROUTES.items() for method in methods]
# A lone surrogate, as some encode it; in a pair, likewise; a byte that UTF-8 does not have.
BAD = [
    "method=GET&route=%ED%A0%80",
    "%ed%a0%80%ed%b0%80=1",
    "minutes=%FF",
    "route=%C3",
    "\xed\xa0\x80",
]

Ask = Callable[[MetricsMonitor, str, str, str], tuple[int, bytes]]


def over_wsgi(monitor: MetricsMonitor, path: str, method: str, query: str) -> tuple[int, bytes]:
    environ = EnvironBuilder("/", method=method).get_environ()
    environ |= {"PATH_INFO": path, "QUERY_STRING": query}
    body, status, _ = run_wsgi_app(wsgi_app.metrics_app(monitor, public()), environ)
    return int(status.split()[0]), b"".join(body)


def over_asgi(monitor: MetricsMonitor, path: str, method: str, query: str) -> tuple[int, bytes]:
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    raw = query.encode("latin-1")
    asyncio.run(
        asgi_app.metrics_app(monitor, public())({**scope, "query_string": raw}, receive, send)
    )
    return status, body


@pytest.mark.parametrize("ask", [over_wsgi, over_asgi])
@pytest.mark.parametrize(("path", "method"), EACH)
def test_no_text(monitor: MetricsMonitor, ask: Ask, path: str, method: str) -> None:
    monitor.record_request(1.0)
    for query in BAD:
        status, body = ask(monitor, path, method, query)
        assert (status, json.loads(body)) == (400, {"error": "the query is not text in UTF-8"})
    assert monitor.total_requests == 1
    assert monitor.get_health()["faults"] == 0


@pytest.mark.parametrize(("path", "method"), EACH)
def test_a_surrogate_in_environ_itself(monitor: MetricsMonitor, path: str, method: str) -> None:
    assert over_wsgi(monitor, path, method, "route=\udcff")[0] == 400


def test_a_surrogate_in_the_path(monitor: MetricsMonitor) -> None:
    assert over_wsgi(monitor, "/\udcff", "GET", "")[0] == 404


@pytest.mark.parametrize("ask", [over_wsgi, over_asgi])
def test_text_of_any_language(monitor: MetricsMonitor, ask: Ask) -> None:
    status, body = ask(monitor, "/series", "GET", "method=GET&route=/caf%C3%A9%F0%9F%8D%B5")
    assert status == 200
    assert (
        json.loads(body)["route"]
        == "/caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{TEACUP WITHOUT HANDLE}"
    )
