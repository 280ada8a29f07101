"""FastAPI glue: Starlette's, and the one kind of route that is FastAPI's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI

from . import starlette
from .asgi import split
from .hosts import MOUNTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metricsmw import MetricsMonitor

    from .asgi import UserResolver
    from .auth import Policy
    from .contract import Exclude

_App = TypeVar("_App", bound=FastAPI)


def instrument(
    app: _App,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: UserResolver | None = None,
) -> _App:
    """Measure `app`, serve the metrics at `path`, and return `app` itself; arguments as for `wrap`.

    The schema stays as it is: the sub-app is no path operation.
    """
    return starlette.instrument(app, monitor, path, auth, exclude, user)


def template_of(scope: Mapping[str, Any]) -> str | None:
    """Return the template of a front end's static files (`app.frontend`), which has no endpoint."""
    below: str | None = scope["fastapi"].get("frontend_path")
    if below is None:
        return None
    root, path = split(scope["path"], scope.get("root_path", ""))
    if "app_root_path" in scope:  # in a mounted app, whose `root_path` holds the raw path
        mount = starlette.mount_of(scope)
        if mount is None:
            return None
        root = scope["app_root_path"].rstrip("/") + mount
    template: str = root + path[: len(path) - len(below)].rstrip("/") + MOUNTED
    return template
