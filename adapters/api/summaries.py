"""What `GET /history` has of a lasting history beside its rows: summaries, and single routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from metricsmw import MetricsMonitor

if TYPE_CHECKING:
    from metricsmw.engine.reading.route_minutes import RouteMinute
    from metricsmw.history import RangeSummary


class RouteHistory(TypedDict):
    """The history of one route.

    ``kept``: whether minutes of single routes are kept here; None: they cannot be read now.
    """

    method: str
    route: str
    history: list[RouteMinute]
    count: int
    minutes: int
    step_minutes: int
    kept: bool | None


def summary_of(monitor: MetricsMonitor, minutes: int) -> RangeSummary | None:
    """Return what a lasting history says of the last minutes as a whole.

    None where there is none, or it cannot be read.
    """
    if monitor.lasting is None:
        return None
    now = monitor.clock.time()
    try:
        return monitor.lasting.summary(now - 60 * minutes, now)
    except Exception:
        monitor.recorder.faults.report("reading the lasting history")
        return None


def route_history_of(
    monitor: MetricsMonitor, method: str, route: str, minutes: int, step_minutes: int
) -> RouteHistory:
    """Return what a lasting history says of one route in the last minutes."""
    rows: list[RouteMinute] = []
    lasting = monitor.lasting
    kept: bool | None = lasting is not None and lasting.routes > 0
    if kept and lasting is not None:
        now = monitor.clock.time()
        try:
            rows = lasting.route_rows(method, route, now - 60 * minutes, now, step_minutes)
        except Exception:
            monitor.recorder.faults.report("reading the lasting history")
            kept = None
    return {
        "method": method,
        "route": route,
        "history": rows,
        "count": len(rows),
        "minutes": minutes,
        "step_minutes": step_minutes,
        "kept": kept,
    }
