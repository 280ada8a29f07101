"""Arguments of those who measure an app, and packages that it takes: refused or told at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.config import RANGES
from metricsmw.extras import require
from metricsmw.validation import callable_or_none

if TYPE_CHECKING:
    from collections.abc import Callable

_USER = "a function that takes a request's environ or scope and returns its user or None"
_ROUTE = "a function that takes a request's environ or scope and returns its template or None"


class ClaimedError(ValueError):
    """A path is served already, by another `auth=` or `reset=`."""


def given_monitor(
    monitor: MetricsMonitor | None,
    user: Callable[..., object] | None = None,
    route: Callable[..., object] | None = None,
) -> MetricsMonitor:
    """Return the monitor, or the one that all workers of the server share where none was given.

    Args:
        monitor: What was given.
        user: Reads a request's user; checked first, as `check_readers` does.
        route: Reads a request's template, likewise.

    Raises:
        TypeError: It is no `MetricsMonitor`, or what reads cannot be called.
    """
    check_readers(user, route)
    if monitor is None:
        return get_metrics_monitor()
    if not isinstance(monitor, MetricsMonitor):
        raise TypeError(
            f"monitor must be a MetricsMonitor or None, got {monitor!r}{_hint(monitor)}"
        )
    return monitor


def _hint(monitor: object) -> str:
    lowest, highest = RANGES["window_seconds"]
    if isinstance(monitor, int) and lowest <= monitor <= highest:
        return f"; for a window of {monitor} s give get_metrics_monitor({monitor})"
    if isinstance(monitor, str) and monitor.startswith("/"):
        return f"; for another path give path={monitor!r}"
    return ""


def check_readers(user: Callable[..., object] | None, route: Callable[..., object] | None) -> None:
    """Check what reads a request's user and its route's template.

    Raises:
        TypeError: One of them cannot be called.
    """
    callable_or_none("user", user, _USER)
    callable_or_none("route", route, _ROUTE)


def require_serving() -> None:
    """Raise `MissingExtraError` unless all is installed that serving the metrics takes anywhere.

    Both extras bring it; the one to name is that of the framework that is here.
    """
    extra = "asgi" if "starlette" in sys.modules else "wsgi"
    require("serving the metrics", extra, ("itsdangerous",))
