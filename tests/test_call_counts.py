"""What of speed can be counted, and so is free of noise: calls of functions, and garbage.

Counted as the benchmarks do, with everything on: status, route, user, in flight.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.resolvers.base import ON_START_RESPONSE
from metricsmw.adapters.wsgi import MAX_STATUS_LINES, WSGIMetricsMiddleware

if TYPE_CHECKING:
    from types import ModuleType

ASGI_LIMIT = 14
WSGI_LIMIT = 17


@pytest.fixture(scope="module")
def raw() -> ModuleType:
    """The benchmarks' apps and drivers; that folder is no package."""
    path = Path(__file__).parent.parent / "benchmarks" / "raw.py"
    spec = importlib.util.spec_from_file_location("benchmarks_raw", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave what is called as a response starts as it was."""
    calls = ON_START_RESPONSE[:]
    yield
    ON_START_RESPONSE[:] = calls


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


def assert_calls_added(raw: ModuleType, drive: Any, app: Any, measured: Any, limit: float) -> None:
    # Once some test has imported Flask, every WSGI request calls its resolver, too.
    ON_START_RESPONSE.clear()
    calls = raw.calls_by_function(drive(measured))
    # What few requests call is for the slowest of them, on a busy machine.
    added = sum(each for each in calls.values() if each > 0.1) - raw.calls_per_request(drive(app))
    assert round(added, 1) <= limit, "\n".join(f"{calls[name]} {name}" for name in calls)


def test_asgi(raw: ModuleType, monitor: MetricsMonitor) -> None:
    app = raw.asgi_app
    measured = ASGIMetricsMiddleware(app, monitor, route=raw.route_of, user=raw.user_of)
    assert_calls_added(raw, raw.drive_asgi, app, measured, ASGI_LIMIT)
    assert_everything_was_recorded(monitor)


@pytest.mark.parametrize("body", ["list", "generator"])
def test_wsgi(raw: ModuleType, monitor: MetricsMonitor, body: str) -> None:
    app = getattr(raw, f"wsgi_{body}_app")
    measured = WSGIMetricsMiddleware(app, monitor, route=raw.route_of, user=raw.user_of)
    assert_calls_added(raw, raw.drive_wsgi, app, measured, WSGI_LIMIT)
    assert_everything_was_recorded(monitor)


def test_wsgi_after_an_app_has_made_up_statuses(raw: ModuleType, monitor: MetricsMonitor) -> None:
    """What is remembered of them is forgotten again; it takes no room from others for good."""

    def makes_up(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(environ["status"], [])
        return [b""]

    with MetricsMonitor() as other:
        app = WSGIMetricsMiddleware(makes_up, other)
        for number in range(MAX_STATUS_LINES + 1):
            environ = {"status": f"299 {number}", "REQUEST_METHOD": "GET", "PATH_INFO": "/"}
            list(app(environ, lambda status, headers, exc_info=None: lambda data: None))
    app = raw.wsgi_list_app
    measured = WSGIMetricsMiddleware(app, monitor, route=raw.route_of, user=raw.user_of)
    assert_calls_added(raw, raw.drive_wsgi, app, measured, WSGI_LIMIT - 4)
    assert_everything_was_recorded(monitor)


@pytest.mark.parametrize("body", ["list", "generator"])
def test_wsgi_leaves_no_garbage(raw: ModuleType, monitor: MetricsMonitor, body: str) -> None:
    app = getattr(raw, f"wsgi_{body}_app")
    measured = WSGIMetricsMiddleware(app, monitor, route=raw.route_of, user=raw.user_of)
    assert raw.garbage_per_request(raw.drive_wsgi(measured)) == 0


def test_asgi_leaves_no_garbage(raw: ModuleType, monitor: MetricsMonitor) -> None:
    measured = ASGIMetricsMiddleware(raw.asgi_app, monitor, route=raw.route_of, user=raw.user_of)
    assert raw.garbage_per_request(raw.drive_asgi(measured)) == 0


def assert_everything_was_recorded(monitor: MetricsMonitor) -> None:
    """What was counted above did its work."""
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == 800
    assert snapshot.active_users == 1
    assert snapshot.requests_in_flight == 0
    (row,) = monitor.get_routes()
    assert (row["route"], row["statuses"]) == ("/items/{id}", {"2xx": 800})
