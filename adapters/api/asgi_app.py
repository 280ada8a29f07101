"""The sub-app as an ASGI app, on Starlette: translation only, `handlers` has the routes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
from starlette.datastructures import Headers
from starlette.responses import Response as StarletteResponse
from starlette.routing import Router
from starlette.websockets import WebSocketClose

from metricsmw import MetricsMonitor

from ..arguments import given_monitor
from ..measurement import UNMEASURED, exclude_request
from ..paths import split
from ..resolvers.base import session_identity
from ..servers import loop_server
from .accounts import is_django_account, logged_in
from .claims import Claim, mark
from .handlers import Handlers
from .messages import Identity, Request, nobody
from .off_loop import OFF_LOOP
from .policies import Policy, ResetRule
from .sse import Streams

if TYPE_CHECKING:
    from ..types import ASGIApp, Receive, Scope, ScopeIdentity, Send, Thresholds


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    identity: ScopeIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
    reset: ResetRule = True,
) -> ASGIApp:
    """Return the sub-app, to be mounted at any path.

    Args:
        monitor: None means the server-wide one.
        auth: Who may read, see `as_policy`; it may be `async def`.
        identity: Returns the app's logged-in session user for a scope, or None; it may be
            `async def`. Without it: the user that `scope["session"]` names, where there is one.
        health_thresholds: Snapshot fields that have to stay below these numbers; while one does
            not, `/health` answers `degraded`.
        health_status: The HTTP status of that answer, 503 or 200.
        reset: Who may reset: True for whoever may read, "token" for whoever has the token, False
            for nobody.
    """
    monitor = given_monitor(monitor)
    if health_thresholds is not None:
        monitor.set_health_thresholds(health_thresholds, health_status)
    handlers = Handlers(monitor, auth, OFF_LOOP, reset=reset, pause=anyio.sleep)
    app = sub_app(handlers, Streams(monitor), identity)
    mark(app, Claim(auth, reset))
    return app


def sub_app(handlers: Handlers, streams: Streams, identity: ScopeIdentity | None = None) -> ASGIApp:
    """Return the ASGI app that answers by these handlers and serves these streams.

    Args:
        handlers: What answers a request.
        streams: What serves an answer that is a stream.
        identity: As `metrics_app` takes it.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        exclude_request(scope)
        answer = await handlers.handle_async(
            Request(
                scope["method"],
                _below(scope),
                scope.get("query_string", b"").decode("latin-1"),
                _headers(scope),
                _identity_of(scope) if identity is None else partial(identity, scope),
                mount=scope.get("root_path", ""),
                streams=loop_server() is not None,
                unmeasured=scope.get(UNMEASURED, ""),
                staff_only=is_django_account(scope.get("user")),
            )
        )
        if answer.stream:
            await streams.answer(answer, scope, receive, send)
            return
        response = StarletteResponse(answer.body, answer.status, dict(answer.headers))
        await response(scope, receive, send)

    # The router knows how to answer lifespan events, for a sub-app that is served by itself.
    return Router(default=serve)


def _identity_of(scope: Scope) -> Identity:
    """Return what finds the host's user, where it has put any or a session into the scope."""
    account = scope.get("user")
    if hasattr(account, "is_authenticated"):  # by a middleware that authenticates
        return partial(logged_in, account)
    return partial(session_identity, scope["session"]) if "session" in scope else nobody


def _below(scope: Scope) -> str:
    """Return the path below the mount.

    By the ASGI specification `path` includes `root_path`. Some hosts strip the mount from it all
    the same; behind a proxy that strips a prefix, `root_path` starts with one that `path` lacks.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    _, below = split(path, root)
    if below == path:
        _, below = split(path, root.removeprefix(scope.get("app_root_path", "")))
    return below


def _headers(scope: Scope) -> dict[str, str]:
    received = Headers(scope=scope)
    # A header that came twice has two values (RFC 9110, 5.2): neither may hide the other.
    return {name: ", ".join(received.getlist(name)) for name in received}
