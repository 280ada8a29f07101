"""An app with alert rules, on its own numbers too, that are looked at often."""

from __future__ import annotations

from starlette.applications import Starlette

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.alerts import MetricsAlerter

monitor = get_metrics_monitor()
monitor.counter("orders").inc()
monitor.histogram("payment").observe(0.5)
alerter = MetricsAlerter(
    monitor,
    check_interval=0.1,
    rules=[
        "orders rate > 5 for 2m",
        "payment p99 > 2 over 1m clear 1",
        "memory_usage_pct > 101",
        "burn_rate(99.9, 60m, 5m) > 14.4",
    ],
)
app = wrap(Starlette())
