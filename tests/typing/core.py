"""The core as its users type it. Nothing here runs: mypy and pyright read it.

A line with both ignores must be an error: each checker reports an ignore that it has no use for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metricsmw import MetricsMonitor, MetricsSnapshot, get_metrics_monitor
from metricsmw.alerts import MetricsAlerter
from metricsmw.exporting import ScheduledExport

monitor: MetricsMonitor = get_metrics_monitor()
monitor = get_metrics_monitor(60, max_routes=50)
monitor = MetricsMonitor(
    60, user_timeout_seconds=60, max_history_minutes=5, max_routes=1, max_users=10, shared=False
)
monitor.record_request(12.5)
monitor.record_request(
    12.5, is_error=True, user_id="ada", method="GET", route="/items/{id}", status=500
)
monitor.record_request("12.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
monitor.record_request(1, "GET")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
monitor.record_request(1, state=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
monitor.record_user_activity("ada")
monitor.increment_websocket_connections()
monitor.decrement_websocket_connections()

users: int = monitor.get_active_users()
user_ids: list[str] = monitor.get_active_user_ids()
sockets: int = monitor.get_websocket_connections()
rate: float = monitor.get_request_rate_rpm()
errors: float = monitor.get_error_rate_pct()
p50, p95, p99 = monitor.get_latency_percentiles()
milliseconds: float = p50 + p95 + p99
memory: tuple[float, float] = monitor.get_memory_usage()
cpu: float = monitor.get_cpu_usage()
totals: tuple[int, int, int] = (
    monitor.total_requests,
    monitor.total_errors,
    monitor.window_seconds,
)
monitor.total_requests = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

snapshot: MetricsSnapshot = monitor.get_current_snapshot()
moment: str = snapshot.timestamp
known: float = snapshot.latency_p99_ms
snapshot.workers = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
fields: dict[str, Any] = dict(snapshot.to_dict())
print(snapshot.p42)  # type: ignore[attr-defined]  # pyright: ignore

for row in monitor.get_routes():
    named: tuple[str, str, int] = (row["method"], row["route"], row["requests"])
    by_class: int = row["statuses"].get("2xx", 0)
for worker in monitor.get_workers():
    sick: tuple[int, str, list[str]] = (worker["pid"], worker["state"], worker["differs"])
for minute in monitor.get_metrics_history(minutes=60):
    value: str | float | int = minute["request_rate_rpm"]
monitor.save_snapshot_to_history()
total: int = monitor.get_statistics()["totals"]["total_requests"]
window: int = monitor.get_statistics()["configuration"]["window_seconds"]
healthy: bool = monitor.check_health({"cpu_usage_pct": 80.0})["status"] == "healthy"
monitor.reset_statistics()
monitor.export_to_json("metrics.json")
monitor.export_to_csv(Path("metrics.csv"))
with MetricsMonitor() as closed:
    closed.close()

alerter = MetricsAlerter(monitor, check_interval=30, thresholds={"error_rate_pct": 5.0})
alerter = MetricsAlerter(monitor, notify=print)
alerter = MetricsAlerter(monitor, notify="json://localhost")
alerter = MetricsAlerter(60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
export = ScheduledExport(monitor, "data", at="00:00", keep=30)
export = ScheduledExport(monitor, Path("data"))
