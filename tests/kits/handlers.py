"""The sub-app's handlers, asked without any framework: its routes, and reading an answer."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from metricsmw.adapters.api import answers
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Identity, Request, Response

SNAPSHOT = [
    "timestamp",
    "request_rate_rpm",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "active_users",
    "memory_usage_pct",
    "memory_usage_mb",
    "cpu_usage_pct",
    "websocket_connections",
    "total_requests",
    "total_errors",
    "latency_max_ms",
    "requests_in_flight",
    "workers",
    "cpu_share_pct",
    "server_error_rate_pct",
    "total_server_errors",
]
TOTALS = ["total_requests", "total_errors", "total_error_rate_pct"]
CONFIGURATION = ["window_seconds", "user_timeout_seconds", "max_history_minutes"]
COMPONENTS = ["metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"]
ROUTE = [
    "method",
    "route",
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "statuses",
    "latency_ttfb_p50_ms",
    "latency_ttfb_p95_ms",
    "latency_ttfb_p99_ms",
    "status_codes",
    "server_error_rate_pct",
    "request_rate_rpm",
    "time_share_pct",
]
SLOW_REQUEST = [
    "timestamp",
    "ended",
    "method",
    "route",
    "status",
    "latency_ms",
    "latency_ttfb_ms",
    "pid",
    "requests_in_flight",
    "trace_id",
    "span_id",
    "request_id",
    "error",
    "path",
    "query",
    "user",
]

# Each has one method. Signing in and the widget's file are asked for apart, and so is the stream.
ROUTES = {
    path: next(iter(methods))
    for path, methods in answers.ROUTES.items()
    if path not in ("/signin", "/signout", "/widget.js", "/stream")
}
# What is answered, where it is not 200, to one who asks for nothing in particular.
STATUS = {"/alerts/silence": 400, "/alerts/test": 404}
OPEN = ("/health", "/signin", "/signout", "/widget.js")
READABLE = [path for path, method in ROUTES.items() if method == "GET"]
GUARDED = [path for path in ROUTES if path not in OPEN]
UNKNOWN = [
    "/nope",
    "/current/",
    "/Current",
    "/health/",
    "/export",
    "//",
    "//current",
    "current",
    "/%63urrent",
    "/current\0",
    "/../current",
    "/caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{REPLACEMENT CHARACTER}",
    "/\udcff",
]


def ask(
    handlers: Handlers,
    path: str,
    method: str = "GET",
    query: str = "",
    identity: Identity = lambda: None,
    **headers: str,
) -> Response:
    """Ask as a host would; header names are given with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return handlers.handle(Request(method, path, query, named, identity))


def headers_of(response: Response) -> dict[str, str]:
    headers = {name.lower(): value for name, value in response.headers}
    assert len(headers) == len(response.headers), "a header came twice"
    return headers


def body_of(response: Response) -> dict[str, Any]:
    assert headers_of(response)["content-type"] == "application/json"
    body = json.loads(response.body)
    assert isinstance(body, dict)
    return body


def assert_error(response: Response, status: int, message: str) -> None:
    assert response.status == status
    assert body_of(response) == {"error": message}


def assert_refused(response: Response) -> None:
    assert response.status == 401
    body = body_of(response)
    assert body.pop("error") == "Authentication required"
    assert all(isinstance(way, str) for way in body.pop("ways_in"))
    assert not body


def assert_utc(timestamp: object) -> None:
    assert isinstance(timestamp, str)
    assert datetime.fromisoformat(timestamp).utcoffset() == timedelta(0)
