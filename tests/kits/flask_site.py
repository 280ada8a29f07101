"""What Flask's tests share: a view, the rows of the table, and a number of the sub-app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import session
from werkzeug.test import Client

from metricsmw import MetricsMonitor


def hello(**_: object) -> str:
    return "hello"


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def total_in(client: Client, path: str = "/api/metrics/current", **options: Any) -> int:
    """Return the requests that the sub-app tells of."""
    answer: Any = client.get(path, **options).json
    return int(answer["metrics"]["total_requests"])


def in_session(values: dict[str, object]) -> Callable[[], str]:
    def view() -> str:
        session.update(values)
        return "in"

    return view
