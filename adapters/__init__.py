"""`wrap`: one line measures any web app and serves its metrics.

The app's framework is found by the app's classes, among the modules that the process has imported
already: no framework is imported that the app does not use, nor is asyncio for a WSGI app. What
reads a framework's insides may fail on a release of tomorrow: that is reported, and the app is
measured from outside.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from .arguments import ClaimedError, given_monitor
from .kinds import Kind, check_kind, is_asgi, refuse_part
from .paths import as_exclusions, excluder, mount_path
from .prometheus import prometheus_app
from .walks import behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from metricsmw import MetricsMonitor

    from .api.policies import Policy, ResetRule
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
    reset: ResetRule = True,
) -> _App:
    """Measure `app` and serve the metrics at and below `path`; wrapping twice counts once.

    A Flask, FastAPI or Starlette object is measured in place, also behind a proxy.

    Args:
        app: A WSGI or ASGI application, or a framework's object.
        monitor: Default: the one that all workers of the server share (`get_metrics_monitor()`).
        path: Where the metrics are served; starts with a slash and is more than that.
        auth: Who may read, a policy of `metricsmw.adapters.auth`. Default: whoever is logged in to
            the app (under Django: its staff), or has the token in METRICSMW_TOKEN.
        exclude: Paths left out of the numbers, each a prefix or a compiled pattern.
        user: Returns the user of an answered request, given its environ or scope, or None.
            Default: the user of the app's session, else REMOTE_USER.
        route: Returns the template of the route of an answered request, likewise. Default: what
            the framework left.
        kind: "asgi" or "wsgi", where it cannot be told from what `app` takes.
        health_thresholds: Snapshot fields that have to stay below these numbers; while one does
            not, `/health` answers `degraded`.
        health_status: The HTTP status of that answer, 503 or 200.
        reset: Who may reset: True for whoever may read, "token" for whoever has the token, False
            for nobody.

    Returns:
        `app` itself where it is measured in place, else what is to be called in its place.

    Raises:
        TypeError: `app` is neither a WSGI nor an ASGI application, or another argument is not of
            its type.
        ValueError: `path` does not start with a slash, or is nothing but slashes; or it is served
            already, by another `auth` or `reset`.
    """
    path = mount_path(path)
    check_kind(kind)
    itself = behind(app)
    refuse_part(itself)
    exclude = as_exclusions(exclude)
    excluder(exclude)
    monitor = given_monitor(monitor, user, route)
    if health_thresholds is not None:
        monitor.set_health_thresholds(health_thresholds, health_status)
    settings: dict[str, Any] = {
        "monitor": monitor,
        "path": path,
        "auth": auth,
        "exclude": exclude,
        "user": user,
        "route": route,
        "reset": reset,
    }
    host = None
    if _is(itself, "flask.app", "Flask"):
        host = "flask"
    elif _is(itself, "starlette.applications", "Starlette"):
        host = "starlette"
    asgi = host == "starlette" or (host is None and is_asgi(app, kind))
    if asgi:
        from .asgi import ASGIMetricsMiddleware

        make: Any = ASGIMetricsMiddleware
    else:
        from .wsgi import WSGIMetricsMiddleware

        make = WSGIMetricsMiddleware
    try:
        if host is not None:
            import_module(f".{host}", __name__).instrument(itself, **settings)
            return app
        measured = _by_framework(app, asgi, settings)
        if measured is None:
            measured = make(app, **settings)
    except ClaimedError:
        raise
    except Exception:
        measured = make(app, **settings)  # which raises again where the arguments are wrong
        monitor.recorder.faults.report("measuring an app by its framework")
    return measured  # type: ignore[no-any-return]


def _by_framework(app: Any, asgi: bool, settings: dict[str, Any]) -> Any:
    """Return an app measured in the way of its framework; None: as any app."""
    if asgi and "starlette.routing" in sys.modules:
        from . import starlette

        starlette.follow_copies(app)
    if "django.core.handlers.base" in sys.modules:
        from . import django

        if django.handler_in(app, asgi=asgi) is not None:
            return django.instrument(app, **settings)
    return None


def _is(app: object, module: str, name: str) -> bool:
    """Tell whether `app` is of a class, also where another stands in that one's place meanwhile."""
    mro = type(app).__mro__
    return any((each.__module__, each.__qualname__) == (module, name) for each in mro)
