"""One request's measurement: its outcome, reported once, and the one thing ever put under the key.

The middleware that measures a request puts a `Measurement` into environ or scope, under its
recorder's key, and takes it out as the request ends. An inner middleware that finds it there, OPEN
or EXCLUDED, does not measure the request again. The state decides and not the presence, because a
server may use the same environ or scope object for another request.

The states, and how each end state is reported to the recorder, stand in
`metricsmw.engine.recording.exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

from metricsmw.engine.recording.captures import Evidence
from metricsmw.engine.recording.exchange import (
    DISCONNECTED,
    EXCLUDED,
    FAILED,
    NO_CARRIER,
    OPEN,
    TRANSITIONS,
    WATCHED,
    State,
)
from metricsmw.engine.storage.keys import DEFAULT_SCHEME

from .carriers import path_of, query_of, request_id_of, trace_of
from .resolvers import route_of_environ, route_of_scope, user_of_environ, user_of_scope
from .resolvers.base import FRAMEWORK_KEY, MEASUREMENT_PREFIX, ForwardedRequest
from .servers import is_stopping

if TYPE_CHECKING:
    from metricsmw.engine.recording.raised import Raised
    from metricsmw.engine.recording.recorder import Recorder


CONTENT_TYPE = b"content-type"


class Watch:
    """What the end of a WATCHED request has to look at.

    Attributes:
        first_byte: When the first bytes of a stream had been passed on; 0.0: no stream so far.
        gone: The client has gone, by `receive` or `send`.
        has_trailers: The response ends with trailers.
        raised: The exception that the framework makes an answer of, or None.
        user: The user, NOT_ASKED before that is asked for; set as the request's end is reported.
    """

    __slots__ = ("first_byte", "gone", "has_trailers", "raised", "user")

    user: object

    def __init__(self) -> None:
        self.first_byte = 0.0
        self.gone = self.has_trailers = False
        self.raised: Raised | None = None


NO_WATCH, NOT_ASKED = Watch(), object()


class Measurement:
    """The measurement of one request; class attributes are the same for all its requests.

    Attributes:
        carrier: The request's environ or scope, until its outcome is reported.
        in_flight: The requests in flight in this worker as it began, itself included.
        headers: Those of the response, of a stream at least; not set before they are known.
        start: When the request began. Times are monotonic seconds.
        state: How far it is.
        status: The status that the app has sent, None before that.
        watched: What its end has to look at; set where it is WATCHED.
        recorder: Gets the reports.
        route_of: Returns the route's template of an answered request, given its carrier.
        user_of: Returns the user of an answered request, given its carrier.
        method_key: The key of the request's method in the carrier.
        scheme_key: The key of its URL scheme in the carrier.
        is_marker: It stands for a request that is not measured.
    """

    __slots__ = ("carrier", "headers", "in_flight", "start", "state", "status", "watched")

    recorder: ClassVar[Recorder]
    route_of: ClassVar[Callable[[Any], str | None]]
    user_of: ClassVar[Callable[[Any], object]]
    method_key: ClassVar[str] = ""
    scheme_key: ClassVar[str] = ""
    is_marker: ClassVar[bool] = False

    carrier: Any  # a WSGIEnvironment or a Scope
    headers: Any  # an iterable of pairs, of str or of bytes
    in_flight: float
    start: float
    state: State
    status: Any
    watched: Watch

    # --- to be overridden ------------------------------------------------------------------------

    def code(self) -> int:
        """Return the status as a number; 500 where the app has sent none."""
        return 500 if self.status is None else int(self.status)

    def method(self, carrier: MutableMapping[str, Any]) -> str:
        """Return the request's method; "" where a scope or environ made by hand has none."""
        method: str = carrier.get(self.method_key, "")
        return method

    def user(self, carrier: MutableMapping[str, Any]) -> object | None:
        """Return the user of the answered request, or None."""
        return type(self).user_of(carrier)

    # --- outcomes --------------------------------------------------------------------------------

    def report(self, outcome: State, error: BaseException | None = None) -> None:
        """Report how the request ended, unless it has ended before.

        Args:
            outcome: How it ended.
            error: The exception that has escaped from the app.
        """
        if outcome not in TRANSITIONS[self.state]:
            self.take_out()
            return
        try:
            self._report(outcome, error)
        finally:
            # A frame of ours in the traceback of the app's exception may keep this for long.
            self.headers, self.watched = (), NO_WATCH

    def _report(self, outcome: State, error: BaseException | None) -> None:
        watched = self.watched = self.watched if self.state is WATCHED else Watch()
        watched.user = NOT_ASKED
        first_byte, raised = watched.first_byte, watched.raised
        self.state = outcome
        carrier = self.carrier
        self.take_out()
        recorder = self.recorder
        now = recorder.clock()  # before the resolvers, whose time is not the request's
        template = self._template(carrier)
        start = self.latency_start(now, template) if first_byte else self.start
        try:
            code, method = self.code(), self.method(carrier)
            scheme = carrier.get(self.scheme_key, DEFAULT_SCHEME)
            if raised is not None:
                code = raised.in_status(code)
            if outcome is DISCONNECTED:
                now = recorder.abandon(code, template, method, scheme)
            elif outcome is FAILED:
                name = recorder.errors.raised(error, int(code), template, method, raised)
                code = int(code) if name else code
                now = recorder.fail(start, code, template, method, name, self, carrier, scheme)
            else:
                recorder.end(start, code, template, method, None, now, self, carrier, scheme)
        except Exception:
            self.give_up()
            return
        if first_byte and outcome is not DISCONNECTED:
            self.count_stream(now, template, method)
        try:
            user = self._ask_user(watched, carrier)
            if user is not None:
                recorder.user(user)
        except Exception:
            recorder.faults.report("the user resolver")

    def _ask_user(self, watched: Watch, carrier: MutableMapping[str, Any]) -> object | None:
        """Return the user, who is asked for once; None where that fails."""
        if watched.user is NOT_ASKED:
            watched.user = None
            try:
                watched.user = self.user(carrier)
            except Exception:
                self.recorder.faults.report("the user resolver")
        return watched.user

    def evidence(self, carrier: MutableMapping[str, Any], wanted: tuple[str, ...]) -> Evidence:
        """Return what the request says of itself, as it is captured; see `CapturedRequest`."""
        # Not set by the way of most requests, which has asked for the user before.
        watched: Watch | None = getattr(self, "watched", None)
        user = None
        if watched is not None and "user" in wanted:
            user = self._ask_user(watched, carrier)
        return Evidence(
            self.start,
            0.0 if watched is None else watched.first_byte,
            int(getattr(self, "in_flight", -1)),
            trace_of(carrier),
            request_id_of(carrier),
            None if user is None else str(user),
            path_of(carrier) if "path" in wanted else None,
            query_of(carrier) if "query" in wanted else None,
        )

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state is OPEN or self.state is WATCHED

    def watch(self) -> Watch:
        """Have the end look at what is not usual, too, and return that."""
        if self.state is OPEN:
            self.watched = Watch()  # first, as another thread may look
            self.state = WATCHED
        return self.watched if self.state is WATCHED else Watch()

    def awaits_first_byte(self) -> bool:
        """Return whether the first bytes of a stream would be noted, as none were so far."""
        return self.state is OPEN or (self.state is WATCHED and not self.watched.first_byte)

    def note_first_byte(self, at: float) -> None:
        """Note when the first bytes of a stream had been passed on, unless that is known."""
        watched = self.watch()
        watched.first_byte = watched.first_byte or at

    def see(self, error: BaseException) -> None:
        """Note the exception that the framework makes an answer of.

        Should that answer say that the server has failed, the exception is counted.
        """
        if self.is_open:
            known = self.watched.raised if self.state is WATCHED else None
            if known is not None and known.led_to(error):
                return
            raised = self.recorder.errors.summary(error)
            if raised is not None:
                self.watch().raised = raised

    def exclude(self) -> None:
        """Count nothing of this request, as it is one of the sub-app's own, say."""
        if EXCLUDED in TRANSITIONS[self.state]:
            self.state = EXCLUDED
            self._cancel()

    def give_up(self) -> None:
        """Report a request that could not be recorded, and count it as in flight no more."""
        self.recorder.faults.report("recording a request")
        self._cancel()

    def _cancel(self) -> None:
        try:
            self.recorder.cancel()
        except Exception:
            self.recorder.faults.report("recording a request")

    def _template(self, carrier: MutableMapping[str, Any]) -> str | None:
        try:
            return type(self).route_of(carrier)
        except Exception:
            self.recorder.faults.report("the route resolver")
            return None

    def latency_start(self, now: float, template: str | None) -> float:
        """Return the start of a stream's latency, which ends at ``now``.

        The latency of a stream of events is the time to its first byte.
        """
        if self._has_events(template):
            return self.start + now - self.watched.first_byte
        return self.start

    def _has_events(self, template: str | None) -> bool:
        """Return whether the response is a stream of events, by its route or content type."""
        named = self.recorder.event_streams
        try:
            if template in named:
                return True
            for name, value in self.headers:
                if len(name) == len(CONTENT_TYPE) and name.lower() in (
                    CONTENT_TYPE,
                    "content-type",
                ):
                    text = value.decode("latin-1") if isinstance(value, bytes) else value
                    return text.partition(";")[0].strip().lower() in named
        except Exception:  # no headers, or none of what they are to be; a template that is no text
            return False
        return False

    def count_stream(self, now: float, template: str | None, method: str) -> None:
        """Record when the first and the last byte of a stream were passed on."""
        if self._has_events(template):
            return  # its latency is that of its first byte
        try:
            self.recorder.streamed(self.start, self.watched.first_byte, now, template, method)
        except Exception:
            self.recorder.faults.report("recording a request")

    def server_is_stopping(self) -> bool:
        """Return whether the WSGI server itself has closed the body early, as it stops."""
        try:
            return is_stopping(self.carrier)
        except Exception:
            self.recorder.faults.report("asking the server for its client")
            return False

    # --- the place in environ or scope -----------------------------------------------------------

    def take_out(self) -> None:
        """Remove this measurement from its carrier, and release the carrier."""
        carrier, self.carrier = self.carrier, NO_CARRIER
        if carrier.get(self.recorder.key) is self:
            del carrier[self.recorder.key]

    def follow_copy(self, carrier: MutableMapping[str, Any]) -> None:
        """Read route and user from this carrier, where it is a copy of the measured one."""
        own = self.carrier
        if carrier is own or not self.is_open or "router" in own:
            return
        if FRAMEWORK_KEY not in own or type(own[FRAMEWORK_KEY]) is ForwardedRequest:
            is_scope = "REQUEST_METHOD" not in carrier
            route = route_of_scope if is_scope else route_of_environ
            user = user_of_scope if is_scope else user_of_environ
            own[FRAMEWORK_KEY] = ForwardedRequest(carrier, route, user)

    def __deepcopy__(self, memo: object) -> Measurement:
        """Return itself: a deep copy of the carrier is of the same request."""
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Leave the measurement out of what is pickled: that is of another process."""
        return type(None), ()


class Excluded(Measurement):
    """Stands for a request that a middleware has excluded by its path, or for a WebSocket."""

    __slots__ = ()

    is_marker = True

    def __init__(self) -> None:
        self.state = EXCLUDED
        self.carrier = NO_CARRIER


def is_measured(
    carrier: MutableMapping[str, Any], key: str, own: Measurement | None = None
) -> bool:
    """Return whether an outer middleware measures or excludes this request.

    Args:
        carrier: The request's environ or scope, which has the key.
        key: The recorder's key.
        own: The `Excluded` of the middleware that asks: its own mark is left from a request before.
    """
    measurement: Measurement | None = carrier[key]
    if measurement is None:  # in a copy that was made by pickling
        return True
    if measurement.is_open:
        measurement.follow_copy(carrier)
        return True
    return measurement.state is EXCLUDED and measurement is not own


# The key in environ or scope under which a host that promised to measure each request says why it
# has not measured one to the sub-app.
UNMEASURED = "metricsmw_unmeasured"


def is_measured_in_wsgi(scope: MutableMapping[str, Any], key: str) -> bool:
    """Return whether the request is measured in the environ from which a bridge made this scope.

    Args:
        scope: The request's scope, which has the environ.
        key: The recorder's key.
    """
    environ = scope["wsgi_environ"]
    if key not in environ or not is_measured(environ, key):
        return False
    scope[key] = environ[key]
    return is_measured(scope, key)


def exclude_request(carrier: MutableMapping[str, Any]) -> None:
    """Exclude this request from measurement by all outer middlewares.

    Args:
        carrier: The request's environ or scope.
    """
    for key, measurement in list(carrier.items()):
        if key.startswith(MEASUREMENT_PREFIX) and measurement is not None:
            measurement.exclude()
