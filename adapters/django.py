"""Django: the middleware, the URLs of the sub-app, and both in one for wrapped handlers.

By hand: `"metricsmw.adapters.django.MetricsMiddleware"` first in `MIDDLEWARE`, and
`path("api/metrics/", include("metricsmw.adapters.django"))`. `wrap(get_wsgi_application())` needs
neither: it measures the handler, or what it stands in, from outside. The sub-app's own paths are
asked of the handler, so that all Django's middleware is around them, with the view to be taken.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.db.transaction import non_atomic_requests
from django.http import HttpResponse
from django.urls import ResolverMatch, get_resolver, re_path

from metricsmw import get_metrics_monitor
from metricsmw.engine.recording.exchange import COMPLETE, DISCONNECTED, FAILED, OPEN, State

from .api.accounts import HostUser, lacks_second_factor, logged_in
from .api.claims import Claim, MountCheck, claim_path, mark, tell_conflict
from .api.handlers import Handlers
from .api.messages import Request, Response, nobody
from .api.sse import Streams
from .api.welcome import Served, announce
from .asgi import ASGIMetricsMiddleware
from .kinds import is_asgi
from .measurement import Measurement, exclude_request, is_measured
from .paths import as_text, excluder, split
from .resolvers import route_of_environ, route_of_scope, user_of_environ, user_of_scope
from .resolvers.base import FRAMEWORK_KEY, MATCH_KEY, measured_by, session_identity
from .resolvers.bridge import bridge_in
from .resolvers.django import DjangoRequest, carrier_of, install, releasing
from .servers import loop_server
from .walks import objects_in
from .wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        MutableMapping,
    )

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase, StreamingHttpResponse
    from django.urls import URLPattern

    from metricsmw import MetricsMonitor

    from .api.policies import Policy, ResetRule
    from .types import (
        EnvironRoute,
        EnvironUser,
        Exclude,
        Message,
        Receive,
        Scope,
        ScopeRoute,
        ScopeUser,
        Send,
    )
    from .wsgi import WSGIMeasurement


# The key in the scope of the list that the sub-app's view adds a stream to, for the middleware
# around Django to send.
STREAM_KEY = "metricsmw_stream"


class MetricsMiddleware:
    """Measures every request that Django answers; to stand first in `MIDDLEWARE`.

    What something outside already measures for the same monitor (`wrap`) passes through. A
    subclass may set `monitor` (default: the server's) and `exclude`, and define `user_of`.
    """

    sync_capable = True
    async_capable = True

    monitor: ClassVar[MetricsMonitor | None] = None
    exclude: ClassVar[Iterable[Exclude]] = ()

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        monitor = get_metrics_monitor() if self.monitor is None else self.monitor
        self._recorder = monitor.recorder
        self._measurement = type(
            "Measurement",
            (DjangoMeasurement,),
            {"__slots__": (), "recorder": self._recorder, "route_of": staticmethod(_route_of)},
        )
        measured_by(self._recorder)
        self._recorder.register_worker()
        install()
        self._excluded = excluder(self.exclude)
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def user_of(self, request: HttpRequest) -> object | None:
        """Return the user of an answered request, as far as the app has loaded it, or None."""
        if isinstance(request, ASGIRequest):
            return user_of_scope(request.scope)
        return user_of_environ(request.META)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request, measured unless it is excluded or measured already."""
        carrier = carrier_of(request)
        key = self._recorder.key
        excluded = self._excluded is not None and self._excluded(request.path_info)
        if not excluded:
            carrier[FRAMEWORK_KEY] = matched = DjangoRequest()
            matched.request = request
        measurement = None
        if not (excluded or (key in carrier and is_measured(carrier, key))):
            try:
                measurement = self._measurement(self, request, carrier)
                carrier[key] = measurement
            except Exception:
                self._recorder.faults.report("recording a request")
        if measurement is None:
            response: HttpResponseBase | Awaitable[HttpResponseBase] = self.get_response(request)
            return response
        return (self._answer_async if self.is_async else self._answer)(request, measurement)

    def _answer(self, request: HttpRequest, measurement: DjangoMeasurement) -> HttpResponseBase:
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException as error:
            # Django makes responses of exceptions; what comes here ends the process or the thread.
            measurement.report(FAILED, error)
            raise
        return _follow(request, measurement, response)

    async def _answer_async(
        self, request: HttpRequest, measurement: DjangoMeasurement
    ) -> HttpResponseBase:
        try:
            response: HttpResponseBase = await self.get_response(request)
        except asyncio.CancelledError:  # as Django does to the view of a client that has gone
            measurement.report(DISCONNECTED)
            raise
        except BaseException as error:
            measurement.report(FAILED, error)
            raise
        return _follow(request, measurement, response)


class DjangoMeasurement(Measurement):
    """One request that Django answers.

    Attributes:
        middleware: The middleware that measures it.
        request: The request.
    """

    __slots__ = ("middleware", "request")

    def __init__(
        self, middleware: MetricsMiddleware, request: HttpRequest, carrier: dict[str, Any]
    ) -> None:
        self.middleware = middleware
        self.request = request
        self.carrier = carrier
        self.status = None
        self.state = OPEN
        self.recorder.begin_exchange(self)

    def method(self, carrier: MutableMapping[str, Any]) -> str:
        """Return the request's method."""
        method: str = self.request.method
        return method

    def user(self, carrier: MutableMapping[str, Any]) -> object | None:
        """Return the user of the request; None: there is none."""
        return self.middleware.user_of(self.request)


def _route_of(carrier: dict[str, Any]) -> str | None:
    return route_of_environ(carrier) if "REQUEST_METHOD" in carrier else route_of_scope(carrier)


def _follow(
    request: HttpRequest, measurement: DjangoMeasurement, response: HttpResponseBase
) -> HttpResponseBase:
    """Report a response that is complete now, and one that streams when it is closed."""
    measurement.status = response.status_code
    if not response.streaming:
        measurement.report(COMPLETE)
        return response
    measurement.headers = response.headers.items()
    # What is of the other kind than the server Django reads whole before it sends any of it.
    is_async = measurement.middleware.is_async or isinstance(request, ASGIRequest)
    stream = _Stream(measurement, has_first_byte=response.is_async is is_async)
    # A server that can send files by itself takes the file out of a response that nobody has
    # wrapped. It closes the response, too.
    if not (hasattr(response, "file_to_stream") and "wsgi.file_wrapper" in request.META):
        stream.follow(response)
    close = response.close

    def closing() -> None:
        try:
            close()
        finally:
            stream.over()

    response.close = closing
    return response


class _Stream:
    """A streaming response, reported once: when it is closed, or has failed.

    After a failure Django does not close it, under ASGI.
    """

    def __init__(self, measurement: DjangoMeasurement, *, has_first_byte: bool) -> None:
        self._measurement = measurement
        self._has_first_byte = has_first_byte
        # Until reading begins: a server need not read the body that HEAD does not get.
        self._outcome: State = COMPLETE

    def over(self) -> None:
        """Report the response, which has been closed or has failed."""
        outcome = self._outcome
        if outcome is DISCONNECTED and (
            _is_ending(sys.exc_info()[1]) or self._measurement.server_is_stopping()
        ):
            outcome = FAILED
        self._measurement.report(outcome)

    def follow(self, response: StreamingHttpResponse) -> None:
        content = response.streaming_content
        if response.is_async:
            response.streaming_content = self._follow_async(content)
        else:
            response.streaming_content = self._follow(content)

    def _follow(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        with self._reading():
            for chunk in chunks:
                yield chunk
                self._passed(chunk)

    async def _follow_async(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        with self._reading():
            async for chunk in chunks:
                yield chunk
                self._passed(chunk)

    def _passed(self, chunk: bytes) -> None:
        measurement = self._measurement
        if chunk and self._has_first_byte and measurement.awaits_first_byte():
            measurement.note_first_byte(measurement.recorder.clock())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._outcome = DISCONNECTED
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):  # closed before its end
            raise
        except BaseException:
            self._outcome = FAILED
            self.over()
            raise
        self._outcome = COMPLETE


def _is_ending(error: BaseException | None) -> bool:
    """Whether it is what a server raises in the middle of a response to end a process or thread."""
    return not isinstance(error, (Exception, GeneratorExit, asyncio.CancelledError, type(None)))


def _identity(request: HttpRequest) -> HostUser | str | None:
    """Return the logged-in user: by Django's verdict where it has users, else by the session."""
    if hasattr(request, "user"):
        user = request.user
        found = logged_in(user, getattr(user, "pk", None))
        return None if found is None or lacks_second_factor(user) else found
    session = getattr(request, "session", {})
    return session_identity({key: session.get(key) for key in ("user", "user_id")})


def metrics_view(
    monitor: MetricsMonitor | None = None, auth: Policy | None = None, reset: ResetRule = True
) -> Callable[..., HttpResponse]:
    """Return the view of the sub-app; it takes the rest of the path below the mount as `below`."""
    claim = claim_path(None, None, None, Claim(auth, reset))  # a bad one is refused here
    check = MountCheck(claim)

    def view(request: HttpRequest, below: str) -> HttpResponse:
        carrier = carrier_of(request)
        exclude_request(carrier)
        # The slash before it may be the end of the pattern that includes ours.
        if request.path.endswith("/" + below):
            below = "/" + below
        mount = request.path_info.removesuffix(below).rstrip("/")
        answering = get_metrics_monitor() if monitor is None else monitor
        announce(answering, Served(None, mount, claim, lambda: True))
        if not check.is_alone(mount, get_resolver()):
            return HttpResponse(tell_conflict(mount), "application/json", 500)
        has_login = hasattr(request, "user") or hasattr(request, "session")
        streams: list[Response] | None = carrier.get(STREAM_KEY)
        answer = Handlers(answering, auth, reset=reset).handle(
            Request(
                request.method,
                below,
                request.META.get("QUERY_STRING", ""),
                {name.lower(): value for name, value in request.headers.items()},
                (lambda: _identity(request)) if has_login else nobody,
                mount=request.path.removesuffix(below),
                streams=streams is not None,
                staff_only=hasattr(request, "user"),
            )
        )
        if streams is not None and answer.stream:
            streams.append(answer)
        return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))

    metrics: Any = non_atomic_requests(view)  # what needs no database works without one
    mark(metrics, claim)
    metrics.csrf_exempt = True  # the handlers refuse what another site asks for
    metrics.login_required = False  # `auth` decides, not LoginRequiredMiddleware
    return metrics  # type: ignore[no-any-return]


def urls(
    monitor: MetricsMonitor | None = None, auth: Policy | None = None, reset: ResetRule = True
) -> list[URLPattern]:
    """Return what to `include` at a path, for a monitor (default: the server's) and a policy."""
    return [re_path(r"^(?P<below>.*)$", metrics_view(monitor, auth, reset))]


urlpatterns = urls()


class _Outside(WSGIMetricsMiddleware):
    """Serves the sub-app by one of Django's handlers, inside its middleware.

    Counts a response of one piece at once, as others do a list, and leaves it as it is.
    """

    def __init__(
        self, app: Any, monitor: MetricsMonitor | None = None, *, handler: Any, **settings: Any
    ) -> None:
        super().__init__(app, monitor, **settings)
        self._handler = handler
        self._view = metrics_view(self.monitor, *self._claim)

    def _hand_out(self, exchange: WSGIMeasurement, body: Iterable[bytes]) -> Iterable[bytes]:
        if issubclass(type(body), HttpResponse):
            return self._hand_out_whole(exchange, body)
        return super()._hand_out(exchange, body)

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert self._sub_path is not None
        exclude_request(environ)
        below = as_text(environ["PATH_INFO"][len(self._sub_path) :])
        match = ResolverMatch(self._view, (), {"below": below})
        response: Iterable[bytes] = self._handler(
            {**environ, self._key: None, MATCH_KEY: match}, start_response
        )
        return response


class _OutsideASGI(ASGIMetricsMiddleware):
    """Serves the sub-app by one of Django's handlers, inside its middleware."""

    def __init__(
        self, app: Any, monitor: MetricsMonitor | None = None, *, handler: Any, **settings: Any
    ) -> None:
        super().__init__(app, monitor, **settings)
        self._handler = handler
        self._view = metrics_view(self.monitor, *self._claim)
        self._streams = Streams(self.monitor)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._sub_path is not None
        exclude_request(scope)
        _, below = split(scope["path"], scope.get("root_path", ""))
        match = ResolverMatch(self._view, (), {"below": below[len(self._sub_path) :]})
        inside = {**scope, self._key: None, MATCH_KEY: match}
        streams: list[Response] = []
        if loop_server() is not None:
            inside[STREAM_KEY] = streams

        async def unless_streamed(message: Message) -> None:
            if not streams:
                await send(message)

        await self._handler(inside, receive, unless_streamed)
        if streams:
            await self._streams.answer(streams[0], scope, receive, send)


def instrument(
    app: WSGIHandler | ASGIHandler | WSGIMetricsMiddleware | ASGIMetricsMiddleware,
    monitor: MetricsMonitor | None = None,
    path: str = "/api/metrics",
    auth: Policy | None = None,
    exclude: Iterable[Exclude] = (),
    user: EnvironUser | ScopeUser | None = None,
    route: EnvironRoute | ScopeRoute | None = None,
    reset: ResetRule = True,
) -> WSGIMetricsMiddleware | ASGIMetricsMiddleware:
    """Return an app measured, with the metrics served at `path` inside Django's middleware.

    Arguments as for `wrap`; `app` is one of Django's handlers, or has one inside.
    """
    kind: Any = _OutsideASGI if is_asgi(app) else _Outside
    handler = handler_in(app, asgi=kind is _OutsideASGI)
    if handler is None:
        raise TypeError(f"app must be a Django handler or have one inside, got {app!r}")
    return kind(  # type: ignore[no-any-return]
        app,
        monitor,
        path=path,
        auth=auth,
        exclude=exclude,
        user=releasing(user),
        route=route,
        reset=reset,
        handler=handler,
    )


def handler_in(app: object, *, asgi: bool) -> Any:
    """Return the handler that stands next inside an app, or is it; None where there is none.

    Of a handler of the other kind it is the bridge that leads to it.
    """
    kind, other = (ASGIHandler, WSGIHandler) if asgi else (WSGIHandler, ASGIHandler)
    found = next((each for each in objects_in(app) if isinstance(each, kind)), None)
    return bridge_in(app, other) if found is None else found
