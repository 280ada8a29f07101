"""The WSGI middleware: measures every request of the app it wraps.

The hot path. What can be prepared is prepared in `__init__`. A body that is complete when the app
returns it (a list, a tuple or bytes) is returned as it is and counted at once; a file wrapper is
returned as it is too, so that the server's sendfile goes on working; any other body is handed out
behind a thin object, whose `close()` counts the request.

One request has one outcome, reported once: complete (`end`), failed (`fail`: an exception, no
response, or a server that shut down), or abandoned (`abandon`: closed before its end, because the
client went away).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import chain
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from metricsmw import MetricsMonitor, get_metrics_monitor

from .paths import as_text, as_wsgi, excluder, mount_path
from .resolvers import install, route_of_environ, user_of_environ
from .resolvers.base import FRAMEWORK_KEY, ON_START_RESPONSE, ForwardedRequest
from .servers import broken_off

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from metricsmw.engine.recording.recorder import Recorder

    from .api.policies import Policy
    from .types import EnvironIdentity, EnvironRoute, EnvironUser, Exclude, Headers, Thresholds

# Status lines are remembered by their number; an app that makes them up is parsed each time.
MAX_STATUS_LINES = 1000
# What stands for the status line and for the environ once the outcome is reported; no app's status
# line is this object, whatever it says.
REPORTED = str(b"closed", "ascii")
NO_ENVIRON: WSGIEnvironment = {}


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    *,
    identity: EnvironIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
) -> WSGIApplication:
    """The mountable sub-app, on Werkzeug; needs the extra ``metricsmw[wsgi]``."""
    from .api.wsgi_app import metrics_app as make

    if health_thresholds is not None:
        monitor = get_metrics_monitor() if monitor is None else monitor
        monitor.set_health_thresholds(health_thresholds, health_status)
    return make(monitor, auth, identity=identity)


class WSGIMetricsMiddleware:
    """Measure ``app`` into ``monitor`` (default: the server's shared one).

    - ``path``: where the sub-app is served, "/api/metrics"; None: nowhere, this only measures.
      `ValueError` for one that does not start with a slash and go on.
    - ``auth``: who may read the sub-app, see `metricsmw.adapters.auth`.
    - ``exclude``: paths left out of the numbers: prefixes, or compiled patterns to search for.
    - ``user``, ``route``: from the environ of an answered request to its user, and to its route's
      template; None where there is none. Default: what the host left in the environ.
    - ``identity``: from the environ to the host's logged-in user, for the sub-app.
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
    ) -> None:
        self.app = app
        self.monitor = get_metrics_monitor() if monitor is None else monitor
        self.recorder = self.monitor.recorder
        self._key = self.recorder.key
        self._begin = self.recorder.begin
        self._excluded = excluder(exclude)
        self._sub_path = path = None if path is None else as_wsgi(mount_path(path))
        # The quick test for paths that may not be measured; None: all are.
        self._bypass_hint = "" if self._excluded else path
        self._sub_app = metrics_app(self.monitor, auth, identity=identity) if path else None
        self._exchange = _exchange_class(self.recorder, route, user)
        install()
        self.recorder.register_worker()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        key = self._key
        if key in environ:
            follow_copy = getattr(environ[key], "follow_copy", None)
            if follow_copy is not None:
                follow_copy(environ)
            return self.app(environ, start_response)
        if self.recorder.in_asgi:
            scope = _scope_of(environ, start_response)
            if key in scope:
                return self.app(environ, self._copying_to(environ, start_response, scope))
        hint = self._bypass_hint
        if hint is not None and "PATH_INFO" in environ and hint in environ["PATH_INFO"]:
            bypass = self._bypass(environ)
            if bypass is not None:
                return bypass(environ, start_response)
        exchange = self._exchange()
        exchange.environ = environ
        exchange.inner = start_response
        exchange.status = None
        exchange.first = 0.0
        environ[key] = exchange
        try:
            exchange.start = self._begin()
        except Exception:
            exchange.status = REPORTED
            self.recorder.faults.report("recording a request")
        try:
            body = self.app(environ, exchange.start_response)
        except BaseException as error:
            exchange.failed(error)
            raise
        kind = type(body)
        if kind is list or kind is tuple:
            exchange.complete()
            return body
        if kind is not GeneratorType:
            return self._hand_out(exchange, body)
        exchange.body = body
        exchange.exhausted = True  # until it is iterated
        return exchange

    def _hand_out(self, exchange: _Exchange, body: Iterable[bytes]) -> Iterable[bytes]:
        """A body that is neither list, tuple nor generator, as the server is to see it."""
        return exchange.hand_out(body)

    def _copying_to(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        scope: MutableMapping[str, object],
    ) -> StartResponse:
        """Has the scope, which is measured further out, know what the host leaves in environ."""

        def started(
            status: str, headers: Headers, exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            if exc_info is None:
                write = start_response(status, headers)
            else:
                write = start_response(status, headers, exc_info)
            try:
                for ask in ON_START_RESPONSE:
                    ask(environ)
                if FRAMEWORK_KEY in environ:
                    scope[FRAMEWORK_KEY] = environ[FRAMEWORK_KEY]
            except Exception:
                self.recorder.faults.report("the route resolver")
            return write

        return started

    def _bypass(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Who answers a request that is not to be measured; None: it is to be."""
        below = environ.get("PATH_INFO", "")
        path = self._sub_path
        if path is not None and (below == path or below.startswith(path + "/")):
            return self._serve  # which takes it out of the numbers of those further out
        if self._excluded is not None and self._excluded(as_text(below)):
            environ[self._key] = None  # nor may a middleware of ours further in count it
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


def _scope_of(
    environ: WSGIEnvironment, start_response: StartResponse
) -> MutableMapping[str, object]:
    """The scope of a request that an ASGI app hands on; empty where none does.

    a2wsgi leaves it in environ; Starlette and asgiref keep it beside `start_response`.
    """
    bridge = getattr(start_response, "__self__", None)
    return environ.get("asgi.scope") or getattr(bridge, "scope", None) or {}


class _Exchange(Protocol):
    """One request and its response; the attributes are set by the middleware."""

    environ: WSGIEnvironment
    inner: StartResponse
    status: str | None
    start: float
    first: float
    body: Iterable[bytes]
    exhausted: bool

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]: ...
    def follow_copy(self, environ: WSGIEnvironment) -> None: ...
    def complete(self) -> None: ...
    def failed(self, error: BaseException | None) -> None: ...
    def hand_out(self, body: Iterable[bytes]) -> Iterable[bytes]: ...
    def __iter__(self) -> Iterator[bytes]: ...


def _exchange_class(
    recorder: Recorder, route: EnvironRoute | None, user: EnvironUser | None
) -> Callable[[], _Exchange]:
    """A class of exchanges with all that is the same for every request in its closure."""
    end, fail, abandon = recorder.end, recorder.fail, recorder.abandon
    saw_user, left, fault = recorder.user, recorder.cancel, recorder.faults.report
    streamed, clock = recorder.streamed, recorder.clock
    route_of = route or route_of_environ
    user_of = user or user_of_environ
    own_route, own_user = route is not None, user is not None
    codes: dict[str, int] = {}
    at_start = ON_START_RESPONSE

    def code_of(line: str) -> int:
        """The number of a status line; 500 where it has none, as the server will fail on it."""
        try:
            code = int(line[:3])
        except (TypeError, ValueError):
            return 500
        if len(codes) < MAX_STATUS_LINES:
            codes[line] = code
        return code

    def give_up() -> None:
        """What could not be recorded is no longer in flight, either."""
        fault("recording a request")
        try:
            left()
        except Exception:
            fault("recording a request")

    class Exchange:
        """Stands in the environ as long as it may be disowned; has that until it is reported.

        Also the body where that is a generator: it is the commonest one, and can tell itself
        how it ended.
        """

        __slots__ = ("body", "environ", "exhausted", "first", "inner", "start", "status")

        environ: WSGIEnvironment
        inner: StartResponse
        status: str | None  # None: not yet; REPORTED: the outcome is reported
        start: float
        first: float  # when the first bytes of a stream had been taken; 0.0: no stream
        body: Iterable[bytes]
        exhausted: bool  # or never iterated

        def start_response(
            self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            if exc_info is None:
                write = self.inner(status, headers)
            else:
                try:
                    write = self.inner(status, headers, exc_info)
                finally:
                    exc_info = None  # as PEP 3333 asks: no circle through the traceback
            if self.status is not REPORTED:
                self.status = status
                if at_start:
                    try:
                        for ask in at_start:
                            ask(self.environ)
                    except Exception:
                        fault("the route resolver")
            return write

        # --- outcomes ----------------------------------------------------------------------------

        def complete(self) -> None:
            """The response is whole."""
            line = self.status
            if line is REPORTED:
                return
            if line is None:
                self.failed(None)
                return
            self.status = REPORTED
            environ = self.environ
            self.environ = NO_ENVIRON
            # Resolvers are called here, not by `template` and `count_user`: two calls less.
            template = None
            if own_route or FRAMEWORK_KEY in environ or "bottle.route" in environ:
                try:
                    template = route_of(environ)
                except Exception:
                    fault("the route resolver")
            try:
                try:
                    code = codes[line]
                except KeyError:
                    code = code_of(line)
                method = environ["REQUEST_METHOD"]
                now = end(self.start, code, template, method)
            except Exception:
                give_up()
                return
            if self.first:
                self.count_stream(now, template, method)
            if own_user or FRAMEWORK_KEY in environ or "REMOTE_USER" in environ:
                try:
                    user_id = user_of(environ)
                    if user_id is not None:
                        saw_user(user_id, now)
                except Exception:
                    fault("the user resolver")

        def failed(self, error: BaseException | None) -> None:
            """An exception escaped, or there was no response."""
            self.report(fail, error)

        def gone(self) -> None:
            """The client went away."""
            self.report(abandon_at)

        def report(
            self,
            outcome: Callable[[float, int, str | None, str], float],
            error: BaseException | None = None,
        ) -> None:
            line, environ = self.status, self.environ
            if line is REPORTED:
                return
            if (
                line is None
                and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
                and isinstance(error, (StopIteration, type(None)))
            ):
                self.cancel()  # the app took over the connection, for minutes
                return
            self.status = REPORTED
            self.environ = NO_ENVIRON
            template = self.template(environ)
            try:
                code = 500 if line is None else code_of(line)
                method = environ["REQUEST_METHOD"]
                now = outcome(self.start, code, template, method)
            except Exception:
                give_up()
                return
            if self.first and outcome is fail:
                self.count_stream(now, template, method)
            self.count_user(environ)

        def follow_copy(self, environ: WSGIEnvironment) -> None:
            """What is further in was handed this: a copy has what the host leaves there."""
            own = self.environ
            if environ is own or own is NO_ENVIRON:
                return
            if FRAMEWORK_KEY not in own or type(own[FRAMEWORK_KEY]) is ForwardedRequest:
                own[FRAMEWORK_KEY] = ForwardedRequest(environ, route_of_environ, user_of_environ)

        def cancel(self) -> None:
            """This is no request to be counted: it is one of the sub-app's own, say."""
            if self.status is REPORTED:
                return
            self.status = REPORTED
            self.environ = NO_ENVIRON
            try:
                left()
            except Exception:
                fault("recording a request")

        def template(self, environ: WSGIEnvironment) -> str | None:
            try:
                return route_of(environ)
            except Exception:
                fault("the route resolver")
                return None

        def count_stream(self, now: float, template: str | None, method: str) -> None:
            try:
                streamed(self.start, self.first, now, template, method)
            except Exception:
                fault("recording a request")

        def count_user(self, environ: WSGIEnvironment) -> None:
            try:
                user_id = user_of(environ)
                if user_id is not None:
                    saw_user(user_id)
            except Exception:
                fault("the user resolver")

        def __reduce__(self) -> tuple[type, tuple[()]]:
            """A copy of the environ, be it in another process, is measured where this one is."""
            return type(None), ()

        # --- the body ----------------------------------------------------------------------------

        def hand_out(self, body: Iterable[bytes]) -> Iterable[bytes]:
            """A body that is neither list, tuple nor generator, as the server is to see it."""
            # uWSGI takes bytes as they are.
            if isinstance(body, (list, tuple, bytes)):
                self.complete()
                return body
            wrapper = self.environ.get("wsgi.file_wrapper")
            # uWSGI's is a function that returns the file itself.
            if (
                isinstance(body, wrapper)
                if isinstance(wrapper, type)
                else wrapper is not None and hasattr(body, "read")
            ):
                self.watch_close(body)
                return body
            self.body = body
            self.exhausted = True
            self.__class__ = SizedIterated if hasattr(type(body), "__len__") else Iterated
            return self

        def watch_close(self, body: Iterable[bytes]) -> None:
            """Count a file wrapper when it is closed; where it cannot tell, now."""
            inner_close = getattr(body, "close", None)
            # A server may have been started in an except block.
            before = sys.exc_info()[1]

            def close() -> None:
                error = sys.exc_info()[1]
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

        def __iter__(self) -> Iterator[bytes]:
            self.exhausted = False
            # A generator is its own iterator; another body sees but one iter().
            body = self.body if type(self.body) is GeneratorType else chain(self.body)
            try:
                # No "yield from": it would close the body when the server drops the iterator.
                for chunk in body:
                    yield chunk
                    if chunk:
                        taken = clock()
                        for chunk in body:
                            self.first = taken
                            yield chunk
                            for chunk in body:
                                yield chunk
                            break
                        break
            except GeneratorExit:
                raise
            except BaseException as error:
                self.failed(error)
                raise
            self.exhausted = True

        def __next__(self) -> bytes:
            self.exhausted = False
            try:
                return next(self.body)  # type: ignore[call-overload, no-any-return]
            except StopIteration:
                self.exhausted = True
                raise
            except BaseException as error:
                self.failed(error)
                raise

        def close(self) -> None:
            body: Any = self.body
            # Its frame is gone once it has ended: if not exhausted, then by an exception.
            if body.gi_frame is None:
                if self.exhausted:
                    self.complete()
                else:
                    self.failed(None)
                return
            try:
                body.close()
            except BaseException as error:
                self.failed(error)
                raise
            if self.exhausted:  # never iterated, which a server does before it finds nobody
                self.complete()
            else:
                self.cut_short()

        def cut_short(self) -> None:
            """The body was closed before its end: by whom tells the exception in flight."""
            error = sys.exc_info()[1]
            bodiless = (self.status or "")[:3] in ("204", "304")
            if bodiless or self.environ.get("REQUEST_METHOD") == "HEAD":
                self.complete()
            # What servers raise for a body that is not one of bytes, or as they shut down.
            elif (
                isinstance(error, (TypeError, AssertionError))
                or not isinstance(error, (Exception, GeneratorExit, type(None)))
                or broken_off(self.environ, recorder)
            ):
                self.failed(error)
            else:
                self.gone()

    class Iterated(Exchange):
        """The body where that is any other iterable."""

        __slots__ = ()

        def close(self) -> None:
            try:
                inner_close = getattr(self.body, "close", None)
                if inner_close is not None:
                    inner_close()
            except BaseException as error:
                self.failed(error)
                raise
            if self.exhausted:
                self.complete()
            else:
                self.cut_short()

    class SizedIterated(Iterated):
        __slots__ = ()

        def __len__(self) -> int:
            return len(self.body)  # type: ignore[arg-type]

    def abandon_at(_: float, code: int, template: str | None, method: str) -> float:
        return abandon(code, template, method)

    return Exchange
