"""Starlette: `instrument(app)` measures an app in place.

Our middleware stands outermost, outside the app's own (ServerErrorMiddleware included), so that
what they answer and what they take is measured. The sub-app is served inside them and in front of
the routes: it sees the app's session, and no catch-all route shadows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from starlette.applications import Starlette
from starlette.routing import Router

from metricsmw import get_metrics_monitor

from .asgi import ASGIMetricsMiddleware, metrics_app
from .measurement import OPEN, exclude_request
from .paths import mount_path, split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from metricsmw import MetricsMonitor

    from .api.policies import Policy
    from .types import Exclude, ScopeUser

_App = TypeVar("_App", bound=Starlette)

# Where an app keeps the monitors that measure it, and the paths it serves.
_MONITORS = "_metricsmw_monitors"
_PATHS = "_metricsmw_paths"


def instrument(
    app: _App,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: ScopeUser | None = None,
) -> _App:
    """Measure `app`, serve the metrics at `path`, and return `app` itself; arguments as for `wrap`.

    A monitor that already measures the app is not added twice, nor is a path.
    """
    path = mount_path(path)
    if monitor is None:
        monitor = get_metrics_monitor()
    metrics = metrics_app(monitor, auth)
    monitors: list[MetricsMonitor] = vars(app).setdefault(_MONITORS, [])
    if monitor not in monitors:
        inside = app.middleware_stack or app.router
        _measure(app, ASGIMetricsMiddleware(inside, monitor, exclude=exclude, user=user))
        monitors.append(monitor)
    paths: list[str] = vars(app).setdefault(_PATHS, [])
    if path not in paths:
        _serve(app.router, path, metrics, monitor.recorder.key)
        paths.append(path)
    return app


def _measure(app: Starlette, middleware: ASGIMetricsMiddleware) -> None:
    build = app.build_middleware_stack

    def build_measured() -> ASGIApp:
        middleware.app = build()
        return middleware

    app.build_middleware_stack = build_measured  # type: ignore[method-assign]
    if app.middleware_stack is not None:
        app.middleware_stack = middleware


def _serve(router: Router, path: str, metrics: ASGIApp, key: str) -> None:
    routes = router.middleware_stack

    # Not a coroutine function: this stands in every request's way.
    def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if path in scope.get("path", "") and scope["type"] == "http":
            root, below = split(scope["path"], scope.get("root_path", ""))
            if below == path or below.startswith(path + "/"):
                exclude_request(scope)
                mounted = dict(scope, path=root + below, root_path=root + path)
                return metrics(mounted, receive, send)
        if key in scope:
            measurement = scope[key]
            # A middleware may pass on a copy: the router leaves what it finds there.
            if measurement is not None and measurement.state is OPEN:
                measurement.carrier = scope
        return routes(scope, receive, send)

    router.middleware_stack = dispatch  # type: ignore[assignment]
