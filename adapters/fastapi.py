"""FastAPI: measuring an app in place, as Starlette's."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI

from . import starlette

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metricsmw import MetricsMonitor

    from .api.policies import Policy, ResetRule
    from .types import Exclude, ScopeRoute, ScopeUser

_App = TypeVar("_App", bound=FastAPI)


def instrument(
    app: _App,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: ScopeUser | None = None,
    route: ScopeRoute | None = None,
    reset: ResetRule = True,
) -> _App:
    """Measure `app`, serve the metrics at `path`, and return `app` itself; arguments as for `wrap`.

    The schema stays as it is: the sub-app is no path operation.
    """
    return starlette.instrument(app, monitor, path, auth, exclude, user, route, reset)
