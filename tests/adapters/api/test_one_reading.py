"""Every route of the sub-app, and every tick of the stream, reads the server once."""

from __future__ import annotations

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.answers import ROUTES
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.api.sse import read_feed
from metricsmw.adapters.auth import public
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.storage.reader import Period
from metricsmw.engine.workers.group import Group

# Of the server's numbers; the others answer from a file, or with what they were built with.
READ = {
    "/current",
    "/custom",
    "/errors",
    "/events",
    "/export/json",
    "/health",
    "/heatmap",
    "/prometheus",
    "/routes",
    "/series",
    "/slowest",
    "/statistics",
    "/workers",
}


@pytest.fixture
def monitor() -> MetricsMonitor:
    monitor = MetricsMonitor()
    monitor.record_request(1.0, method="GET", route="/a")
    return monitor


@pytest.fixture
def readings(monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch) -> list[ServerReading]:
    """All readings from here on."""
    found: list[ServerReading] = []
    real = ServerReader.read

    def read(
        self: ServerReader, group: Group, period: Period, *, routes: bool = False
    ) -> ServerReading:
        found.append(real(self, group, period, routes=routes))
        return found[-1]

    monkeypatch.setattr(ServerReader, "read", read)
    return found


@pytest.mark.parametrize("path", sorted(path for path in ROUTES if "GET" in ROUTES[path]))
def test_a_route(monitor: MetricsMonitor, readings: list[ServerReading], path: str) -> None:
    # Thresholds are held to the same reading.
    monitor.set_health_thresholds({"error_rate_pct": 50.0})
    request = Request(
        method="GET", path=path, query="", headers={}, mount="/api/metrics", streams=True
    )
    assert Handlers(monitor, public()).handle(request).status == 200
    assert len(readings) == (path in READ)


@pytest.mark.parametrize("with_tables", [False, True])
def test_a_tick_of_the_stream(
    monitor: MetricsMonitor, readings: list[ServerReading], with_tables: bool
) -> None:
    read = read_feed(
        monitor,
        monitor.read(routes=with_tables),
        since=None,
        reset_at=0.0,
        with_tables=with_tables,
    )
    assert len(readings) == 1
    assert read.metrics["total_requests"] == 1
    assert ("routes" in read.tables) is with_tables
