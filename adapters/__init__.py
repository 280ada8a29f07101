"""`wrap`: one line measures any web app and serves its metrics.

What it was given it tells by the classes of the app and by what the process has imported already:
no framework is imported that the app does not use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from metricsmw import get_metrics_monitor

from .asgi import ASGIMetricsMiddleware
from .kinds import Kind, is_asgi
from .paths import mount_path
from .prometheus import prometheus_app
from .wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from metricsmw import MetricsMonitor

    from .api.policies import Policy
    from .types import Exclude

__all__ = ["prometheus_app", "wrap"]

_App = TypeVar("_App", bound="Callable[..., Any]")


def wrap(
    app: _App,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: Callable[[Any], object] | None = None,
    *,
    route: Callable[[Any], str | None] | None = None,
    kind: Kind | None = None,
    health_thresholds: Mapping[str, float] | None = None,
    health_status: int = 503,
) -> _App:
    """Measure `app` and serve the metrics at and below `path`; wrapping twice counts once.

    A Flask, FastAPI or Starlette object is measured in place and returned itself. Any other WSGI or
    ASGI application comes back wrapped, and is called in its place. Anything else is a `TypeError`.

    `monitor`: default, the one shared by all workers of the server (`get_metrics_monitor()`).
    `path`: starts with a slash and is more than that, else `ValueError`. `auth`: who may read, a
    policy of `metricsmw.adapters.auth`; default, whoever is logged in to the app's own session, or
    has the token in METRICSMW_TOKEN. `exclude`: paths left out of the numbers, each a prefix or a
    compiled pattern. `user`: returns the user of an answered request, given its environ or scope,
    or None; default, the user of the app's session, else REMOTE_USER. `route`: returns the template
    of the route of an answered request, likewise; default, what the framework left. `kind`: "asgi"
    or "wsgi", where it cannot be told from what `app` takes. `health_thresholds`: snapshot
    fields that have to stay below these numbers; while one does not, `/health` answers `degraded`,
    with the `health_status` 503 or 200.
    """
    path = mount_path(path)
    if health_thresholds is not None:
        monitor = get_metrics_monitor() if monitor is None else monitor
        monitor.set_health_thresholds(health_thresholds, health_status)
    host: Any = None
    if _is(app, "flask.app", "Flask"):
        from . import flask as host
    elif _is(app, "starlette.applications", "Starlette"):
        from . import starlette as host
    if host is not None:
        return host.instrument(app, monitor, path, auth, exclude, user, route)  # type: ignore[no-any-return]

    asgi = is_asgi(app, kind)
    if "django.core.handlers.base" in sys.modules:
        from . import django

        if django.handler_in(app, asgi=asgi) is not None:
            return django.instrument(  # type: ignore[return-value]
                cast("Any", app), monitor, path, auth, exclude, user, route
            )
    if _is(app, "falcon.app", "App"):
        from .resolvers import falcon

        falcon.install_in(cast("Any", app))
    make: Any = ASGIMetricsMiddleware if asgi else WSGIMetricsMiddleware
    return make(  # type: ignore[no-any-return]
        app, monitor, path=path, auth=auth, exclude=exclude, user=user, route=route
    )


def _is(app: object, module: str, name: str) -> bool:
    """Tell whether `app` is of a class, also where another stands in that one's place meanwhile."""
    kind = getattr(app, "__class__", type(app))
    return any((each.__module__, each.__qualname__) == (module, name) for each in kind.__mro__)
