"""What is put on a host to be compared there: nothing, the honest floor, ours, each peer.

Ours has everything on: status, route, users, in flight. An `ImportError` while one is built means
"not installed".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from floors import ASGIHonestFloor, WSGIHonestFloor
from peers import PATH, Host, django_handler
from raw import (
    LOGGED_IN_ENVIRON,
    LOGGED_IN_SCOPE,
    Requests,
    begin_asgi,
    drive_asgi,
    route_of,
    user_of,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from peers import App

BARE = "bare"
HONEST = "honest floor"
WRAPPED = "ours by wrap"
BY_HAND = "ours by hand"
PLAIN = "ours, plain middleware"

OURS = (WRAPPED, BY_HAND, PLAIN)


def contenders(host: Host) -> dict[str, Callable[[], App]]:
    """Return what is compared on a host, by name; the bare app is the first."""
    ours: dict[str, Callable[[], App]] = {WRAPPED: partial(_wrapped, host)}
    if host.name in BUILD_BY_HAND:
        ours[BY_HAND] = partial(BUILD_BY_HAND[host.name], host)
        ours[PLAIN] = partial(_plain, host)
    else:
        ours[BY_HAND] = partial(_plain, host, route=route_of, user=user_of)
    return {BARE: host.build, HONEST: partial(_floor, host), **ours, **host.peers}


def drive(host: Host, app: App) -> Requests:
    """Return the driver of requests that have a route and a user."""
    if not _is_asgi(host):
        return host.drive(app, PATH, LOGGED_IN_ENVIRON)
    begin_asgi(app, PATH)
    return host.drive(app, PATH, LOGGED_IN_SCOPE)


def _is_asgi(host: Host) -> bool:
    return host.drive is drive_asgi


def _floor(host: Host) -> App:
    return (ASGIHonestFloor if _is_asgi(host) else WSGIHonestFloor)(host.build())


def _wrapped(host: Host) -> App:
    return wrap(host.build(), MetricsMonitor())


def _plain(host: Host, **resolvers: Callable[..., str]) -> App:
    """Ours around an app, which need not know."""
    kind = ASGIMetricsMiddleware if _is_asgi(host) else WSGIMetricsMiddleware
    return kind(host.build(), MetricsMonitor(), **resolvers)  # type: ignore[arg-type]


def _starlette_by_hand(host: Host) -> App:
    app = host.build()
    app.add_middleware(ASGIMetricsMiddleware, monitor=MetricsMonitor())
    return app


def _flask_by_hand(host: Host) -> App:
    from metricsmw.adapters.flask import MetricsMiddleware

    app = host.build()
    MetricsMiddleware(app, MetricsMonitor())
    return app


def _django_by_hand(host: Host) -> App:
    host.build()  # settings must be there
    return django_handler("metricsmw.adapters.django.MetricsMiddleware")


BUILD_BY_HAND: Mapping[str, Callable[[Host], App]] = {
    "Starlette": _starlette_by_hand,
    "FastAPI": _starlette_by_hand,
    "Flask": _flask_by_hand,
    "Django": _django_by_hand,
}
