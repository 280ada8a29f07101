"""The WSGI middleware: measures every request of the app it wraps.

This is the hot path. A body that is complete when the app returns it (a list, a tuple or bytes) is
returned unchanged and counted at once. A file wrapper is returned unchanged, too, so that the
server's sendfile works. Any other body is wrapped in an object whose `close()` counts the request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import GeneratorType
from typing import TYPE_CHECKING

from metricsmw import MetricsMonitor
from metricsmw.engine.recording.exchange import (
    COMPLETE,
    DISCONNECTED,
    EXCLUDED,
    FAILED,
    OPEN,
    Begun,
    Carriers,
)

from .api.welcome import announce, serve_at
from .arguments import given_monitor
from .bodies import body_class
from .interpose import Remade
from .measurement import (
    Excluded,
    Measurement,
    is_measured,
)
from .paths import NOWHERE, as_text, as_wsgi, excluder, is_below, mount_path
from .resolvers import (
    environ_reader,
    has_registered,
    install,
    read_environ,
    reader,
    route_of_environ,
    user_of_environ,
)
from .resolvers.base import FRAMEWORK_KEY, ON_START_RESPONSE, measured_by
from .resolvers.bridge import copying_to, scope_of

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from metricsmw.engine.recording.recorder import Recorder

    from .api.policies import Policy, ResetRule
    from .types import EnvironIdentity, EnvironRoute, EnvironUser, Exclude, Headers, Thresholds

# So many are remembered; then all are forgotten: what an app makes up takes no room for good.
MAX_TYPES = 100  # of complete bodies
MAX_STATUS_LINES = 1000
_codes: dict[str, int] = {}


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    reset: ResetRule = True,
    *,
    identity: EnvironIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
) -> WSGIApplication:
    """Return the mountable sub-app, on Werkzeug; needs the extra ``metricsmw[wsgi]``."""
    from .api import wsgi_maker

    return wsgi_maker()(monitor, auth, identity, health_thresholds, health_status, reset)


class WSGIMetricsMiddleware(Remade):
    """Measure an app, and serve the sub-app.

    Args:
        app: The app to measure.
        monitor: Default: the one that all workers of the server share.
        path: Where the sub-app is served, "/api/metrics"; None: nowhere, this only measures.
        auth: Who may read the sub-app, see `metricsmw.adapters.auth`.
        exclude: Paths left out of the numbers: prefixes, or compiled patterns to search for.
        user: Returns the user of an answered request, given its environ, or None.
        route: Returns its route's template, likewise. Default for both: what the framework left.
        identity: Returns the app's logged-in user, given the environ, for the sub-app.
        reset: Who may reset: True (whoever may read), "token" (whoever has it) or False.

    Raises:
        TypeError, ValueError: An argument is of another type, or `path` has no slash to start with.
    """

    def __init__(
        self,
        app: WSGIApplication,
        monitor: MetricsMonitor | None = None,
        *,
        path: str | None = None,
        auth: Policy | None = None,
        exclude: Iterable[Exclude] = (),
        user: EnvironUser | None = None,
        route: EnvironRoute | None = None,
        identity: EnvironIdentity | None = None,
        reset: ResetRule = True,
    ) -> None:
        self.app = app
        self.monitor = given_monitor(monitor, user, route)
        self.recorder = self.monitor.recorder
        self.recorder.in_wsgi = True
        self._key = self.recorder.key
        self._excluded = excluder(exclude)
        mount = None if path is None else mount_path(path)
        self._sub_path = path = mount and as_wsgi(mount)
        self._claim = claim = serve_at(self, app, mount, auth, reset)
        self._sub_app = metrics_app(self.monitor, *claim, identity=identity) if path else None
        self._excludes = Excluded()
        # The quick test for paths that may not be measured: they hold it.
        hint = "" if self._excluded else NOWHERE if path is None else path
        exchange = _exchange_class(self.recorder, route, user)
        # What each request takes, in one look-up.
        begin: Callable[[Begun], None] = self._begin_first
        self._prepared = self._key, hint, exchange, begin
        self._body = body_class(self.recorder)
        # Types of bodies that are complete when the app returns them, beside list.
        self._whole: set[type] = {tuple, bytes}  # uWSGI takes bytes as they are
        measured_by(self.recorder)
        install()
        self.recorder.register_worker()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, measured unless it is excluded or measured already."""
        key, hint, new, begin = self._prepared
        if key in environ and is_measured(environ, key, self._excludes):
            is_own = is_below(environ.get("PATH_INFO", ""), self._sub_path)
            return (self._serve if is_own else self.app)(environ, start_response)
        if self.recorder.in_asgi:
            scope = scope_of(environ, start_response)
            if key in scope and is_measured(scope, key, self._excludes):
                start_response = copying_to(scope, environ, start_response, read_environ)
                return self.app(environ, start_response)
        try:
            is_hinted = hint in environ["PATH_INFO"]
        except KeyError:  # made by hand
            is_hinted = False
        if is_hinted:
            bypass = self._bypass(environ)
            if bypass is not None:
                return bypass(environ, start_response)
        app = self.app
        exchange = new()
        exchange.carrier = environ
        exchange.inner = start_response
        exchange.status = None
        exchange.state = OPEN
        environ[key] = exchange
        try:
            begin(exchange)
        except Exception:
            exchange.state = EXCLUDED
            self.recorder.faults.report("recording a request")
        try:
            body = app(environ, exchange.start_response)
        except BaseException as error:
            exchange.failed(error)
            raise
        kind = type(body)
        if kind is list or kind in self._whole:
            exchange.complete()
            return body
        if kind is not GeneratorType:
            return self._hand_out(exchange, body)
        measured = self._body()
        measured.exchange = exchange
        measured.body = body
        measured.exhausted = True  # until it is iterated
        return measured

    def _begin_first(self, exchange: Begun) -> None:
        """Begin the first request of this process."""
        self._prepared = (*self._prepared[:3], self.recorder.begin_exchange)
        announce(self.monitor)
        self.recorder.begin_exchange(exchange)

    def _hand_out(self, exchange: WSGIMeasurement, body: Iterable[bytes]) -> Iterable[bytes]:
        """Return a body of any other type, as the server is to see it."""
        if isinstance(body, (list, tuple, bytes)):
            return self._hand_out_whole(exchange, body)
        wrapper = exchange.carrier.get("wsgi.file_wrapper")
        # uWSGI's is a function that returns the file itself.
        if (
            isinstance(body, wrapper)
            if isinstance(wrapper, type)
            else wrapper is not None and hasattr(body, "read")
        ):
            exchange.watch_close(body)
            return body
        measured = (self._body.sized if hasattr(type(body), "__len__") else self._body)()
        measured.exchange = exchange
        measured.body = body
        measured.exhausted = True
        return measured

    def _hand_out_whole(self, exchange: WSGIMeasurement, body: Iterable[bytes]) -> Iterable[bytes]:
        """Report a response that is complete, as are all whose body is of the same type."""
        if len(self._whole) >= MAX_TYPES:
            self._whole.clear()
        self._whole.add(type(body))
        exchange.complete()
        return body

    def _bypass(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Who answers a request that is not to be measured; None: it is to be."""
        below = environ.get("PATH_INFO", "")
        if is_below(below, self._sub_path):
            return self._serve  # which takes it out of the numbers of those further out
        if self._excluded is not None and self._excluded(as_text(below)):
            environ[self._key] = self._excludes  # nor may a middleware of ours further in count it
            return self.app
        return None

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert self._sub_app is not None
        assert self._sub_path is not None
        mounted = {
            **environ,
            "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + self._sub_path,
            "PATH_INFO": environ.get("PATH_INFO", "")[len(self._sub_path) :],
        }
        return self._sub_app(mounted, start_response)


class WSGIMeasurement(Measurement):
    """One request and its response; the attributes are set by the middleware.

    Attributes:
        inner: The server's `start_response`.
    """

    __slots__ = ("inner",)

    method_key = "REQUEST_METHOD"
    scheme_key = "wsgi.url_scheme"

    inner: StartResponse
    status: int | None

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """Remember the status, and pass it on to the server."""
        inner = self.inner
        if exc_info is None:
            write = inner(status, headers)
        else:
            with suppress(Exception):  # what else it may be is the server's to refuse
                if exc_info[1] is not None:
                    self.see(exc_info[1])
            try:
                write = inner(status, headers, exc_info)
            finally:
                exc_info = None  # as PEP 3333 asks: no circle through the traceback
        try:
            self.status = _codes[status]
        except Exception:
            self.status = _code_of(status)
        self.headers = headers
        if ON_START_RESPONSE:
            try:
                for call in ON_START_RESPONSE:
                    call(self.carrier)
            except Exception:
                self.recorder.faults.report("the route resolver")
        return write

    def complete(self) -> None:
        """Report that the response is whole."""
        raise NotImplementedError

    def complete_otherwise(self) -> None:
        """Report a complete response that is not as most are, or none at all."""
        if self.status is None and self.is_open:
            self.failed(None)
        else:
            self.report(COMPLETE)

    def failed(self, error: BaseException | None) -> None:
        """Report that an exception escaped, or that there was no response."""
        if (
            self.status is None
            and isinstance(error, (StopIteration, type(None)))
            and self.carrier.get("HTTP_UPGRADE", "").lower() == "websocket"
        ):
            self.exclude()  # the app took over the connection, for minutes
            self.take_out()
        else:
            self.report(FAILED, error)

    def cut_short(self) -> None:
        """Report a body that was closed before its end; the exception in flight says by whom."""
        error = sys.exc_info()[1]
        if self.status in (204, 304) or self.carrier.get("REQUEST_METHOD") == "HEAD":
            self.complete()
        # What servers raise for a body that is not one of bytes, or as they shut down.
        elif (
            isinstance(error, (TypeError, AssertionError))
            or not isinstance(error, (Exception, GeneratorExit, type(None)))
            or self.server_is_stopping()
        ):
            self.failed(error)
        else:
            self.report(DISCONNECTED)

    def watch_close(self, body: Iterable[bytes]) -> None:
        """Count a file wrapper when it is closed; at once where its `close` cannot be replaced."""
        inner_close = getattr(body, "close", None)
        has_own = "close" in getattr(body, "__dict__", ())  # as wsgiref's has
        # A server may have been started in an except block.
        before = sys.exc_info()[1]

        def close() -> None:
            error = sys.exc_info()[1]
            with suppress(AttributeError):
                # No circle through this function.
                if has_own:
                    body.close = inner_close  # type: ignore[attr-defined]
                else:
                    del body.close  # type: ignore[attr-defined]
            try:
                if inner_close is not None:
                    inner_close()
            except BaseException as raised:
                self.failed(raised)
                raise
            if error is before:
                self.complete()
            else:
                self.cut_short()

        try:
            body.close = close  # type: ignore[attr-defined]
        except (AttributeError, TypeError):
            self.complete()


def _code_of(line: str) -> int:
    """Return the number of a status line; 500 where it has none, as the server will fail on it."""
    try:
        code = int(line[:3])
    except (TypeError, ValueError):
        return 500
    if len(_codes) >= MAX_STATUS_LINES:
        _codes.clear()
    _codes[line] = code
    return code


def _exchange_class(
    recorder: Recorder, route: EnvironRoute | None, user: EnvironUser | None
) -> type[WSGIMeasurement]:
    """Return the subclass of one middleware: what is the same for each request is in closures."""
    carriers = Carriers(
        "REQUEST_METHOD",
        "wsgi.url_scheme",
        (FRAMEWORK_KEY, None),
        environ_reader(route, user, recorder.faults),
        always=lambda: route is not None or user is not None or has_registered("wsgi"),
        read_any=reader(route or route_of_environ, user or user_of_environ, recorder.faults),
        user_key="REMOTE_USER",
        user_of=None,
        fault=recorder.faults.report,
        taken_out=recorder.key,
    )

    class Exchange(WSGIMeasurement):
        __slots__ = ()

        complete = recorder.completing(carriers)

    Exchange.recorder = recorder
    Exchange.route_of, Exchange.user_of = (
        staticmethod(route or route_of_environ),
        staticmethod(user or user_of_environ),
    )
    return Exchange
