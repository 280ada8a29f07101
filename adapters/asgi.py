"""The ASGI middleware: measures every HTTP request and WebSocket of the app it wraps.

The hot path. A request costs one small object, whose bound methods are cheaper than closures
with as many variables: see `asgi_exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from metricsmw import MetricsMonitor
from metricsmw.engine.recording.exchange import (
    COMPLETE,
    EXCLUDED,
    OPEN,
    Begun,
)

from .api.welcome import serve_at
from .arguments import given_monitor
from .asgi_exchange import ASGIMeasurement, exchange_class
from .interpose import Remade
from .measurement import (
    Excluded,
    is_measured,
    is_measured_in_wsgi,
)
from .opening import NotOpenError, not_open, open_segment
from .paths import NOWHERE, excluder, is_below, mount_path, split
from .resolvers import install
from .resolvers.base import measured_by
from .servers import ByType
from .websockets import Socket

if TYPE_CHECKING:
    from .api.policies import Policy, ResetRule
    from .types import (
        ASGIApp,
        Exclude,
        Receive,
        Scope,
        ScopeIdentity,
        ScopeRoute,
        ScopeUser,
        Send,
        Thresholds,
    )


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    reset: ResetRule = True,
    *,
    identity: ScopeIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
) -> ASGIApp:
    """Return the mountable sub-app, on Starlette; needs the extra ``metricsmw[asgi]``."""
    from .api import asgi_maker

    return asgi_maker()(monitor, auth, identity, health_thresholds, health_status, reset)


class ASGIMetricsMiddleware(Remade):
    """Measure an app, and serve the sub-app.

    Args:
        app: The app to measure.
        monitor: Default: the one that all workers of the server share.
        path: Where the sub-app is served, "/api/metrics"; None: nowhere, this only measures.
        auth: Who may read the sub-app, see `metricsmw.adapters.auth`.
        exclude: Paths left out of the numbers: prefixes, or compiled patterns to search for.
        user: Returns the user of an answered request, given its scope, or None.
        route: Returns its route's template, likewise. Default for both: what the framework left.
        identity: Returns the app's logged-in user, given the scope, for the sub-app.
        reset: Who may reset: True (whoever may read), "token" (whoever has it) or False.

    Raises:
        TypeError, ValueError: An argument is of another type, or `path` has no slash to start with.
    """

    def __init__(
        self,
        app: ASGIApp,
        monitor: MetricsMonitor | None = None,
        *,
        path: str | None = None,
        auth: Policy | None = None,
        exclude: Iterable[Exclude] = (),
        user: ScopeUser | None = None,
        route: ScopeRoute | None = None,
        identity: ScopeIdentity | None = None,
        reset: ResetRule = True,
    ) -> None:
        self.app = app
        self._in_place: tuple[Any, Any] | None = None  # a target of `interpose`, and its `plain`
        self.monitor = given_monitor(monitor, user, route)
        self.recorder = self.monitor.recorder
        self.recorder.in_asgi = True
        self._key = self.recorder.key
        self._excluded = excluder(exclude)
        self._sub_path = path = None if path is None else mount_path(path)
        # The quick test for paths that may not be measured: they hold it.
        self._bypass_hint = "" if self._excluded else NOWHERE if path is None else path
        self._claim = claim = serve_at(self, app, path, auth, reset)
        self._sub_app = metrics_app(self.monitor, *claim, identity=identity) if path else None
        self._excludes = Excluded()
        kinds = ByType(cache(partial(exchange_class, self.recorder, route, user)))
        # What each request takes, in one look-up.
        begin: Callable[[Begun], None] = not_open
        self._prepared = self._key, self._bypass_hint, kinds, begin
        measured_by(self.recorder)
        install()
        self.recorder.register_worker()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Answer a request, measured unless it is excluded or measured already.

        Returns:
            What the app returns: a server that finds fault with it is to see it.
        """
        key, hint, kinds, begin = self._prepared
        is_usual = False
        try:
            if (
                hint not in scope["path"]
                and scope["type"] == "http"
                and key not in scope
                and not (self.recorder.in_wsgi and "wsgi_environ" in scope)
            ):
                is_usual = True
        except KeyError:  # made by hand, or of a kind that has no path
            pass
        if not is_usual:
            instead = self._instead(scope)
            if instead is not None:
                try:
                    return await instead(scope, receive, send)
                finally:
                    if scope.get(key) is self._excludes:
                        del scope[key]
        app, in_place = self.app, self._in_place
        owner = send.__self__ if type(send) is MethodType else None
        new, listens = kinds[type(owner)]
        exchange = new()
        exchange.carrier = scope
        exchange.inner = send
        exchange.owner = owner
        exchange.status = None
        exchange.state = OPEN
        scope[key] = exchange
        if listens:
            receive = exchange.listen(receive)
        try:
            begin(exchange)
        except NotOpenError:
            await self._begin_first(exchange)
        except Exception:
            exchange.state = EXCLUDED
            self.recorder.faults.report("recording a request")
        try:
            if in_place is None:
                returned = await app(scope, receive, exchange.send)
            else:
                returned = await in_place[1].__call__(in_place[0], scope, receive, exchange.send)
        except BaseException as error:
            exchange.failed(error, scope)
            scope.pop(key, None)
            raise
        if exchange.state is not COMPLETE:
            exchange.failed(None, scope)
        try:  # noqa: SIM105
            del scope[key]
        except KeyError:
            pass
        return returned

    def _instead(self, scope: Scope) -> ASGIApp | None:
        """Return what answers a request that is not to be measured here; None: measure it."""
        if scope.get("type") != "http":
            return self._other
        key = self._key
        if (key in scope and is_measured(scope, key, self._excludes)) or (
            "wsgi_environ" in scope and is_measured_in_wsgi(scope, key)
        ):
            return self._serve if self._is_own(scope) else self.app
        return self._bypass(scope) if self._bypass_hint in scope.get("path", "") else None

    async def _open(self) -> None:
        await open_segment(self.monitor)
        self._prepared = (*self._prepared[:3], self.recorder.begin_exchange)

    async def _begin_first(self, exchange: ASGIMeasurement) -> None:
        """Begin a request that came before the segment was open."""
        try:
            await self._open()
            self.recorder.begin_exchange(exchange)
        except BaseException as error:
            exchange.state = EXCLUDED
            if not isinstance(error, Exception):  # cancelled
                exchange.take_out()
                raise
            self.recorder.faults.report("recording a request")

    def _is_own(self, scope: Scope) -> bool:
        """Return whether the request is one of the sub-app's."""
        path = self._sub_path
        if path is None or path not in scope.get("path", ""):
            return False
        _, below = split(scope["path"], scope.get("root_path", ""))
        return is_below(below, path)

    def _bypass(self, scope: Scope) -> ASGIApp | None:
        """Return the app that answers a request without measuring it; None: measure it."""
        if self._is_own(scope):
            return self._serve  # which excludes it from all outer middlewares
        _, below = split(scope.get("path", ""), scope.get("root_path", ""))
        if self._excluded is not None and self._excluded(below):
            scope[self._key] = self._excludes  # nor may an inner middleware count it
            return self.app
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._sub_app is not None
        assert self._sub_path is not None
        root, below = split(scope["path"], scope.get("root_path", ""))
        mounted = {**scope, "path": root + below, "root_path": root + self._sub_path}
        await self._sub_app(mounted, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> object:
        kind = scope.get("type")
        if kind == "websocket" and self._key not in scope:
            scope[self._key] = self._excludes  # middlewares further in do not count it again
            return await self._websocket(scope, receive, send)
        if kind == "lifespan":
            await self._open()  # a server's worker is one before its first request
            self.recorder.serve()
        return await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> object:
        _, below = split(scope.get("path", ""), scope.get("root_path", ""))
        if self._excluded is not None and self._excluded(below):
            return await self.app(scope, receive, send)
        socket = Socket(self.recorder, receive, send)
        try:
            return await self.app(scope, socket.receive, socket.send)
        finally:
            socket.closed()
