"""`GET /health` with thresholds of the user's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters import asgi, wrap, wsgi
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.auth import public

THRESHOLDS = {"error_rate_pct": 5.0, "latency_p99_ms": 1000}


def health(monitor: MetricsMonitor) -> tuple[int, Any]:
    answer = Handlers(monitor, public()).handle(Request("GET", "/health", "", {}))
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize("status", [200, 503])
def test_degraded_while_a_check_fails(monitor: MetricsMonitor, status: int) -> None:
    monitor.set_health_thresholds(THRESHOLDS, status)
    code, body = health(monitor)
    assert (code, body["status"], body["success"]) == (200, "healthy", True)
    assert body["checks"] == {"error_rate_pct": True, "latency_p99_ms": True}
    monitor.record_request(10.0, is_error=True)
    code, body = health(monitor)
    assert (code, body["status"], body["success"]) == (status, "degraded", status == 200)
    assert body["checks"] == {"error_rate_pct": False, "latency_p99_ms": True}
    assert set(body["components"].values()) == {"operational"}
    monitor.set_health_thresholds({})
    code, body = health(monitor)
    assert (code, body["status"]) == (200, "healthy")
    assert "checks" not in body


@pytest.mark.parametrize(
    ("thresholds", "status", "error"),
    [
        ({"error_rate": 5}, 503, ValueError),
        ({"error_rate_pct": "5"}, 503, TypeError),
        ({"error_rate_pct": float("nan")}, 503, ValueError),
        ({"error_rate_pct": 5}, 500, ValueError),
    ],
)
def test_bad_ones_are_refused_and_change_nothing(
    monitor: MetricsMonitor, thresholds: Any, status: int, error: type[Exception]
) -> None:
    monitor.set_health_thresholds(THRESHOLDS)
    with pytest.raises(error):
        monitor.set_health_thresholds(thresholds, status)
    assert monitor.health_rules == (THRESHOLDS, 503)


def bare_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b""]


async def bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


OPTIONS: dict[str, Any] = {
    "auth": public(),
    "health_thresholds": THRESHOLDS,
    "health_status": 200,
}


@pytest.mark.parametrize(
    "make", [lambda m: wrap(bare_wsgi, m, **OPTIONS), None], ids=["wrap", "app"]
)
def test_wsgi(monitor: MetricsMonitor, make: Any) -> None:
    app = make(monitor) if make else wsgi.metrics_app(monitor, **OPTIONS)
    monitor.record_request(10.0, is_error=True)
    with httpx.Client(transport=httpx.WSGITransport(app=app), base_url="http://h") as client:
        answer = client.get("/api/metrics/health" if make else "/health")
    assert answer.status_code == 200
    assert answer.json()["checks"]["error_rate_pct"] is False


@pytest.mark.parametrize(
    "make", [lambda m: wrap(bare_asgi, m, **OPTIONS), None], ids=["wrap", "app"]
)
def test_asgi(monitor: MetricsMonitor, make: Any) -> None:
    app = make(monitor) if make else asgi.metrics_app(monitor, **OPTIONS)
    monitor.record_request(10.0, is_error=True)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await client.get("/api/metrics/health" if make else "/health")

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert answer.json()["checks"]["error_rate_pct"] is False
