"""Each route's answer: keys in order, recorded numbers, exports, health."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from datetime import datetime, timezone
from urllib.parse import urlencode

import pytest
from kits.handlers import (
    COMPONENTS,
    CONFIGURATION,
    ROUTE,
    SLOW_REQUEST,
    SNAPSHOT,
    TOTALS,
    ask,
    assert_error,
    assert_utc,
    body_of,
    headers_of,
)

from metricsmw import MetricsMonitor, __version__
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public, token
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.errors import ErrorRow
from metricsmw.engine.reading.heatmap import Heatmap, HeatStep, LatencyDistribution
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.reading.server import ServerReader
from metricsmw.engine.reading.workers import WorkerRow
from metricsmw.snapshot import MINUTE_FIELDS


class TestShapes:
    """Each route's answer, key by key and in order, with numbers that were recorded."""

    @pytest.fixture(autouse=True)
    def recorded(self, monitor: MetricsMonitor) -> None:
        monitor.record_request(10.0, method="GET", route="/items/{id}", status=200)
        monitor.record_request(20.0, method="GET", route="/items/{id}", status=503, is_error=True)
        monitor.save_snapshot_to_history()

    def test_current(self, handlers: Handlers) -> None:
        response = ask(handlers, "/current")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "metrics", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        metrics = body["metrics"]
        assert isinstance(metrics, dict)
        assert list(metrics) == SNAPSHOT
        assert_utc(metrics["timestamp"])
        assert (metrics["total_requests"], metrics["total_errors"]) == (2, 1)
        assert metrics["error_rate_pct"] == 50.0

    def test_history(self, handlers: Handlers) -> None:
        response = ask(handlers, "/history", query="minutes=7")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "history", "count", "minutes", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        assert body["minutes"] == 7
        assert body["count"] == 1
        [row] = body["history"]
        assert list(row) == SNAPSHOT
        assert row["total_requests"] == 2

    def test_series(self, handlers: Handlers) -> None:
        body = body_of(ask(handlers, "/series", query="seconds=60"))
        assert list(body) == [
            "success",
            "seconds",
            "step_seconds",
            "started",
            "reset",
            "series",
            "timestamp",
        ]
        assert (body["seconds"], body["step_seconds"], body["reset"]) == (60, 5.0, None)

    def test_series_of_a_route(self, handlers: Handlers) -> None:
        body = body_of(
            ask(handlers, "/series", query=urlencode({"method": "GET", "route": "/a?&"}))
        )
        assert (body["method"], body["route"], body["step_seconds"]) == ("GET", "/a?&", 30.0)

    def test_history_of_a_route(self, handlers: Handlers) -> None:
        query = urlencode({"method": "GET", "route": "/a", "minutes": 7})
        body = body_of(ask(handlers, "/history", query=query))
        assert {**body, "timestamp": ""} == {
            "success": True,
            "method": "GET",
            "route": "/a",
            "history": [],
            "count": 0,
            "minutes": 7,
            "step_minutes": 1,
            "kept": False,
            "timestamp": "",
        }
        response = ask(handlers, "/history", query="route=/a")
        assert_error(response, 400, "a route's history needs both method and route")

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("seconds=0", "seconds must be a whole number from 1 to 300, not '0'"),
            ("seconds=1.5", "seconds must be a whole number from 1 to 300, not '1.5'"),
            ("seconds=", "seconds must be a whole number from 1 to 300, not ''"),
            ("route=/a", "a route's series needs both method and route"),
            ("method=GET", "a route's series needs both method and route"),
        ],
    )
    def test_series_refused(self, handlers: Handlers, query: str, message: str) -> None:
        assert_error(ask(handlers, "/series", query=query), 400, message)

    def test_statistics(self, handlers: Handlers) -> None:
        response = ask(handlers, "/statistics")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "statistics", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        self.assert_statistics(body["statistics"], ["current", "totals", "configuration"])

    def test_routes(self, handlers: Handlers) -> None:
        response = ask(handlers, "/routes")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "routes", "first_bytes", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        [row] = body["routes"]
        assert list(row) == ROUTE
        assert (row["method"], row["route"], row["requests"]) == ("GET", "/items/{id}", 2)
        assert row["statuses"] == {"2xx": 1, "5xx": 1}

    def test_errors(self, handlers: Handlers, monitor: MetricsMonitor) -> None:
        try:
            raise KeyError
        except KeyError as error:
            for route in ("/a", "/b"):
                monitor.recorder.errors.raised(error, 500, route, "GET")
        body = body_of(ask(handlers, "/errors", query="limit=1&sort=count&new_seconds=60"))
        assert list(body) == ["success", "errors", "count", "kinds", "timestamp"]
        assert (body["count"], body["kinds"]) == (1, 2)  # HTTP 500 of a route, too
        [row] = body["errors"]
        assert list(row) == list(ErrorRow.__annotations__)
        assert (row["type"], row["count"], row["new"]) == ("KeyError", 2, True)
        assert len(row["bars"]) == 60
        assert_utc(row["first_seen"])
        assert_utc(row["last_seen"])

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("limit=0", "limit must be a whole number from 1 to 1000, not '0'"),
            ("new_seconds=x", "new_seconds must be a whole number from 1 to 86400, not 'x'"),
            ("sort=type", "sort must be one of last_seen, count, not 'type'"),
        ],
    )
    def test_errors_refused(self, handlers: Handlers, query: str, message: str) -> None:
        assert_error(ask(handlers, "/errors", query=query), 400, message)

    def test_heatmap(self, handlers: Handlers, monitor: MetricsMonitor, clock: ManualClock) -> None:
        clock.advance(60)
        body = body_of(ask(handlers, "/heatmap", query="seconds=60"))
        assert list(body) == ["success", *Heatmap.__annotations__, "timestamp"]
        assert (body["seconds"], body["step_seconds"], body["scale"]) == (60, 5.0, 2)
        assert body["method"] is body["route"] is None
        route = {"method": "GET", "route": "/items/{id}"}
        body = body_of(ask(handlers, "/heatmap", query=urlencode(route)))
        assert {name: body[name] for name in route} == route
        assert list(body["steps"][0]) == list(HeatStep.__annotations__)
        cells = [cell for step in body["steps"] for cell in step["cells"]]
        assert cells == [[-26, 1], [-22, 1]]  # 10 and 20 ms: up to 2**-6.5 and 2**-5.5 s
        assert list(body["distribution"]) == list(LatencyDistribution.__annotations__)

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("seconds=0", "seconds must be a whole number from 1 to 300, not '0'"),
            ("route=/a", "a route's heat map needs both method and route"),
            ("method=GET", "a route's heat map needs both method and route"),
        ],
    )
    def test_heatmap_refused(self, handlers: Handlers, query: str, message: str) -> None:
        assert_error(ask(handlers, "/heatmap", query=query), 400, message)

    def test_workers(self, handlers: Handlers) -> None:
        body = body_of(ask(handlers, "/workers"))
        assert list(body) == ["success", "workers", "timestamp"]
        [row] = body["workers"]
        assert list(row) == list(WorkerRow.__annotations__)
        assert (row["pid"], row["state"], row["differs"]) == (os.getpid(), "running", [])
        assert (row["requests"], row["error_rate_pct"], row["server_error_rate_pct"]) == (2, 50, 50)
        assert (row["last_request_seconds"], row["seen_seconds"]) == (0, 0)
        assert_utc(row["since"])

    def test_slowest(self, handlers: Handlers) -> None:
        response = ask(handlers, "/slowest", query="route=/items/{id}&method=GET&limit=1")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "slowest", "count", "timestamp"]
        assert body["count"] == 1
        [row] = body["slowest"]
        assert list(row) == SLOW_REQUEST
        assert (row["method"], row["route"]) == ("GET", "/items/{id}")
        assert body_of(ask(handlers, "/slowest"))["count"] == 2
        assert body_of(ask(handlers, "/slowest", query="method=PUT"))["slowest"] == []
        took = row["latency_ms"]
        for least, most, count in (
            (0, 0.01, 0),
            (0, took, 2),
            (took, took + 0.5, 1),
            (9e9, 9e9, 0),
        ):
            query = f"route=/items/{{id}}&method=GET&least_ms={least:.6f}&most_ms={most:.6f}"
            assert body_of(ask(handlers, "/slowest", query=query))["count"] == count
        message = "least_ms must be a number of milliseconds up to 9999999999, not '-1'"
        assert_error(ask(handlers, "/slowest", query="least_ms=-1"), 400, message)
        message = "limit must be a whole number from 1 to 1000, not '0'"
        assert_error(ask(handlers, "/slowest", query="limit=0"), 400, message)

    def test_reset(self, handlers: Handlers, monitor: MetricsMonitor) -> None:
        response = ask(handlers, "/reset", "POST")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "message", "timestamp"]
        assert body["success"] is True
        assert body["message"] == "Metrics statistics reset successfully"
        assert_utc(body["timestamp"])
        assert monitor.total_requests == 0

    def test_export_json(self, handlers: Handlers) -> None:
        response = ask(handlers, "/export/json")
        body = body_of(response)
        assert response.status == 200
        self.assert_statistics(body, ["current", "totals", "configuration", "history"])
        [row] = body["history"]
        assert list(row) == SNAPSHOT

    @staticmethod
    def assert_statistics(statistics: object, parts: list[str]) -> None:
        assert isinstance(statistics, dict)
        assert list(statistics) == parts
        assert list(statistics["current"])[: len(SNAPSHOT)] == SNAPSHOT
        assert list(statistics["totals"])[:3] == TOTALS
        assert list(statistics["configuration"])[:3] == CONFIGURATION
        assert [statistics["totals"][name] for name in TOTALS] == [2, 1, 50.0]

    def test_export_csv(self, handlers: Handlers) -> None:
        response = ask(handlers, "/export/csv")
        assert response.status == 200
        assert headers_of(response)["content-type"] == "text/csv; charset=utf-8"
        [row] = csv.DictReader(io.StringIO(response.body.decode()))
        assert list(row) == [*SNAPSHOT, *MINUTE_FIELDS]
        assert row["total_requests"] == "2"

    def test_health(self, handlers: Handlers) -> None:
        response = ask(handlers, "/health")
        body = body_of(response)
        assert response.status == 200
        assert list(body)[:4] == ["success", "status", "version", "components"]
        assert list(body)[-2:] == ["current_rpm", "timestamp"]
        assert body["success"] is True
        assert body["status"] == "healthy"
        assert body["version"] == __version__
        assert body["components"] == dict.fromkeys(COMPONENTS, "operational")
        assert body["current_rpm"] == 2.0
        assert_utc(body["timestamp"])


def test_export_csv_without_history_is_the_header_alone(handlers: Handlers) -> None:
    rows = list(csv.reader(io.StringIO(ask(handlers, "/export/csv").body.decode())))
    assert rows == [[*SNAPSHOT, *MINUTE_FIELDS]]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/export/json", r"metrics_(\d{8}_\d{6})\.json"),
        ("/export/csv", r"metrics_history_(\d{8}_\d{6})\.csv"),
    ],
)
def test_exports_are_attachments_named_by_utc(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    monkeypatch.setenv("TZ", "XXX-11:30")
    time.tzset()
    try:
        before = datetime.now(timezone.utc).replace(microsecond=0)
        disposition = headers_of(ask(handlers, path))["content-disposition"]
        after = datetime.now(timezone.utc)
    finally:
        monkeypatch.undo()
        time.tzset()
    match = re.fullmatch(f'attachment; filename="{name}"', disposition)
    assert match is not None
    named = datetime.strptime(match[1], "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
    assert before <= named <= after


def test_health_of_a_degraded_monitor(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "no room in the directory"
    degraded = {
        "status": "degraded",
        "components": dict.fromkeys(COMPONENTS, "operational") | {"metrics_monitor": reason},
        "mode_reason": reason,
    }
    monkeypatch.setattr(Reading, "health", degraded)
    handlers = Handlers(monitor, token("secret"))
    stranger = ask(handlers, "/health")
    assert stranger.status == 503
    assert reason not in str(stranger.body)
    assert body_of(stranger)["components"]["metrics_monitor"] == "degraded"
    response = ask(handlers, "/health", authorization="Bearer secret")
    body = body_of(response)
    assert response.status == 503
    assert body["success"] is False
    assert body["status"] == "degraded"
    assert body["components"] == degraded["components"]
    assert body["mode_reason"] == reason


def test_health_of_a_monitor_that_cannot_be_read(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: object) -> object:
        raise OSError("gone")

    monkeypatch.setattr(ServerReader, "read", unreadable)
    handlers = Handlers(monitor, public())
    response = ask(handlers, "/health")
    body = body_of(response)
    assert response.status == 503
    assert body["status"] == "degraded"
    assert body["current_rpm"] is None
    assert b"gone" not in response.body
    assert_error(ask(handlers, "/current"), 500, "Internal error")
