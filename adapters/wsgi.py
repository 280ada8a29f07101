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
from typing import TYPE_CHECKING, Any, Protocol

from metricsmw import MetricsMonitor, get_metrics_monitor

from .contract import Exclude as Exclude
from .contract import excluder
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
        # The quick test for it; where there is none, this leads at worst to the exact one.
        self._needle = path or "\0"
        self._sub_app = metrics_app(self.monitor, auth, identity=identity) if path else None
        self._exchange, self._sized_exchange = _exchange_classes(self.recorder, route, user)
        listen()
        self.recorder.announce()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        key = self._key
        if key in environ:
            return self.app(environ, start_response)
        if (
            "PATH_INFO" in environ and self._needle in environ["PATH_INFO"]
        ) or self._excluded is not None:
            aside = self._aside(environ)
            if aside is not None:
                return aside(environ, start_response)
        environ[key] = self.recorder
        exchange = self._exchange()
        exchange.environ = environ
        exchange.inner = start_response
        exchange.status = ""
        exchange.open = True
        exchange.start = self._begin()
        try:
            body = self.app(environ, exchange.start_response)
        except BaseException:
            exchange.failed()
            raise
        if type(body) is list or type(body) is tuple:
            exchange.complete()
            return body
        return self._hand_out(exchange, body)

    def _aside(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Who answers a request that is not to be measured; None: it is to be."""
        below = environ.get("PATH_INFO", "")
        path = self._sub_path
        if path is not None and (below == path or below.startswith(path + "/")):
            environ[self._key] = None  # no middleware of ours further in may count it either
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

    def _hand_out(self, exchange: _Exchange, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body as the server is to see it: as it is, or behind the exchange."""
        if isinstance(body, (list, tuple)):
            exchange.complete()
            return body
        wrapper = exchange.environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            exchange.watch_close(body)
            return body
        if hasattr(type(body), "__len__"):
            exchange.__class__ = self._sized_exchange
        exchange.body = body
        exchange.chunks = None
        exchange.exhausted = False
        exchange.raised = False
        return exchange


class _Exchange(Protocol):
    """One request and its response; the attributes are set by the middleware."""

    environ: WSGIEnvironment
    inner: StartResponse
    status: str
    open: bool
    start: float
    body: Iterable[bytes]
    chunks: Iterator[bytes] | None
    exhausted: bool
    raised: bool

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]: ...
    def complete(self) -> None: ...
    def failed(self) -> None: ...
    def watch_close(self, body: Iterable[bytes]) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...


def _exchange_classes(
    recorder: Recorder, route: RouteResolver | None, user: UserResolver | None
) -> tuple[Callable[[], _Exchange], Any]:
    """Two classes of exchanges, plain and sized, with all that is constant in their closure."""
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
        __slots__ = (
            "body",
            "chunks",
            "environ",
            "exhausted",
            "inner",
            "open",
            "raised",
            "start",
            "status",
        )

        environ: WSGIEnvironment
        inner: StartResponse
        status: str
        open: bool
        start: float
        body: Iterable[bytes]
        chunks: Iterator[bytes] | None
        exhausted: bool
        raised: bool

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
            if not self.open:
                return
            self.open = False
            environ = self.environ
            if environ[key] is None:
                return
            line = self.status
            if not line:
                self.report(fail)
                return
            try:
                template = None
                if own_route or HOST_KEY in environ or "bottle.route" in environ:
                    template = self.template()
                code = codes[line] if line in codes else code_of(line)
                end(self.start, code, template, environ["REQUEST_METHOD"])
                if own_user or HOST_KEY in environ or "REMOTE_USER" in environ:
                    self.count_user()
            except Exception:
                fault("recording a request")
                leave()

        def failed(self) -> None:
            """An exception escaped."""
            if self.open:
                self.open = False
                self.report(fail)

        def gone(self) -> None:
            """The client went away."""
            if self.open:
                self.open = False
                self.report(abandon_at)

        def report(self, outcome: Callable[[float, int, str | None, str], None]) -> None:
            if self.environ[key] is None:
                return
            try:
                code = code_of(self.status) if self.status else 500
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
            try:
                # No "yield from": it would close the inner iterator a second time.
                for chunk in self.body:  # noqa: UP028
                    yield chunk
            except GeneratorExit:
                raise
            except BaseException:
                self.raised = True
                raise
            self.exhausted = True

        def __next__(self) -> bytes:
            if self.chunks is None:
                self.chunks = iter(self)
            return next(self.chunks)

        def close(self) -> None:
            try:
                inner_close = getattr(self.body, "close", None)
                if inner_close is not None:
                    inner_close()
            except BaseException:
                self.failed()
                raise
            if self.raised:
                self.failed()
            elif self.exhausted or self.bodiless():
                self.complete()
            else:
                self.gone()

        def bodiless(self) -> bool:
            """Whether the server had no reason to iterate."""
            return self.environ.get("REQUEST_METHOD") == "HEAD" or self.status[:3] in ("204", "304")

    class SizedExchange(Exchange):
        __slots__ = ()

        def __len__(self) -> int:
            return len(self.body)  # type: ignore[arg-type]

    def abandon_at(_: float, code: int, template: str | None, method: str) -> None:
        abandon(code, template, method)

    return Exchange, SizedExchange
