"""What `GET /history` has of a lasting history beside its rows: summaries, and single routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar

from metricsmw import MetricsMonitor

if TYPE_CHECKING:
    from metricsmw.engine.reading.route_minutes import RouteMinute, RouteSpan
    from metricsmw.history import RangeSummary, SQLiteHistory

T = TypeVar("T")


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


class RoutesOfSpan(TypedDict):
    """The per-route table over the last minutes; ``kept`` as that of a `RouteHistory`."""

    routes: list[RouteSpan]
    count: int
    minutes: int
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


def _read(
    monitor: MetricsMonitor, read: Callable[[SQLiteHistory], list[T]]
) -> tuple[list[T], bool | None]:
    lasting = monitor.lasting
    if lasting is None or not lasting.routes:
        return [], False
    try:
        return read(lasting), True
    except Exception:
        monitor.recorder.faults.report("reading the lasting history")
        return [], None


def route_history_of(
    monitor: MetricsMonitor, method: str, route: str, minutes: int, step_minutes: int
) -> RouteHistory:
    """Return what a lasting history says of one route in the last minutes."""
    now = monitor.clock.time()
    rows, kept = _read(
        monitor,
        lambda lasting: lasting.route_rows(method, route, now - 60 * minutes, now, step_minutes),
    )
    return {
        "method": method,
        "route": route,
        "history": rows,
        "count": len(rows),
        "minutes": minutes,
        "step_minutes": step_minutes,
        "kept": kept,
    }


def routes_of(monitor: MetricsMonitor, minutes: int) -> RoutesOfSpan:
    """Return what a lasting history says of each route over the last minutes."""
    now = monitor.clock.time()
    rows, kept = _read(monitor, lambda lasting: lasting.route_table(now - 60 * minutes, now))
    return {"routes": rows, "count": len(rows), "minutes": minutes, "kept": kept}
