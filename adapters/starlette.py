"""Starlette: `instrument(app)` measures an app in place.

The middleware is outermost, outside the app's own ones (ServerErrorMiddleware included), so that
their answers and their time are measured, too. The sub-app is served inside them and in front of
the routes: it sees the app's session, and no catch-all route shadows it.

App and router each get a class of their own for that (`interpose`). Hooks and the stack of
middlewares are not touched, because other tools replace them and put them back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Router

from .api.claims import Claim, agreed, claim_path, mounted_claim, tell_conflict
from .api.welcome import Served, serves
from .arguments import given_monitor
from .asgi import ASGIMetricsMiddleware, metrics_app
from .interpose import REDO, interpose
from .measurement import UNMEASURED, exclude_request
from .paths import as_exclusions, is_below, mount_path, split
from .resolvers.base import follow_copy, report_fault
from .walks import objects_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from metricsmw import MetricsMonitor

    from .api.policies import Policy, ResetRule
    from .types import ASGIApp, Exclude, Receive, Scope, ScopeRoute, ScopeUser, Send

_App = TypeVar("_App", bound=Starlette)

_UNMEASURED = (
    "this came past the app, by a stack of middlewares or a router that was taken from it before"
)

# Where an app keeps the monitors that measure it, and the paths it serves.
_MONITORS = "_metricsmw_monitors"
_PATHS = "_metricsmw_paths"
# Where a router keeps that its copies of scopes are read.
_FOLLOWS = "_metricsmw_follows"


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

    A monitor that already measures the app is not added twice, nor is a path.
    """
    path = mount_path(path)
    monitor = given_monitor(monitor)
    exclude = as_exclusions(exclude)
    fields = vars(app)
    claim = Claim(auth, reset)
    if path not in fields.get(_PATHS, ()):
        claim = agreed(path, mounted_claim(app.router.routes, path), claim)
    claim = claim_path(app, app, path, claim)
    metrics = metrics_app(monitor, *claim)
    serves(monitor, Served(app, path, claim, partial(_knows_users, app)))
    monitors: list[MetricsMonitor] = fields.setdefault(_MONITORS, [])
    paths: list[str] = fields.setdefault(_PATHS, [])
    if monitor not in monitors:
        make = partial(_InPlace, monitor=monitor, exclude=exclude, user=user, route=route)
        interpose(app, lambda inner, plain: make(inner, host=app, plain=plain).__call__)
        monitors.append(monitor)
    if path not in paths:
        key = monitor.recorder.key
        served = _Once(app, path, claim, metrics)
        router = app.router
        interpose(router, lambda _, plain: _dispatch(router, plain, path, served, key))
        paths.append(path)
    redo = partial(
        instrument,
        monitor=monitor,
        path=path,
        auth=auth,
        exclude=exclude,
        user=user,
        route=route,
        reset=reset,
    )
    fields.setdefault(REDO, []).append(redo)
    return app


def follow_copies(app: object) -> None:
    """Have routers inside an app that is measured from outside be read; idempotent.

    A router leaves what it has matched in the scope that it gets, which may be a copy.

    Args:
        app: What is measured.
    """
    for each in list(objects_in(app)):
        if isinstance(each, Router) and _FOLLOWS not in vars(each):
            interpose(each, partial(_following, each))
            vars(each)[_FOLLOWS] = True


def _following(router: Router, _: ASGIApp, plain: Any) -> ASGIApp:
    def call(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            follow_copy(scope)
        except Exception:
            report_fault("the route of a copied scope")
        answer: Awaitable[None] = plain.__call__(router, scope, receive, send)
        return answer

    return call


class _InPlace(ASGIMetricsMiddleware):
    """Stands outside an app that sets `root_path` by itself as it is called, as FastAPI does."""

    def __init__(self, app: ASGIApp, *, host: Starlette, plain: Any, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._host = host
        self._in_place = host, plain

    def _bypass(self, scope: Scope) -> ASGIApp | None:
        root = getattr(self._host, "root_path", "")
        if root:
            scope["root_path"] = root
        return super()._bypass(scope)


def _knows_users(app: Starlette) -> bool:
    """Return whether an app seems to have users who log in."""
    names = [getattr(each.cls, "__name__", "") for each in app.user_middleware]
    return any("Session" in name or "Authentication" in name for name in names)


class _Once:
    """Serves the sub-app, unless the app mounts another one at its path.

    That is looked for as the first request comes, as an app may mount it at any time before.
    """

    def __init__(self, app: Starlette, path: str, claim: Claim, metrics: ASGIApp) -> None:
        self._app = app
        self._path = path
        self._claim = claim
        self._metrics = metrics
        self._is_checked = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if not self._is_checked:
            self._is_checked = True
            mounted = mounted_claim(self._app.router.routes, self._path)
            if mounted is not None and mounted != self._claim:
                self._metrics = PlainTextResponse(tell_conflict(self._path), 500)
        return self._metrics(scope, receive, send)


def _dispatch(router: Router, plain: Any, path: str, metrics: ASGIApp, key: str) -> ASGIApp:
    """Return what answers in a router's place: the sub-app at `path`, the router elsewhere.

    Args:
        router: The router.
        plain: Has the router's own `__call__`, as `interpose` says.
        path: Where the sub-app is served.
        metrics: The sub-app.
        key: The recorder's key.
    """

    # Not a coroutine function: this stands in every request's way.
    def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            is_hinted = path in scope["path"] and scope["type"] == "http"
        except KeyError:  # the lifespan has no path
            is_hinted = False
        if is_hinted:
            root, below = split(scope["path"], scope.get("root_path", ""))
            if is_below(below, path):
                mounted = dict(scope, path=root + below, root_path=root + path)
                if key not in scope:
                    mounted[UNMEASURED] = _UNMEASURED
                exclude_request(scope)
                return metrics(mounted, receive, send)
        if key in scope:
            measurement = scope[key]
            # A middleware may pass on a copy: the router leaves what it finds there. That of a WSGI
            # app further out has environ.
            if (
                measurement is not None
                and measurement.carrier is not scope
                and measurement.is_open
                and "REQUEST_METHOD" not in measurement.carrier
            ):
                measurement.carrier = scope
        answer: Awaitable[None] = plain.__call__(router, scope, receive, send)
        return answer

    return dispatch
