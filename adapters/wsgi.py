"""The WSGI middleware: measures every request of the app it wraps.

The hot path. What can be prepared is prepared in `__init__`. A body that is complete when the app
returns it (a list or tuple) is returned as it is and counted at once; a file wrapper is returned
as it is too, so that the server's sendfile goes on working; any other body is handed out behind a
thin object, whose `close()` counts the request.

One request has one outcome, reported once: complete (`end`), failed (`fail`: an exception, or no
response), or abandoned (`abandon`: closed before its end, because the client went away).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import GeneratorType
from typing import TYPE_CHECKING, Protocol

from metricsmw import MetricsMonitor, get_metrics_monitor

from .contract import Exclude as Exclude
from .contract import disown, excluder
from .hosts import HOST_KEY, listen, route_of_environ, user_of_environ

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from metricsmw.recorder import Recorder

    from .auth import Policy

    Headers = list[tuple[str, str]]
    RouteResolver = Callable[[WSGIEnvironment], str | None]
    UserResolver = Callable[[WSGIEnvironment], object]
    IdentityResolver = Callable[[WSGIEnvironment], str | None]

# Status lines are remembered by their number; an app that makes them up is parsed each time.
MAX_STATUS_LINES = 1000
# Stands for the status line once the outcome is reported.
CLOSED = "closed"


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    *,
    identity: IdentityResolver | None = None,
) -> WSGIApplication:
    """The mountable sub-app, on Werkzeug; needs the extra ``metricsmw[wsgi]``."""
    from .wsgi_app import metrics_app as make

    return make(monitor, auth, identity=identity)


class WSGIMetricsMiddleware:
    """Measure ``app`` into ``monitor`` (default: the server's shared one).

    - ``path``: where the sub-app is served; None: nowhere, this only measures.
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
        user: UserResolver | None = None,
        route: RouteResolver | None = None,
        identity: IdentityResolver | None = None,
    ) -> None:
        self.app = app
        self.monitor = get_metrics_monitor() if monitor is None else monitor
        self.recorder = self.monitor.recorder
        self._key = self.recorder.key
        self._begin = self.recorder.begin
        self._excluded = excluder(exclude)
        self._sub_path = path
        # The quick test for paths that may not be measured; None: all are.
        self._needle = "" if self._excluded else path
        self._sub_app = metrics_app(self.monitor, auth, identity=identity) if path else None
        self._exchange = _exchange_class(self.recorder, route, user)
        listen()
        self.recorder.announce()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        key = self._key
        if key in environ:
            return self.app(environ, start_response)
        needle = self._needle
        if needle is not None and "PATH_INFO" in environ and needle in environ["PATH_INFO"]:
            aside = self._aside(environ)
            if aside is not None:
                return aside(environ, start_response)
        environ[key] = self.recorder
        exchange = self._exchange()
        exchange.environ = environ
        exchange.inner = start_response
        exchange.status = None
        exchange.start = self._begin()
        try:
            body = self.app(environ, exchange.start_response)
        except BaseException:
            exchange.failed()
            raise
        kind = type(body)
        if kind is list or kind is tuple:
            exchange.complete()
            return body
        if kind is not GeneratorType:
            return self._hand_out(exchange, body)
        exchange.body = body
        return exchange

    def _hand_out(self, exchange: _Exchange, body: Iterable[bytes]) -> Iterable[bytes]:
        """A body that is neither list, tuple nor generator, as the server is to see it."""
        return exchange.hand_out(body)

    def _aside(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Who answers a request that is not to be measured; None: it is to be."""
        below = environ.get("PATH_INFO", "")
        path = self._sub_path
        if path is not None and (below == path or below.startswith(path + "/")):
            environ[self._key] = None  # no middleware of ours further in may count it either
            disown(environ)  # nor one further out
            return self._serve
        if self._excluded is not None and self._excluded(below):
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


class _Exchange(Protocol):
    """One request and its response; the attributes are set by the middleware."""

    environ: WSGIEnvironment
    inner: StartResponse
    status: str | None
    start: float
    body: Iterable[bytes]

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]: ...
    def complete(self) -> None: ...
    def failed(self) -> None: ...
    def hand_out(self, body: Iterable[bytes]) -> Iterable[bytes]: ...
    def __iter__(self) -> Iterator[bytes]: ...


def _exchange_class(
    recorder: Recorder, route: RouteResolver | None, user: UserResolver | None
) -> Callable[[], _Exchange]:
    """A class of exchanges with all that is the same for every request in its closure."""
    key = recorder.key
    end, fail, abandon = recorder.end, recorder.fail, recorder.abandon
    saw_user, leave, fault = recorder.user, recorder.leave, recorder.fault
    route_of = route or route_of_environ
    user_of = user or user_of_environ
    own_route, own_user = route is not None, user is not None
    codes: dict[str, int] = {}

    def code_of(line: str) -> int:
        """The number of a status line; 500 where it has none, as the server will fail on it."""
        try:
            code = int(line[:3])
        except (TypeError, ValueError):
            return 500
        if len(codes) < MAX_STATUS_LINES:
            codes[line] = code
        return code

    class Exchange:
        """Also the body where that is a generator: it is the commonest one, and can tell itself
        how it ended."""

        __slots__ = ("body", "chunks", "environ", "exhausted", "inner", "start", "status")

        environ: WSGIEnvironment
        inner: StartResponse
        status: str | None  # None: not yet; CLOSED: the outcome is reported
        start: float
        body: Iterable[bytes]
        chunks: Iterator[bytes]
        exhausted: bool

        def start_response(
            self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            self.status = status
            if exc_info is None:
                return self.inner(status, headers)
            try:
                return self.inner(status, headers, exc_info)
            finally:
                exc_info = None  # as PEP 3333 asks: no circle through the traceback

        # --- outcomes ----------------------------------------------------------------------------

        def complete(self) -> None:
            """The response is whole."""
            line = self.status
            if line is CLOSED:
                return
            if line is None:
                self.failed()
                return
            self.status = CLOSED
            environ = self.environ
            if environ[key] is None:
                return
            # Resolvers are called here, not by `template` and `count_user`: two calls less.
            try:
                template = None
                if own_route or HOST_KEY in environ or "bottle.route" in environ:
                    try:
                        template = route_of(environ)
                    except Exception:
                        fault("the route resolver")
                code = codes[line] if line in codes else code_of(line)
                now = end(self.start, code, template, environ["REQUEST_METHOD"])
                if own_user or HOST_KEY in environ or "REMOTE_USER" in environ:
                    try:
                        user_id = user_of(environ)
                        if user_id is not None:
                            saw_user(user_id, now)
                    except Exception:
                        fault("the user resolver")
            except Exception:
                fault("recording a request")
                leave()

        def failed(self) -> None:
            """An exception escaped, or there was no response."""
            self.report(fail)

        def gone(self) -> None:
            """The client went away."""
            self.report(abandon_at)

        def report(self, outcome: Callable[[float, int, str | None, str], object]) -> None:
            line = self.status
            if line is CLOSED:
                return
            self.status = CLOSED
            if self.environ[key] is None:
                return
            try:
                code = 500 if line is None else code_of(line)
                outcome(self.start, code, self.template(), self.environ["REQUEST_METHOD"])
                self.count_user()
            except Exception:
                fault("recording a request")
                leave()

        def template(self) -> str | None:
            try:
                return route_of(self.environ)
            except Exception:
                fault("the route resolver")
                return None

        def count_user(self) -> None:
            try:
                user_id = user_of(self.environ)
                if user_id is not None:
                    saw_user(user_id)
            except Exception:
                fault("the user resolver")

        # --- the body ----------------------------------------------------------------------------

        def hand_out(self, body: Iterable[bytes]) -> Iterable[bytes]:
            """A body that is neither list, tuple nor generator, as the server is to see it."""
            if isinstance(body, (list, tuple)):
                self.complete()
                return body
            wrapper = self.environ.get("wsgi.file_wrapper")
            if isinstance(wrapper, type) and isinstance(body, wrapper):
                self.watch_close(body)
                return body
            self.body = body
            self.__class__ = SizedIterated if hasattr(type(body), "__len__") else Iterated
            return self

        def watch_close(self, body: Iterable[bytes]) -> None:
            """Count a file wrapper when it is closed; where it cannot tell, now."""
            inner_close = getattr(body, "close", None)

            def close() -> None:
                try:
                    if inner_close is not None:
                        inner_close()
                finally:
                    self.complete()

            try:
                body.close = close  # type: ignore[attr-defined]
            except (AttributeError, TypeError):
                self.complete()

        def __iter__(self) -> Iterator[bytes]:
            # No Python code runs for a chunk: after the last one comes the end mark.
            self.exhausted = False
            self.chunks = chain(self.body, self.end_mark())
            return self.chunks

        def end_mark(self) -> Iterator[bytes]:
            self.exhausted = True
            return
            yield b""

        def __next__(self) -> bytes:
            try:
                chunks = self.chunks
            except AttributeError:
                chunks = iter(self)
            return next(chunks)

        def close(self) -> None:
            body = self.body
            # Its frame is gone once it has ended; without the end mark, by an exception.
            ended = body.gi_frame is None  # type: ignore[attr-defined]
            try:
                body.close()  # type: ignore[attr-defined]
            except BaseException:
                self.failed()
                raise
            try:
                exhausted = self.exhausted
            except AttributeError:  # never iterated
                exhausted = False
            self.closed(exhausted, ended and not exhausted)

        def closed(self, exhausted: bool, raised: bool) -> None:
            if raised:
                self.failed()
            elif exhausted or self.bodiless():
                self.complete()
            else:
                self.gone()

        def bodiless(self) -> bool:
            """Whether the server had no reason to iterate."""
            method = self.environ.get("REQUEST_METHOD")
            return method == "HEAD" or (self.status or "")[:3] in ("204", "304")

    class Iterated(Exchange):
        """The body where that is any other iterable: it is watched from outside."""

        __slots__ = ()

        def __iter__(self) -> Iterator[bytes]:
            self.exhausted = False
            self.chunks = self.watched()
            return self.chunks

        def watched(self) -> Iterator[bytes]:
            try:
                # No "yield from": it would close the inner iterator a second time.
                for chunk in self.body:  # noqa: UP028
                    yield chunk
            except GeneratorExit:
                raise
            except BaseException:
                self.failed()
                raise
            self.exhausted = True

        def close(self) -> None:
            try:
                inner_close = getattr(self.body, "close", None)
                if inner_close is not None:
                    inner_close()
            except BaseException:
                self.failed()
                raise
            self.closed(getattr(self, "exhausted", False), False)

    class SizedIterated(Iterated):
        __slots__ = ()

        def __len__(self) -> int:
            return len(self.body)  # type: ignore[arg-type]

    def abandon_at(_: float, code: int, template: str | None, method: str) -> None:
        abandon(code, template, method)

    return Exchange
