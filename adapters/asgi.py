"""The ASGI middleware: measures every HTTP request and WebSocket of the app it wraps.

The hot path. A request costs one small object, whose bound methods are cheaper than closures
with as many variables. `send` returns the server's own awaitable. Only the last message is awaited
here, because the latency ends when the server has taken it.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any

from metricsmw import MetricsMonitor

from .api.welcome import serve_at
from .arguments import given_monitor
from .interpose import Remade
from .measurement import (
    COMPLETE,
    DISCONNECTED,
    EXCLUDED,
    FAILED,
    OPEN,
    Excluded,
    Measurement,
    is_measured,
    is_measured_in_wsgi,
)
from .opening import NotOpenError, not_open, open_segment
from .paths import NOWHERE, excluder, is_below, mount_path, split
from .resolvers import has_registered, install, route_of_scope, scope_reader, user_of_scope
from .resolvers.base import FRAMEWORK_KEY, measured_by, session_user
from .servers import BY_TYPE, Server, find
from .websockets import Socket

if TYPE_CHECKING:
    from metricsmw.engine.recording.recorder import Recorder

    from .api.policies import Policy, ResetRule
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
        exchange = _exchange_class(self.recorder, route, user)
        # What each request takes, in one look-up.
        self._prepared = self._key, self._bypass_hint, exchange, not_open
        measured_by(self.recorder)
        install()
        self.recorder.register_worker()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Answer a request, measured unless it is excluded or measured already.

        Returns:
            What the app returns: a server that finds fault with it is to see it.
        """
        key, hint, new, begin = self._prepared
        try:
            is_usual = hint not in scope["path"] and scope["type"] == "http"
        except KeyError:  # made by hand, or of a kind that has no path
            is_usual = False
        if not is_usual or key in scope or "wsgi_environ" in scope:
            instead = self._instead(scope)
            if instead is not None:
                try:
                    return await instead(scope, receive, send)
                finally:
                    if scope.get(key) is self._excludes:
                        del scope[key]
        app, in_place = self.app, self._in_place
        exchange = new()
        exchange.carrier = scope
        exchange.inner = send
        exchange.status = None
        exchange.plain = None
        exchange.gone = False
        exchange.first_byte = 0.0
        exchange.state = OPEN
        scope[key] = exchange
        try:
            if type(send) is MethodType:
                owner = type(send.__self__)
                try:
                    server = BY_TYPE[owner]
                except KeyError:
                    server = find(owner)
            else:
                server = None
            exchange.server = server
            if server is None:
                exchange.inner_receive = receive
                receive = exchange.receive
            exchange.start = begin()
        except NotOpenError:
            await self._begin_first(exchange)
        except Exception:
            exchange.state, exchange.server = EXCLUDED, None
            self.recorder.faults.report("recording a request")
        try:
            if in_place is None:
                returned = await app(scope, receive, exchange.send)
            else:
                returned = await in_place[1].__call__(in_place[0], scope, receive, exchange.send)
        except BaseException as error:
            exchange.failed(error)
            scope.pop(key, None)
            raise
        if exchange.state is OPEN:
            exchange.failed(None)
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
        self._prepared = (*self._prepared[:3], self.recorder.begin)

    async def _begin_first(self, exchange: ASGIMeasurement) -> None:
        """Begin a request that came before the segment was open."""
        try:
            await self._open()
            exchange.start = self.recorder.begin()
        except BaseException as error:
            exchange.state, exchange.server = EXCLUDED, None
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


# Keys in scope of frameworks that make answers of exceptions with a status, outside of a middleware
# that stands before a route.
_ANSWERS = {"litestar_app", "starlette.exception_handlers"}


class ASGIMeasurement(Measurement):
    """One request and its response; the attributes are set by the middleware.

    Attributes:
        inner_receive: The server's `receive`.
        inner: The server's `send`.
        server: The server's entry in the table; None: it has none.
        plain: The message that has started the response, where no trailers are to follow.
        gone: The client has gone, by `receive` or `send`.
    """

    __slots__ = ("gone", "inner", "inner_receive", "plain", "server")

    method_key = "method"

    inner_receive: Receive
    inner: Send
    server: Server | None
    status: int | None
    plain: Message | None
    gone: bool

    async def receive(self) -> Message:
        """Receive from the server, and note whether the client has gone."""
        message = await self.inner_receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the response."""
        raise NotImplementedError

    def client_gone(self) -> bool:
        """Return whether the client has gone, by the server; False where it does not say."""
        try:
            owner = getattr(self.inner, "__self__", None)
            return self.server is not None and bool(self.server.client_gone(owner))
        except Exception:
            self.recorder.faults.report("asking the server for its client")
            return False

    def asked_first(self) -> bool:
        """Return whether the server is asked before the last message, which changes its answer."""
        return self.server is not None and self.server.gone_at_end

    def failed(self, error: BaseException | None) -> None:
        """Report that the app ended without a complete response."""
        if self.state is not OPEN:
            return
        code = getattr(error, "status_code", None)
        if self.status is None and isinstance(code, int) and _ANSWERS & self.carrier.keys():
            self.status = code
            self.report(COMPLETE)
            return
        # A server of which nothing is known cancels the app for a client that has gone.
        cancelled = self.server is None and isinstance(error, CancelledError)
        if not (self.gone or cancelled or self.client_gone()):
            self.report(FAILED, error)
        elif self.status is not None and self.carrier.get("method") == "HEAD":
            self.first_byte = 0.0
            self.report(COMPLETE)  # which has all with the start
        else:
            self.report(DISCONNECTED)


def _exchange_class(
    recorder: Recorder, route: ScopeRoute | None, user: ScopeUser | None
) -> type[ASGIMeasurement]:
    """Return the subclass of one middleware: what is the same for each request is in closures."""
    end, abandon, saw_user = recorder.end, recorder.abandon, recorder.user
    fault, clock = recorder.faults.report, recorder.clock
    # Resolvers are called for every request, not only for those that have a known key.
    asked = route is not None or user is not None or has_registered("asgi")
    read = scope_reader(route, user, recorder.faults)

    class Exchange(ASGIMeasurement):
        """The methods that every request calls."""

        __slots__ = ()

        def send(self, message: Message) -> Awaitable[None]:
            if "status" in message:
                if self.status is None:
                    self.status = message["status"]
                    if "trailers" not in message or not message["trailers"]:
                        self.plain = message
                inner = self.inner
                return inner(message)
            if (
                self.plain is not None
                and message["type"] == BODY
                and ("more_body" not in message or not message["more_body"])
            ):
                return self.send_last(message)
            return self.send_other(message)

        async def send_other(self, message: Message) -> None:
            """Send part of a stream, one of the rarer messages, or one out of turn."""
            if self.plain is not None:
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
            if not self.first_byte and message.get("body"):
                self.first_byte = clock()
                self.headers = () if self.plain is None else self.plain.get("headers", ())

        async def send_last(self, message: Message) -> None:
            """Send what completes the response, and report it."""
            inner, server = self.inner, self.server
            # Not what `receive` says from here on: servers end it once they have the last message.
            gone = self.gone
            if server is not None and server.gone_at_end:
                gone, server = gone or self.client_gone(), None  # asked
            try:
                await inner(message)
            except OSError:
                self.gone = True
                raise
            except Exception:  # a message out of turn, say
                raise
            except BaseException:
                # Under Trio the server reports the end of the response to the app, and so cancels
                # it, before this `send` returns. All bytes had gone.
                started = self.status is not None and not gone
                if started and self.asked_first() and self.client_gone():
                    self.report(COMPLETE)
                raise
            now = clock()
            status = self.status
            if status is None or self.state is not OPEN:
                return
            self.state = COMPLETE
            scope = self.carrier
            template = user_id = None
            if asked or "router" in scope or FRAMEWORK_KEY in scope or "path_template" in scope:
                template, user_id = read(scope)
            elif "session" in scope:
                try:
                    user_id = session_user(scope["session"])
                except Exception:
                    fault("the user resolver")
            if server is not None and not gone:
                client_gone = server.client_gone
                try:
                    gone = client_gone(inner.__self__)  # type: ignore[attr-defined]
                except Exception:
                    fault("asking the server for its client")
            try:
                method = scope["method"]
            except KeyError:  # made by hand
                method = ""
            try:
                if gone and method != "HEAD":  # which has all with the start
                    self.state = DISCONNECTED
                    abandon(status, template, method)
                    if user_id is not None:
                        saw_user(user_id)
                else:
                    start = self.latency_start(now, template) if self.first_byte else self.start
                    end(start, status, template, method, user_id, now)
            except Exception:
                self.give_up()
                return
            if self.first_byte and not gone:
                self.count_stream(now, template, method)

    Exchange.recorder = recorder
    Exchange.route_of, Exchange.user_of = (
        staticmethod(route or route_of_scope),
        staticmethod(user or user_of_scope),
    )
    return Exchange
