"""The ASGI middleware: measures every HTTP request and WebSocket of the app it wraps.

The hot path. What can be prepared is prepared in `__init__`; a request costs one small object,
whose bound methods are cheaper than closures with as many variables. `send` is a plain function
that hands on the server's own awaitable; only the last message is awaited here, because latency
runs until the server has taken it.

One request has one outcome, reported once: complete (`end`), failed (`fail`: an exception, no
response, or a server that shut down), or abandoned (`abandon`: the client went away).
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from metricsmw import MetricsMonitor, get_metrics_monitor

from .paths import excluder, mount_path, split
from .resolvers import install, route_of_scope, user_of_scope
from .resolvers.base import FRAMEWORK_KEY, ForwardedRequest
from .servers import connected

if TYPE_CHECKING:
    from metricsmw.engine.recording.recorder import Recorder

    from .api.policies import Policy
    from .types import (
        ASGIApp,
        Exclude,
        Message,
        Receive,
        Scope,
        ScopeIdentity,
        ScopeRoute,
        ScopeUser,
        Send,
        Thresholds,
    )

BODY = "http.response.body"
TRAILERS = "http.response.trailers"
# Messages that end a response without trailers, unless they say that more comes.
FINAL = {BODY, "http.response.pathsend", "http.response.zerocopysend"}
# What stands for the status and for the scope once the outcome is reported.
REPORTED = cast("int", object())
NO_SCOPE: Scope = {}


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    *,
    identity: ScopeIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
) -> ASGIApp:
    """The mountable sub-app, on Starlette; needs the extra ``metricsmw[asgi]``."""
    from .api.asgi_app import metrics_app as make

    if health_thresholds is not None:
        monitor = get_metrics_monitor() if monitor is None else monitor
        monitor.set_health_thresholds(health_thresholds, health_status)
    return make(monitor, auth, identity=identity)


class ASGIMetricsMiddleware:
    """Measure ``app`` into ``monitor`` (default: the server's shared one).

    - ``path``: where the sub-app is served, "/api/metrics"; None: nowhere, this only measures.
      `ValueError` for one that does not start with a slash and go on.
    - ``auth``: who may read the sub-app, see `metricsmw.adapters.auth`.
    - ``exclude``: paths left out of the numbers: prefixes, or compiled patterns to search for.
    - ``user``, ``route``: from the scope of an answered request to its user, and to its route's
      template; None where there is none. Default: what the host left in the scope.
    - ``identity``: from the scope to the host's logged-in user, for the sub-app.
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
    ) -> None:
        self.app = app
        self.monitor = get_metrics_monitor() if monitor is None else monitor
        self.recorder = self.monitor.recorder
        self.recorder.in_asgi = True
        self._key = self.recorder.key
        self._begin = self.recorder.begin
        self._excluded = excluder(exclude)
        self._sub_path = path = None if path is None else mount_path(path)
        # The quick test for paths that may not be measured; None: all are.
        self._bypass_hint = "" if self._excluded else path
        self._sub_app = metrics_app(self.monitor, auth, identity=identity) if path else None
        # Whether the server tells by itself if a client has gone: then nobody need listen for it.
        # None: not known yet.
        self._tells: bool | None = None
        self._exchange = _exchange_class(self, route, user)
        install()
        self.recorder.register_worker()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        key = self._key
        if key in scope:
            follow_copy = getattr(scope[key], "follow_copy", None)
            if follow_copy is not None:
                follow_copy(scope)
            await self.app(scope, receive, send)
            return
        if self._bypass_hint is not None and self._bypass_hint in scope["path"]:
            bypass = self._bypass(scope)
            if bypass is not None:
                await bypass(scope, receive, send)
                return
        exchange = self._exchange()
        exchange.scope = scope
        exchange.inner_receive = receive
        exchange.inner = send
        exchange.status = None
        exchange.plain = exchange.gone = False
        exchange.first = 0.0
        scope[key] = exchange
        try:
            exchange.start = self._begin()
        except Exception:
            exchange.status = REPORTED
            self.recorder.faults.report("recording a request")
        try:
            await self.app(scope, receive if self._tells else exchange.receive, exchange.send)
        except BaseException as error:
            exchange.failed(error)
            raise
        if exchange.status is not REPORTED:
            exchange.failed(None)

    def _bypass(self, scope: Scope) -> ASGIApp | None:
        """Who answers a request that is not to be measured; None: it is to be."""
        _, below = split(scope["path"], scope.get("root_path", ""))
        path = self._sub_path
        if path is not None and (below == path or below.startswith(path + "/")):
            return self._serve  # which takes it out of the numbers of those further out
        if self._excluded is not None and self._excluded(below):
            scope[self._key] = None  # nor may a middleware of ours further in count it
            return self.app
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._sub_app is not None
        assert self._sub_path is not None
        root, below = split(scope["path"], scope.get("root_path", ""))
        mounted = {**scope, "path": root + below, "root_path": root + self._sub_path}
        await self._sub_app(mounted, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._key not in scope:
            scope[self._key] = None
            _, below = split(scope["path"], scope.get("root_path", ""))
            if self._excluded is None or not self._excluded(below):
                socket = _Socket(self.recorder, receive, send)
                try:
                    await self.app(scope, socket.receive, socket.send)
                finally:
                    socket.closed()
                return
        elif scope["type"] == "lifespan":
            # A server's worker that has just started is one before its first request.
            try:
                self.recorder.open()
                self.recorder.serve()
            except Exception:
                self.recorder.faults.report("opening the worker's segment")
        await self.app(scope, receive, send)


class _Exchange(Protocol):
    """One request and its response; the attributes are set by the middleware."""

    scope: Scope
    inner_receive: Receive
    inner: Send
    status: int | None
    plain: bool
    gone: bool
    start: float
    first: float

    async def receive(self) -> Message: ...
    def send(self, message: Message) -> Awaitable[None]: ...
    def follow_copy(self, scope: Scope) -> None: ...
    def failed(self, error: BaseException | None) -> None: ...


def _exchange_class(
    middleware: ASGIMetricsMiddleware, route: ScopeRoute | None, user: ScopeUser | None
) -> Callable[[], _Exchange]:
    """A class of exchanges with all that is the same for every request in its closure."""
    recorder = middleware.recorder
    end, fail, abandon = recorder.end, recorder.fail, recorder.abandon
    saw_user, left, fault = recorder.user, recorder.cancel, recorder.faults.report
    streamed, clock = recorder.streamed, recorder.clock
    route_of = route or route_of_scope
    user_of = user or user_of_scope
    own_route, own_user = route is not None, user is not None

    def give_up() -> None:
        """What could not be recorded is no longer in flight, either."""
        fault("recording a request")
        try:
            left()
        except Exception:
            fault("recording a request")

    class Exchange:
        """Stands in the scope as long as it may be disowned; has the scope until it is reported."""

        __slots__ = (
            "first", "gone", "inner", "inner_receive", "plain", "scope", "start", "status"
        )  # fmt: skip

        scope: Scope
        inner_receive: Receive
        inner: Send
        status: int | None  # None: not yet; REPORTED: the outcome is reported
        plain: bool  # the response has started, and no trailers are to follow
        gone: bool
        start: float
        first: float  # when the first bytes of a stream had been handed over; 0.0: no stream

        async def receive(self) -> Message:
            message = await self.inner_receive()
            if message["type"] == "http.disconnect":
                self.gone = True
            return message

        def send(self, message: Message) -> Awaitable[None]:
            if "status" in message:
                if self.status is None:
                    self.status = message["status"]
                    self.plain = "trailers" not in message or not message["trailers"]
                return self.inner(message)
            if (
                self.plain
                and message["type"] == BODY
                and ("more_body" not in message or not message["more_body"])
            ):
                return self.send_last(message)
            return self.send_other(message)

        async def send_other(self, message: Message) -> None:
            """Part of a stream, one of the rarer messages, or one out of turn."""
            if self.plain:
                last = message["type"] in FINAL and not message.get("more_body")
            else:
                last = message["type"] == TRAILERS and not message.get("more_trailers")
            if last:
                await self.send_last(message)
                return
            try:
                await self.inner(message)
            except OSError:
                self.gone = True
                raise
            if not self.first and message.get("body"):
                self.first = clock()

        async def send_last(self, message: Message) -> None:
            inner: Any = self.inner
            tells = middleware._tells
            # Not what `receive` says from here on: servers end it once they have the last message.
            gone = self.gone
            if not (tells or gone):
                # Hypercorn's stream says it by what the last message sets as well: asked before.
                gone = connected(inner) is False
            try:
                await inner(message)
            except OSError:
                self.gone = True
                raise
            status = self.status
            if status is None or status is REPORTED:
                return
            self.status = REPORTED
            scope = self.scope
            self.scope = NO_SCOPE
            # Resolvers are called here, not by `template` and `count_user`: two calls less.
            template = None
            if own_route or "router" in scope or FRAMEWORK_KEY in scope or "path_template" in scope:
                try:
                    template = route_of(scope)
                except Exception:
                    fault("the route resolver")
            if tells is not False and not gone:
                # uvicorn's request cycle, whose `send` does nothing for a client that is gone.
                try:
                    gone = inner.__self__.disconnected is True
                    if tells is None:
                        middleware._tells = True
                except AttributeError:
                    middleware._tells = False
            try:
                method = scope["method"]
                if gone and method != "HEAD":  # which has all with the start
                    now = abandon(status, template, method)
                else:
                    now = end(self.start, status, template, method)
            except Exception:
                give_up()
                return
            if self.first and not gone:
                self.count_stream(now, template, method)
            if own_user or "session" in scope or FRAMEWORK_KEY in scope:
                try:
                    user_id = user_of(scope)
                    if user_id is not None:
                        saw_user(user_id, now)
                except Exception:
                    fault("the user resolver")

        def template(self, scope: Scope) -> str | None:
            try:
                return route_of(scope)
            except Exception:
                fault("the route resolver")
                return None

        def count_stream(self, now: float, template: str | None, method: str) -> None:
            try:
                streamed(self.start, self.first, now, template, method)
            except Exception:
                fault("recording a request")

        def count_user(self, scope: Scope) -> None:
            try:
                user_id = user_of(scope)
                if user_id is not None:
                    saw_user(user_id)
            except Exception:
                fault("the user resolver")

        def failed(self, error: BaseException | None) -> None:
            """The app ended without a complete response."""
            status, scope = self.status, self.scope
            if status is REPORTED:
                return
            self.status = REPORTED
            self.scope = NO_SCOPE
            template = self.template(scope)
            try:
                method = scope["method"]
                there = connected(self.inner)
                cancelled = there is None and isinstance(error, CancelledError)
                gone = self.gone or there is False or cancelled
                if gone and status is not None and method == "HEAD":
                    end(self.start, status, template, method)
                elif gone:
                    abandon(status or 500, template, method)
                else:
                    now = fail(self.start, status or 500, template, method)
            except Exception:
                give_up()
                return
            if self.first and not gone:
                self.count_stream(now, template, method)
            self.count_user(scope)

        def follow_copy(self, scope: Scope) -> None:
            """What is further in was handed this scope: a copy has what the host leaves there."""
            own = self.scope
            if scope is own or own is NO_SCOPE or "router" in own:
                return
            if FRAMEWORK_KEY not in own or type(own[FRAMEWORK_KEY]) is ForwardedRequest:
                own[FRAMEWORK_KEY] = ForwardedRequest(scope, route_of_scope, user_of_scope)

        def cancel(self) -> None:
            """The request is one of the sub-app's own."""
            if self.status is REPORTED:
                return
            self.status = REPORTED
            self.scope = NO_SCOPE
            try:
                left()
            except Exception:
                fault("recording a request")

        def __reduce__(self) -> tuple[type, tuple[()]]:
            """A copy of the scope, be it in another process, is measured where this one is."""
            return type(None), ()

    return Exchange


class _Socket:
    """One WebSocket: open from its accept to its end, whichever side ends it."""

    __slots__ = ("_inner", "_inner_receive", "_open", "_recorder")

    def __init__(self, recorder: Recorder, receive: Receive, send: Send) -> None:
        self._recorder = recorder
        self._inner_receive = receive
        self._inner = send
        self._open = False

    async def receive(self) -> Message:
        message = await self._inner_receive()
        if message["type"] == "websocket.disconnect":
            self.closed()
        return message

    async def send(self, message: Message) -> None:
        try:
            await self._inner(message)
        except OSError:  # the client is gone
            self.closed()
            raise
        if message["type"] == "websocket.accept":
            self._change(True)
        elif message["type"] == "websocket.close":
            self.closed()

    def closed(self) -> None:
        self._change(False)

    def _change(self, opened: bool) -> None:
        if opened is self._open:
            return
        try:
            if opened:
                self._recorder.websocket_opened()
            else:
                self._recorder.websocket_closed()
            self._open = opened
        except Exception:
            self._recorder.faults.report("counting a WebSocket")
