"""A dashboard for Grafana over Prometheus, as JSON to import.

Quantiles and the heat map are of native histograms. Exemplars are asked for where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

from metricsmw.exporters.prometheus_rules import first_bytes

Json = dict[str, object]

WHERE: Final = '{job=~"$job", instance=~"$instance"}'
INTERVAL: Final = "$__rate_interval"
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Query(TypedDict):
    """An expression, and how its series are named."""

    expr: str
    legend: str


def _rate(name: str) -> str:
    return f"rate({name}{WHERE}[{INTERVAL}])"


OVERALL: Final = f"sum({_rate('metricsmw_request_duration_seconds')})"
BY_ROUTE: Final = _rate("http_server_request_duration_seconds")
ROUTE: Final = "http_request_method, http_route"
FIRST_BYTES: Final = first_bytes(WHERE, INTERVAL, "by ()")


def _quantile(quantile: str, of: str) -> str:
    return f"histogram_quantile({quantile}, {of})"


# Title, unit, kind of panel, width of 24, queries.
PANELS: Final[Sequence[tuple[str, str, str, int, Sequence[Query]]]] = (
    (
        "Requests", "reqps", "timeseries", 8,
        [{"expr": f"sum({_rate('metricsmw_requests_total')})", "legend": "requests"}],
    ),
    (
        "Errors", "percentunit", "timeseries", 8,
        [
            {
                "expr": f"sum({_rate('metricsmw_request_errors_total')})"
                f" / sum({_rate('metricsmw_requests_total')})",
                "legend": "errors",
            }
        ],
    ),
    (
        "Latency", "s", "timeseries", 8,
        [
            {"expr": _quantile(quantile, OVERALL), "legend": f"p{percent}"}
            for quantile, percent in (("0.5", 50), ("0.95", 95), ("0.99", 99))
        ],
    ),
    ("Latencies", "s", "heatmap", 8, [{"expr": OVERALL, "legend": ""}]),
    (
        "Time to first byte", "s", "timeseries", 8,
        [
            {"expr": _quantile(quantile, FIRST_BYTES), "legend": f"p{percent}"}
            for quantile, percent in (("0.5", 50), ("0.95", 95), ("0.99", 99))
        ],
    ),
    (
        "Slowest routes, p95", "s", "timeseries", 8,
        [
            {
                "expr": f"topk(10, {_quantile('0.95', f'sum by ({ROUTE}) ({BY_ROUTE})')})",
                "legend": "{{http_request_method}} {{http_route}}",
            }
        ],
    ),
    (
        "Routes", "short", "table", 24,
        [
            {
                "expr": f"sum by ({ROUTE}) (histogram_count({BY_ROUTE}))",
                "legend": "requests a second",
            },
            {
                "expr": f"sum by ({ROUTE}) ({_rate('metricsmw_route_errors_total')})",
                "legend": "errors a second",
            },
            {"expr": _quantile("0.95", f"sum by ({ROUTE}) ({BY_ROUTE})"), "legend": "p95"},
        ],
    ),
    (
        "In flight", "short", "timeseries", 6,
        [
            {"expr": f"sum(http_server_active_requests{WHERE})", "legend": "requests"},
            {"expr": f"sum(metricsmw_websocket_connections{WHERE})", "legend": "WebSockets"},
        ],
    ),
    (
        "Workers and users", "short", "timeseries", 6,
        [
            {"expr": f"sum(metricsmw_workers{WHERE})", "legend": "workers"},
            {"expr": f"sum(metricsmw_users_active{WHERE})", "legend": "users"},
        ],
    ),
    (
        "CPU", "percentunit", "timeseries", 6,
        [
            {
                "expr": "sum by (process_pid) "
                f"({_rate('process_cpu_time_seconds_total')})",
                "legend": "worker {{process_pid}}",
            }
        ],
    ),
    (
        "Memory", "bytes", "timeseries", 6,
        [
            {
                "expr": f"process_memory_usage_bytes{WHERE}",
                "legend": "worker {{process_pid}}",
            }
        ],
    ),
)  # fmt: skip
HEIGHT: Final = 8


def queries() -> list[str]:
    """Return every expression of the dashboard."""
    return [query["expr"] for *_, panel_queries in PANELS for query in panel_queries]


def dashboard(title: str = "metricsmw") -> Json:
    """Return the dashboard as Grafana imports it.

    Args:
        title: The dashboard's title, which its users see.
    """
    return {
        "title": title,
        "uid": "metricsmw",
        "tags": ["metricsmw"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[Json]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}
    for name, label in (("job", "Job"), ("instance", "Server")):
        within = '{job=~"$job"}' if name == "instance" else ""
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": f"label_values(metricsmw_workers{within}, {name})",
            "includeAll": True,
            "multi": True,
            "refresh": 2,
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[Json]:
    x = y = 0
    for number, (title, unit, kind, width, panel_queries) in enumerate(PANELS, 1):
        if x + width > 24:
            x, y = 0, y + HEIGHT
        table = kind == "table"
        yield {
            "id": number,
            "title": title,
            "type": kind,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "transformations": [{"id": "merge", "options": {}}] if table else [],
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": DATASOURCE,
                    "expr": query["expr"],
                    "legendFormat": query["legend"],
                    "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
                    "instant": table,
                    "exemplar": not table,
                }
                for place, query in enumerate(panel_queries)
            ],
        }
        x += width
