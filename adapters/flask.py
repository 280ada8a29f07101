"""Flask: measuring an app in place, the blueprint, and counting Flask-SocketIO's connections."""

from __future__ import annotations

import re
import sys
import threading
from functools import partial
from itertools import product
from types import MethodType
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.wrappers import Response
from werkzeug.wsgi import ClosingIterator

from metricsmw import get_metrics_monitor

from .api.accounts import HostUser, logged_in
from .api.claims import Claim, claim_path
from .api.handlers import Handlers
from .api.messages import Request, nobody
from .api.welcome import Served, serves
from .arguments import given_monitor
from .interpose import SHADOWED, own_class
from .measurement import exclude_request
from .paths import as_exclusions, mount_path
from .resolvers.base import session_identity
from .walks import MAX_CHAIN
from .wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from flask.blueprints import BlueprintSetupState
    from flask_socketio import SocketIO

    from metricsmw import MetricsMonitor

    from .api.policies import Policy, ResetRule
    from .types import EnvironRoute, EnvironUser, Exclude
    from .wsgi import WSGIMeasurement

# Where an app keeps the monitors that measure it, the last one given being its own.
_EXTENSION = "metricsmw"

# Where an app keeps what measures a WSGI app, and the class that it had.
_MEASURE = "_metricsmw_measure"
_PLAIN = "_metricsmw_plain"

# What a response holds that was complete when the view returned it.
_SEQUENCES = (list, tuple)

_UNMEASURED = "this came past the app, by a `wsgi_app` that was taken from it before"

# All that HTTP defines, so that wrong methods and paths get the sub-app's own answers.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


def instrument(
    app: flask.Flask,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: EnvironUser | None = None,
    route: EnvironRoute | None = None,
    reset: ResetRule = True,
) -> flask.Flask:
    """Measure `app`, serve the metrics at `path`, and return `app` itself; arguments as for `wrap`.

    A monitor that already measures the app is not added twice, nor is a path.
    """
    monitor = given_monitor(monitor)
    path = mount_path(path)
    claim = claim_path(app, app, path, Claim(auth, reset))
    blueprint = metrics_blueprint(monitor, claim.auth, path, reset=claim.reset)
    has_login = partial(_knows_users, app)
    serves(monitor, Served(app, path, claim, has_login))
    MetricsMiddleware(app, monitor, exclude=exclude, user=user, route=route)
    if blueprint.name not in app.blueprints:
        app.register_blueprint(blueprint)
    return app


class _Middleware(WSGIMetricsMiddleware):
    """Counts a response of one piece at once, as others do a list: test clients do not close."""

    def _hand_out(self, exchange: WSGIMeasurement, body: Iterable[bytes]) -> Iterable[bytes]:
        if type(body) is ClosingIterator:
            try:
                response = body._callbacks[-1].__self__  # type: ignore[attr-defined]
            except (AttributeError, IndexError):
                response = None
            if isinstance(response, Response):
                kind = type(response.response)
                # The page of an HTTPException is made by running it as an application of its own.
                if kind in _SEQUENCES or (kind is ClosingIterator and response.status_code >= 300):
                    exchange.complete()
                    return body
        return super()._hand_out(exchange, body)


class MetricsMiddleware:
    """Measures every request of a Flask app, in place; once per monitor, however often it is said.

    The app's blueprint, registered before or after, answers with the monitor given here.
    """

    def __init__(
        self,
        app: flask.Flask,
        monitor: MetricsMonitor | None = None,
        *,
        exclude: Iterable[Exclude] = (),
        user: EnvironUser | None = None,
        route: EnvironRoute | None = None,
    ) -> None:
        self.app = app
        self.monitor = given_monitor(monitor)
        monitors: list[MetricsMonitor] = app.extensions.setdefault(_EXTENSION, [])
        if self.monitor in monitors:
            return
        monitors.append(self.monitor)
        make = partial(
            _Middleware,
            monitor=self.monitor,
            exclude=as_exclusions(exclude),
            user=user,
            route=route,
        )
        measure = partial(_measured, monitor=self.monitor, make=make)
        own = vars(app).get(_MEASURE)
        # What the app has been given so far; else its class's.
        inner: Any = vars(app).get("wsgi_app")
        if own is None:
            vars(app)[_PLAIN] = type(app)
            vars(app)[SHADOWED] = ("wsgi_app",)
            if inner is None:
                inner = MethodType(_call_class, app)
            vars(app)[_MEASURE] = own = []
            own_class(app, wsgi_app=_Replaced())
        own.append(measure)
        app.wsgi_app = inner  # type: ignore[method-assign]  # which is measured


def _call_class(app: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
    # Looked up for each call: others patch the class, sooner or later.
    return app._metricsmw_plain.wsgi_app(app, environ, start_response)


class _Replaced:
    """Has the monitors measure what somebody sets as `app.wsgi_app`.

    Without a `__get__` the attribute reads as it stands in the app: the outermost middleware's
    bound method, which is quicker to call than the middleware.
    """

    def __set__(self, app: flask.Flask, wsgi_app: Any) -> None:
        for measure in vars(app)[_MEASURE]:
            wsgi_app = measure(wsgi_app)
        vars(app)["wsgi_app"] = wsgi_app


def _measured(wsgi_app: Any, monitor: MetricsMonitor, make: Callable[[Any], _Middleware]) -> Any:
    """Return a WSGI app that is measured, itself where it is so already.

    Flask-SocketIO's own middleware answers a WebSocket within one call, minutes long, and hands the
    app a copy of environ: measured is what it passes on.
    """
    engineio = sys.modules.get("engineio")
    if engineio is not None and isinstance(wsgi_app, engineio.WSGIApp):
        inner = wsgi_app.wsgi_app
        if inner is not None and inner is not wsgi_app:
            wsgi_app.wsgi_app = _measured(inner, monitor, make)
        return wsgi_app
    each = wsgi_app
    for _ in range(MAX_CHAIN):
        if isinstance(each, MethodType):
            each = each.__self__
        if not isinstance(each, WSGIMetricsMiddleware):
            break
        if each.monitor is monitor:
            return wsgi_app
        each = each.app
    return make(wsgi_app).__call__


def metrics_blueprint(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    path: str = "/api/metrics",
    *,
    name: str | None = None,
    reset: ResetRule = True,
) -> flask.Blueprint:
    """Return a blueprint that serves the metrics at `path`.

    Without a monitor it answers with that of the app it is asked under, else the server's.
    """
    path = mount_path(path)
    claim_path(None, None, None, Claim(auth, reset))  # a bad one is refused here
    blueprint = flask.Blueprint(name or "metricsmw" + re.sub(r"\W", "_", path), __name__)

    def view(below: str = "", **_: str) -> flask.Response:
        request = flask.request
        app = flask.current_app
        asked = _monitor_of(app) if monitor is None else monitor
        promised = asked in app.extensions.get(_EXTENSION, ())
        measured = not promised or asked.recorder.key in request.environ
        exclude_request(request.environ)
        if below or request.path.endswith("/"):
            below = "/" + below
        answer = Handlers(asked, auth, reset=reset).handle(
            Request(
                request.method,
                below,
                request.environ.get("QUERY_STRING", ""),
                {name.lower(): value for name, value in request.headers},
                _identity if _has_login() else nobody,
                mount=request.root_path + request.path.removesuffix(below),
                unmeasured="" if measured else _UNMEASURED,
            )
        )
        return flask.Response([answer.body], answer.status, answer.headers)

    def add_rules(state: BlueprintSetupState) -> None:
        place = f"{state.subdomain or ''}{(state.url_prefix or '').rstrip('/')}{path}"
        claim_path(state.app, state.app, place, Claim(auth, reset))
        for rule, where in product(("", "/", "/<path:below>"), _hosts_of(state)):
            state.add_url_rule(
                path + rule,
                "metrics",
                view,
                methods=_METHODS,
                provide_automatic_options=False,
                **where,
            )

    blueprint.record(add_rules)
    return blueprint


def _hosts_of(state: BlueprintSetupState) -> list[dict[str, str]]:
    """Return what rules take to match on every host of the app."""
    if state.app.url_map.host_matching:  # a rule without a host would match nowhere
        return [{"host": "<metricsmw_host>"}]
    if state.app.subdomain_matching and not state.subdomain:
        return [{}, {"subdomain": "<metricsmw_host>"}]
    return [{}]


def _monitor_of(app: flask.Flask) -> MetricsMonitor:
    monitors: list[MetricsMonitor] = app.extensions.get(_EXTENSION, [])
    return monitors[-1] if monitors else get_metrics_monitor()


def _knows_users(app: flask.Flask) -> bool:
    """Return whether an app seems to have users who log in."""
    return bool(app.secret_key) or hasattr(app, "login_manager")


def _has_login() -> bool:
    """Return whether the app can have users who are logged in: it has Flask-Login, or sessions."""
    session = flask.session._get_current_object()  # type: ignore[attr-defined]
    interface = flask.current_app.session_interface
    return _has_flask_login() or not interface.is_null_session(session)


def _has_flask_login() -> bool:
    return hasattr(flask.current_app, "login_manager") and "flask_login" in sys.modules


def _identity() -> HostUser | str | None:
    """Return the logged-in user: by Flask-Login where the app has it, else as the session names."""
    if _has_flask_login():
        from flask_login import current_user  # type: ignore[import-untyped]

        account = current_user._get_current_object()
        return logged_in(account, account.get_id())
    return session_identity(flask.session._get_current_object())  # type: ignore[attr-defined]


metrics_bp = metrics_blueprint(name="metricsmw")


def track_socketio(socketio: SocketIO, monitor: MetricsMonitor | None = None) -> None:
    """Count the connections of a Flask-SocketIO server, whatever handlers it has or gets.

    A client counts once, however many namespaces it joins, from the start of its first handler
    for "connect" until it has left them all; one that the handler refuses does not count.
    May be called before `socketio.init_app(app)`.
    """
    if monitor is None:
        monitor = get_metrics_monitor()
    if socketio.server is not None:
        _Connections(monitor).track(socketio.server)
        return
    init_app = socketio.init_app

    def tracked(*args: Any, **kwargs: Any) -> None:
        init_app(*args, **kwargs)
        _Connections(monitor).track(socketio.server)

    socketio.init_app = tracked


class _Connections:
    """The open connections of one Socket.IO server, and the namespaces that each has joined.

    Every connect and disconnect of a namespace passes `_trigger_event`, with or without a handler;
    but a transport that dies while a connect handler runs ends without one.
    """

    def __init__(self, monitor: MetricsMonitor) -> None:
        self._recorder = monitor.recorder
        self._lock = threading.Lock()
        self._joined: dict[str, set[str]] = {}

    def track(self, server: Any) -> None:
        trackers: set[str] = vars(server).setdefault("_metricsmw_trackers", set())
        if self._recorder.key in trackers:
            return
        trackers.add(self._recorder.key)
        trigger = server._trigger_event
        gone = server.eio.handlers["disconnect"]

        def trigger_event(event: str, namespace: str, *args: Any) -> object:
            if event not in ("connect", "disconnect"):
                return trigger(event, namespace, *args)
            try:
                connection = server.manager.eio_sid_from_sid(args[0], namespace)
            except Exception:
                self._recorder.faults.report("socketio")
                return trigger(event, namespace, *args)
            if event == "disconnect":
                self._leave(connection, namespace)
                return trigger(event, namespace, *args)
            self._join(connection, namespace)
            try:
                accepted = trigger(event, namespace, *args)
            except BaseException:
                self._leave(connection, namespace)
                raise
            if accepted is False:
                self._leave(connection, namespace)
            return accepted

        def closed(connection: str, *args: Any) -> object:
            try:
                return gone(connection, *args)
            finally:
                self._close(connection)

        server._trigger_event = trigger_event
        server.eio.handlers["disconnect"] = closed

    def _join(self, connection: str, namespace: str) -> None:
        with self._lock:
            joined = self._joined.setdefault(connection, set())
            if not joined:
                self._recorder.websocket_opened()
            joined.add(namespace)

    def _leave(self, connection: str, namespace: str) -> None:
        with self._lock:
            joined = self._joined.get(connection, set())
            joined.discard(namespace)
            if not joined and self._joined.pop(connection, None) is not None:
                self._recorder.websocket_closed()

    def _close(self, connection: str) -> None:
        with self._lock:
            if self._joined.pop(connection, None) is not None:
                self._recorder.websocket_closed()
