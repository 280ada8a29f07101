"""`wrap`: one line measures any web app and serves its metrics.

What it was given it tells by what the process has imported already: no framework is imported that
the app does not use.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from metricsmw import get_metrics_monitor

from .api.messages import is_async
from .asgi import ASGIMetricsMiddleware
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
    or None; default, the user of the app's session, else REMOTE_USER. `health_thresholds`: snapshot
    fields that have to stay below these numbers; while one does not, `/health` answers `degraded`,
    with the `health_status` 503 or 200.
    """
    path = mount_path(path)
    if health_thresholds is not None:
        monitor = get_metrics_monitor() if monitor is None else monitor
        monitor.set_health_thresholds(health_thresholds, health_status)
    host: Any = None
    if _is(app, "flask", "Flask"):
        from . import flask as host
    elif _is(app, "starlette.applications", "Starlette"):
        from . import starlette as host
    elif _is(_innermost(app), "django.core.handlers.base", "BaseHandler"):
        from . import django as host
    if host is not None:
        return host.instrument(app, monitor, path, auth, exclude, user)  # type: ignore[no-any-return]

    if _is(app, "falcon", "App"):
        from .resolvers import falcon

        falcon.install_in(cast("Any", app))
    kind: Any = ASGIMetricsMiddleware if _is_asgi(app) else WSGIMetricsMiddleware
    return kind(app, monitor, path=path, auth=auth, exclude=exclude, user=user)  # type: ignore[no-any-return]


def _is(app: object, module: str, name: str) -> bool:
    """Tell whether `app` is of a class of a module; not of one that nobody has imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(app, kind)


def _innermost(app: object) -> object:
    """Return what stands inside middlewares of ours."""
    while isinstance(app, (WSGIMetricsMiddleware, ASGIMetricsMiddleware)):
        app = app.app
    return app


def _is_asgi(app: object) -> bool:
    """Tell ASGI from WSGI by how many arguments `app` takes: 3 or 2; else `TypeError`."""
    numbers = [number for number in (1, 2, 3) if _takes(app, number)]
    if numbers[-1:] == [3] and (len(numbers) == 1 or is_async(app)):
        return True
    if numbers[:1] == [2] and not is_async(app):
        return False
    hint = ""
    if numbers == [1]:
        hint = "; an ASGI 2 one becomes ASGI 3 by asgiref.compatibility.guarantee_single_callable"
    elif len(numbers) > 1:
        hint = "; it could be either: use WSGIMetricsMiddleware or ASGIMetricsMiddleware"
    raise TypeError(
        f"app must be a WSGI or an ASGI application, got {app!r}"
        f" of type {type(app).__module__}.{type(app).__qualname__}{hint}"
    )


def _takes(app: object, number: int) -> bool:
    if not callable(app):
        return False
    try:
        inspect.signature(app).bind(*range(number))
    except (TypeError, ValueError):  # the latter where something in C has no signature
        return False
    return True
