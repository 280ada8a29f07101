"""The hot path: the recording of each request into this worker's segment.

Nothing here takes a lock on a build with the GIL: ``lane[i] += 1.0`` has no switch point between
its load and its store, as nothing but constants and arithmetic stands between them (a test reads
the bytecode). Builds that can run without one, and PyPy, take the same functions behind a lock.

The functions are closures over their views, so that a request costs look-ups of cells only. The
first record in a process opens the segment. A forked child releases it, because two processes that
write to one segment would lose counts. Until the segment is open `deadline` is -inf, so that the
first record takes the slow path, which opens it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from math import ceil, inf, log2
from typing import Any, ParamSpec, Protocol, TypeVar

from metricsmw.clock import Clock
from metricsmw.config import EVENT_STREAM, Settings
from metricsmw.engine.aside import do_aside, runs_event_loop
from metricsmw.engine.builds import NEEDS_LOCK
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.fork import Stage, on_fork
from metricsmw.engine.recording.answers import AnswerKey, AnswerPlace, Row, class_lane, of_scheme
from metricsmw.engine.recording.captures import CapturedRequest, Captures
from metricsmw.engine.recording.errors import ErrorRecorder
from metricsmw.engine.recording.exchange import (
    COMPLETE,
    NO_CARRIER,
    OPEN,
    Answered,
    Begun,
    Carriers,
    Complete,
)
from metricsmw.engine.recording.raised import Known
from metricsmw.engine.recording.routes import PLACES, RouteTables
from metricsmw.engine.recording.users import UserTable
from metricsmw.engine.storage.histogram import BUCKETS, CEILING_SECONDS, FLOOR_SECONDS
from metricsmw.engine.storage.keys import DEFAULT_SCHEME, METHODS, AnswerName
from metricsmw.engine.storage.layout import (
    COUNTER_BLOCK,
    Field,
    Lane,
    RouteLane,
    place_of,
    step_number,
)
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.membership import Membership
from metricsmw.engine.workers.processes import is_forked_by_server
from metricsmw.validation import whole

P = ParamSpec("P")
R = TypeVar("R")

NO_LANES = memoryview(b"").cast("d")

LATENCY_RANGE = "latency_ms must be a finite number of milliseconds >= 0"

# The functions that count: they take the lock on builds without a GIL.
LOCKED = (
    "begin",
    "begin_exchange",
    "end",
    "fail",
    "abandon",
    "cancel",
    "streamed",
    "record_request",
    "observe",
    "observe_route",
    "user",
    "websocket",
)

_numbers = count(1)
live_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def check_latency(latency_ms: float) -> float:
    """Return the latency in seconds. Raises `ValueError` or `TypeError` where it is none."""
    if isinstance(latency_ms, bool) or not isinstance(latency_ms, (int, float)):
        raise TypeError(f"{LATENCY_RANGE}, got {latency_ms!r}")
    # An int may be too large for a float, and then it is above the ceiling of floats.
    if not 0 <= latency_ms <= sys.float_info.max:
        raise ValueError(f"{LATENCY_RANGE}, got {latency_ms!r}")
    return min(latency_ms, CEILING_SECONDS * 1000) * 0.001


def check_status(status: int) -> int:
    """Return the status.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is not from 100 to 599.
    """
    return whole("status", status, 100, 599)


def check_text(name: str, value: str | None) -> None:
    """Raise `TypeError` unless the value is a str or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, got {value!r}")


class SawUser(Protocol):
    """`Recorder.user`."""

    def __call__(self, user_id: object, now: float | None = None) -> None:
        """Note that the user was active at monotonic ``now``, or now."""


class End(Protocol):
    """`Recorder.end`."""

    def __call__(
        self,
        start: float,
        status: int,
        route: str | None,
        method: str,
        user_id: object = None,
        now: float | None = None,
        request: CapturedRequest | None = None,
        carrier: Any = None,
        scheme: str = "",
    ) -> float:
        """Record a response that was complete at monotonic ``now``, or is now; return when."""


class Fail(Protocol):
    """`Recorder.fail`."""

    def __call__(
        self,
        start: float,
        status: int,
        route: str | None,
        method: str,
        error: str = "",
        request: CapturedRequest | None = None,
        carrier: Any = None,
        scheme: str = "",
    ) -> float:
        """Record a request that failed; ``error`` is the type of the exception that escaped."""


class Abandon(Protocol):
    """`Recorder.abandon`."""

    def __call__(self, status: int, route: str | None, method: str, scheme: str = "") -> float:
        """Record a request whose client went away; return when."""


class Observe(Protocol):
    """`Recorder.observe`."""

    def __call__(self, seconds: float, is_error: bool, status: int | None = None) -> None:
        """Record a latency without a route; an error is the server's but with a status of 4xx."""


class ObserveRoute(Protocol):
    """`Recorder.observe_route`."""

    def __call__(
        self,
        seconds: float,
        is_error: bool,
        route: str | None,
        method: str,
        key: AnswerKey,
        user_id: object = None,
        request: CapturedRequest | None = None,
        carrier: Any = None,
        scheme: str = "",
    ) -> None:
        """Record a latency of a route."""


class RecordRequest(Protocol):
    """`Recorder.record_request`."""

    def __call__(
        self,
        latency_ms: float,
        is_error: bool = False,
        user_id: object = None,
        *,
        method: str | None = None,
        route: str | None = None,
        status: int | None = None,
    ) -> None:
        """Record one request; see `MetricsMonitor.record_request`."""


def _complete_otherwise(exchange: Answered) -> None:
    exchange.complete_otherwise()


class Recorder:
    """What adapters and the monitor record with. Latencies and times are monotonic seconds.

    The methods that a request passes through are attributes made by `_build`:

    - ``begin() -> float``: one more request in flight; its start.
    - ``begin_exchange(exchange)``: the same, noted in the exchange.
    - ``end(start, status, route, method, user_id=None, now=None) -> float``: its response is
      complete; when that was.
    - ``fail(start, status, route, method, error="") -> float``: it failed, whatever the status that
      was sent; when that was. What ends may name itself as ``request``, with its ``carrier``, so
      that more than its numbers can be captured, and the URL ``scheme``.
    - ``abandon(status, route, method) -> float``: its client went away: in the totals only.
    - ``record_request(…)``: `MetricsMonitor.record_request`.
    - ``observe(seconds, is_error, status=None)``: a latency without a route.
    - ``observe_route(seconds, is_error, route, method, key)``: one of a route.
    - ``streamed(start, first, end, route, method)``: it ended at ``end``, by one of these two; its
      first byte had been sent at ``first``.
    - ``cancel()``: one request in flight less, and nothing counted.
    - ``user(user_id, now=None)``: the user was active at that time, or now.
    - ``websocket(number)``: so many WebSockets more are open.

    ``clock`` returns monotonic seconds.

    ``route`` is the host's template, or None where nothing matched. ``key`` marks an environ or
    a scope as being measured by this recorder; ``in_asgi``: whether some scope is;
    ``in_wsgi``: whether some environ is.
    """

    in_asgi: bool
    in_wsgi: bool

    begin: Callable[[], float]
    begin_exchange: Callable[[Begun], None]
    _completing: Callable[[Carriers], Complete]
    end: End
    fail: Fail
    abandon: Abandon
    record_request: RecordRequest
    observe: Observe
    observe_route: ObserveRoute
    cancel: Callable[[], None]
    streamed: Callable[[float, float, float, str | None, str], None]
    user: SawUser
    websocket: Callable[[float], None]

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        membership: Membership,
        faults: FaultLog,
        on_minute: Callable[[float], float],
    ) -> None:
        self.key = f"metricsmw.{next(_numbers)}"
        # Attributes of its own are quicker to read than the class's.
        self.in_asgi = self.in_wsgi = False
        self._settings = settings
        self._clock = clock
        self.clock = clock.monotonic
        self._membership = membership
        self._on_minute = on_minute
        self.faults = faults
        self.event_streams = frozenset((EVENT_STREAM, *settings.event_streams))
        """Content types and templates of routes whose streams are measured to their first byte."""
        self._registered = False
        self._lock = threading.RLock()
        self._waiting: list[Callable[[], None]] = []  # for the lock to be released, see `_unlocked`
        self._restarted = 0.0  # monotonic time of the last reset made here
        self.segment: Segment | None = None
        self.errors = ErrorRecorder(
            self,
            clock,
            faults,
            membership.reset,
            with_message="message" in settings.capture,
        )
        self.on_release: Callable[[], None] = lambda: None
        """Called as the segment is released, lost or replaced; the app's own numbers are in it."""
        self.is_serving = False
        """Whether this process has recorded, or an adapter has called `serve`."""
        self._build()
        if NEEDS_LOCK:
            for name in LOCKED:
                setattr(self, name, self._locked(getattr(self, name)))
        live_recorders.add(self)

    def _locked(self, function: Callable[P, R]) -> Callable[P, R]:
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            waiting: Sequence[Callable[[], None]] = ()
            with self._lock:
                try:
                    result = function(*args, **kwargs)
                finally:
                    if self._waiting:
                        waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()
            return result

        return locked

    def _unlocked(self, function: Callable[P, None]) -> Callable[P, None]:
        """Return a function that may call the app, and never raises, to be called while counting.

        Where the functions that count take the lock, it is called once that is released.
        """
        if not NEEDS_LOCK:
            return function

        def wait(*args: P.args, **kwargs: P.kwargs) -> None:
            self._waiting.append(partial(function, *args, **kwargs))

        return wait

    def _build(self) -> None:
        clock = self._clock.monotonic
        settings = self._settings
        step = settings.step
        errors, abandoned = int(Lane.ERRORS), int(Lane.ABANDONED)
        server_errors, errors_5xx = int(Lane.SERVER_ERRORS), Lane.CLASSES + 5
        errors_from = settings.errors_from
        answered = self._unlocked(self.errors.answered)
        route_errors, route_server_errors, route_abandoned, route_streams = map(
            place_of,
            (
                RouteLane.ERRORS,
                RouteLane.SERVER_ERRORS,
                RouteLane.ABANDONED,
                RouteLane.STREAMS,
            ),
        )
        # The place in a route's row for each bucket of scale 5, of which the first is -768.
        places = list(PLACES)

        # Until the segment is open gauges go here; opening it adds them up.
        gauges: memoryview[float] | list[float] = [0.0, 0.0]
        # What `gauges[0]` is: it is stored there, and never read back.
        in_flight = 0.0
        lanes = NO_LANES
        routes: RouteTables | None = None
        users: UserTable | None = None
        captures: Captures | None = None
        rows: dict[str | None, dict[str, Row]] = {}
        streams: dict[tuple[str | None, str], tuple[Row, Row]] = {}
        known: dict[str, tuple[memoryview[float], int]] = {}
        deadline = -inf
        minute = -inf
        step_max = 0.0
        # The lowest bucket that tables of routes have room for, so far.
        lowest = BUCKETS
        blocks = range(COUNTER_BLOCK, COUNTER_BLOCK + 1)  # of the last segment

        def begin() -> float:
            nonlocal in_flight
            in_flight += 1.0
            gauges[0] = in_flight
            return clock()

        def begin_exchange(exchange: Begun) -> None:
            nonlocal in_flight
            in_flight += 1.0
            gauges[0] = exchange.in_flight = in_flight
            exchange.start = clock()

        def cancel() -> None:
            nonlocal in_flight
            in_flight -= 1.0
            gauges[0] = in_flight

        def completing(carriers: Carriers) -> Complete:
            method_key, scheme_key = carriers.method_key, carriers.scheme_key
            always = carriers.always()
            read = carriers.read_any if always else carriers.read
            mark, other_mark = carriers.marks
            user_key, user_of, key = carriers.user_key, carriers.user_of, carriers.taken_out

            def complete(exchange: Answered) -> None:
                nonlocal in_flight, always, read
                now = clock()
                status = exchange.status
                if status is None or exchange.state is not OPEN:
                    exchange.complete_otherwise()
                    return
                exchange.state = COMPLETE
                carrier = exchange.carrier
                if key is not None:
                    exchange.carrier = NO_CARRIER
                    try:  # noqa: SIM105
                        del carrier[key]
                    except KeyError:
                        pass
                route = user_id = None
                if always or mark in carrier or (other_mark is not None and other_mark in carrier):
                    route, user_id = read(carrier)
                elif user_key in carrier:
                    user_id = carrier[user_key]
                    if user_of is None:
                        user_id = user_id or None
                    else:
                        try:
                            user_id = user_of(user_id)
                        except Exception:
                            user_id = None
                            carriers.fault("the user resolver")
                try:
                    try:
                        seconds = now - exchange.start
                        row = rows[route][carrier[method_key]]
                        scheme = carrier[scheme_key]
                        lane = ceil(log2(seconds) * 32.0 + 768.0)
                    except (KeyError, ValueError):  # no row so far, no method or scheme; 0.0
                        lane = -1
                    if (
                        lane >= lowest
                        and status == row.plain
                        and scheme == row.scheme
                        and seconds <= row.limit
                        and now < deadline
                    ):
                        lanes[lane] += 1.0
                        row.lanes[places[lane]] += 1.0
                        in_flight -= 1.0
                        gauges[0] = in_flight
                        if user_id is not None:
                            try:
                                seen, place = known[user_id]  # type: ignore[index]
                                seen[place] = now
                            except (KeyError, TypeError):
                                see(user_id, now)
                    else:
                        method = carrier.get(method_key, "")
                        scheme = carrier.get(scheme_key, DEFAULT_SCHEME)
                        if not always and (lane < 0 or now >= deadline) and carriers.always():
                            always, read = True, carriers.read_any
                            route, user_id = read(carrier)
                        start = exchange.start
                        end(start, status, route, method, user_id, now, exchange, carrier, scheme)
                except Exception:
                    exchange.give_up()

            return complete

        def end(
            start: float,
            status: int,
            route: str | None,
            method: str,
            user_id: object = None,
            now: float | None = None,
            request: CapturedRequest | None = None,
            carrier: Any = None,
            scheme: str = "",
        ) -> float:
            nonlocal in_flight
            if now is None:
                now = clock()
            seconds = now - start
            observe_route(seconds, False, route, method, status, user_id, request, carrier, scheme)
            in_flight -= 1.0
            gauges[0] = in_flight
            if user_id is not None:
                see(user_id, now)
            return now

        def count_other(
            row: Row,
            seconds: float,
            key: AnswerKey,
            now: float = 0.0,
            user_id: object = None,
            request: CapturedRequest | None = None,
            carrier: Any = None,
        ) -> None:
            """Count an answer that is not plain."""
            try:
                answer = row.answers[key]
            except KeyError:
                answer = find_answer(row, key)
            row = answer.row
            if seconds > row.limit:
                seconds = edge(seconds, row, now, key, user_id, request, carrier)
            try:
                lane = ceil(log2(seconds) * 32.0 + 768.0)
            except ValueError:  # 0.0
                lane = 0
            if lane < lowest:
                lane = cover(lane)
            place, counter = places[lane], answer.counter
            route_lanes, answer_lanes = row.lanes, answer.lanes
            lanes[lane] += 1.0
            route_lanes[place] += 1.0
            route_lanes[counter] += 1.0
            answer_lanes[place] += 1.0
            if answer.class_lane:
                lanes[answer.class_lane] += 1.0
                if not answer.is_error:
                    return
                if answer.is_server_error:
                    lanes[server_errors] += 1.0
                    route_lanes[route_server_errors] += 1.0
                    answered(row.name, key)
                elif errors_from > 400:
                    return
                lanes[errors] += 1.0
                route_lanes[route_errors] += 1.0

        def abandon(status: int, route: str | None, method: str, scheme: str = "") -> float:
            nonlocal in_flight
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            try:
                row = rows[route][method]
            except KeyError:
                row = find(route, method, status, scheme)
            route_lanes = row.lanes
            lanes[abandoned] += 1.0
            route_lanes[route_abandoned] += 1.0
            in_flight -= 1.0
            gauges[0] = in_flight
            return now

        def fail(
            start: float,
            status: int,
            route: str | None,
            method: str,
            error: str = "",
            request: CapturedRequest | None = None,
            carrier: Any = None,
            scheme: str = "",
        ) -> float:
            nonlocal in_flight
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            key = AnswerName(status, "", error) if error else status
            observe_route(now - start, True, route, method, key, None, request, carrier, scheme)
            in_flight -= 1.0
            gauges[0] = in_flight
            return now

        def streamed(
            start: float, first: float, end: float, route: str | None, method: str
        ) -> None:
            try:
                first_byte, last_byte = streams[route, method]
            except KeyError:
                first_byte, last_byte = find_streams(route, method)
            # The last byte first: a reader takes no more away than it adds.
            for row, at in ((last_byte, end), (first_byte, first)):
                seconds = min(max(at - start, FLOOR_SECONDS), CEILING_SECONDS)
                lane = ceil(log2(seconds) * 32.0 + 768.0)
                cover(lane)
                row_lanes, place = row.lanes, places[lane]
                row_lanes[place] += 1.0

        def record_request(
            latency_ms: float,
            is_error: bool = False,
            user_id: object = None,
            # By keyword, as `RecordRequest` has it. Defaults behind a "*" would make each call
            # without them take a tenth longer.
            method: str | None = None,
            route: str | None = None,
            status: int | None = None,
        ) -> None:
            if (
                route is not None
                or status is not None
                or method is not None
                or user_id is not None
                or latency_ms is True
            ):
                record_all(latency_ms, is_error, user_id, method, route, status)
                return
            try:
                seconds = latency_ms * 0.001
            except (TypeError, OverflowError):
                seconds = check_latency(latency_ms)
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            if not FLOOR_SECONDS <= seconds <= step_max:
                seconds = edge(check_latency(latency_ms))
            lanes[ceil(log2(seconds) * 32.0 + 768.0)] += 1.0
            if is_error:
                lanes[errors] += 1.0
                lanes[server_errors] += 1.0
                lanes[errors_5xx] += 1.0

        def record_all(
            latency_ms: float,
            is_error: bool,
            user_id: object,
            method: str | None,
            route: str | None,
            status: int | None,
        ) -> None:
            seconds = check_latency(latency_ms)
            if status is not None:
                is_error = check_status(status) >= errors_from or is_error
            check_text("method", method)
            check_text("route", route)
            if method is None and route is None:
                observe(seconds, is_error, status)
            else:
                observe_route(seconds, is_error, route, method or "", status, user_id)
            if user_id is not None:
                user(user_id)

        def observe(seconds: float, is_error: bool, status: int | None = None) -> None:
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            if not FLOOR_SECONDS <= seconds <= step_max:
                seconds = edge(seconds)
            lanes[ceil(log2(seconds) * 32.0 + 768.0)] += 1.0
            by_class = class_lane(status, is_error=is_error)
            if by_class:
                lanes[by_class] += 1.0
            if is_error:
                lanes[errors] += 1.0
                if status is None or not 400 <= status < 500:
                    lanes[server_errors] += 1.0

        def observe_route(
            seconds: float,
            is_error: bool,
            route: str | None,
            method: str,
            key: AnswerKey,
            user_id: object = None,
            request: CapturedRequest | None = None,
            carrier: Any = None,
            scheme: str = "",
        ) -> None:
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            status = key.status if isinstance(key, AnswerName) else key
            try:
                row = rows[route][method]
            except KeyError:
                row = find(route, method, status, scheme)
            if scheme != row.scheme:
                key = of_scheme(row, key, scheme)
            if key != row.plain:
                count_other(row, seconds, key, now, user_id, request, carrier)
                if not is_error or (status is not None and status >= errors_from):
                    return
            else:
                if seconds > row.limit:
                    seconds = edge(seconds, row, now, key, user_id, request, carrier)
                lane = ceil(log2(max(FLOOR_SECONDS, seconds)) * 32.0 + 768.0)  # NaN is no more
                if lane < lowest:
                    cover(lane)
                route_lanes, place = row.lanes, places[lane]
                lanes[lane] += 1.0
                route_lanes[place] += 1.0
            if is_error:
                route_lanes = row.lanes
                if status is None:
                    lanes[errors_5xx] += 1.0
                lanes[server_errors] += 1.0  # whatever status was sent before it failed
                route_lanes[route_server_errors] += 1.0
                lanes[errors] += 1.0
                route_lanes[route_errors] += 1.0

        def user(user_id: object, now: float | None = None) -> None:
            text = user_id if user_id.__class__ is str else str(user_id)
            if now is None:
                now = clock()
            try:
                seen, row = known[text]
            except KeyError:
                if now >= deadline:
                    take_checkpoint(now)
                assert users is not None
                users.add(str(text), now)
                return
            seen[row] = now

        def websocket(change: float) -> None:
            now = clock()
            if now >= deadline:
                take_checkpoint(now)
            if gauges[1] + change >= 0.0:
                gauges[1] += change

        # --- the slow path -------------------------------------------------------------------

        def edge(
            seconds: float,
            row: Row | None = None,
            now: float = 0.0,
            key: AnswerKey = None,
            user_id: object = None,
            request: CapturedRequest | None = None,
            carrier: Any = None,
        ) -> float:
            """Take a new maximum of the step, a slow request, or a value beyond the ends (NaN too).

            With ``now``, when it ended, a request of a row may be captured.
            """
            nonlocal step_max
            if not seconds >= FLOOR_SECONDS:
                return FLOOR_SECONDS
            seconds = min(seconds, CEILING_SECONDS)
            with self._lock:
                cover(ceil(log2(seconds) * 32.0 + 768.0))
                segment = self.segment
                if segment is not None and seconds > step_max:
                    step_max = seconds
                    segment.table.set_peak(0, seconds)
                if row is not None:
                    is_captured = bool(now) and is_slow(row, seconds, now)
                    row.raise_peak(seconds)
                    row.limit = min(row.step_max, step_max, row.slow_from)
            if row is not None and is_captured:
                capture(row, seconds, now, key, user_id, request, carrier)
            return seconds

        def is_slow(row: Row, seconds: float, now: float) -> bool:
            """Return whether to capture a request: the slowest of its row in this step, or slow."""
            if routes is None or captures is None:
                return False
            is_old = row.slow_from > 0.0  # and worked out anew with each capture
            if not is_old:
                routes.slow_from(row)
            if seconds <= row.step_max:
                if seconds <= row.slow_from or not captures.may_take(now):
                    return False
                captures.take(now)
            if is_old:
                routes.slow_from(row)
            return True

        def capture_now(
            row: Row,
            seconds: float,
            now: float,
            key: AnswerKey,
            user_id: object,
            request: CapturedRequest | None,
            carrier: Any,
        ) -> None:
            """Capture a request. Never raises."""
            status, _, error = key if isinstance(key, AnswerName) else (key or 0, "", "")
            if isinstance(status, Known):
                error = status.raised.text.type
            if captures is None:  # released meanwhile
                return
            # Without the lock, as this may ask the app for the request's user.
            evidence = captures.ask(seconds, now, user_id, request, carrier)
            try:
                with self._lock:
                    # Another segment may be open by now, or none, as in a forked child.
                    if evidence is not None and captures is not None:
                        captures.add(row.name, seconds, now, int(status), error, evidence)
            except Exception:
                self.faults.report("capturing a request")

        capture = self._unlocked(capture_now)

        def cover(lane: int) -> int:
            """Have room for a bucket in the tables of routes; return it, or the lowest one."""
            nonlocal lowest
            lane = max(lane, 0)
            with self._lock:
                if routes is not None:
                    lowest = routes.cover(lane)
            return lane

        def see(user_id: object, now: float) -> None:
            """Note a user who is not known yet, or whose id is no str."""
            try:
                user(user_id, now)
            except Exception:
                self.faults.report("the user resolver")

        def find(
            route: str | None, method: str, status: int | None = None, scheme: str = ""
        ) -> Row:
            with self._lock:
                assert routes is not None
                return routes.find(route, method, status, scheme)

        def find_answer(row: Row, key: AnswerKey) -> AnswerPlace:
            if isinstance(key, Known):
                key = int(key)  # it is kept
            elif isinstance(key, AnswerName) and isinstance(key.status, Known):
                key = key._replace(status=int(key.status))
            with self._lock:
                assert routes is not None
                return routes.answer(row, key)

        def find_streams(route: str | None, method: str) -> tuple[Row, Row]:
            with self._lock:
                assert routes is not None
                first, last, own = routes.find_streams(route, method)
                if not own:
                    lanes_of_route = find(route, method).lanes
                    lanes_of_route[route_streams] += 1.0
                elif method in METHODS:
                    streams[route, method] = first, last
                return first, last

        def take_checkpoint(now: float, records: bool = True) -> None:
            """Open the segment if need be; take the checkpoints that are due.

            Args:
                now: monotonic seconds.
                records: whether a record is about to be made, and not a read.
            """
            nonlocal gauges, in_flight, deadline, minute, step_max, lowest
            with self._lock:
                self.is_serving = self.is_serving or records
                if self.segment is not None and not self.segment.is_whole:
                    # Truncated, removed or overwritten: the next store could be a SIGBUS.
                    # Other threads record there until the new one is open, and wait here then.
                    gauges = [in_flight, 0.0]
                    websockets = self.segment.saved_websockets()
                    gauges[1] += websockets
                    self.segment = None
                    self.errors.release()
                    self.on_release()
                    self.faults.count_into(None)
                    deadline = minute = -inf
                    self._membership.abandon()
                if self.segment is None:
                    open_segment()
                elif self._membership.on_step(now):
                    open_segment()
                    self.on_release()
                if now < deadline:
                    return
                if now >= minute:
                    minute = self._do_minute(now)
                assert self.segment is not None
                assert routes is not None
                if self._membership.seen_reset > self._restarted:
                    # Another worker has reset the server: what was slowest before is not any more.
                    self._restarted = now
                    routes.restart_peaks(now)
                if in_flight < 0.0:
                    in_flight = gauges[0] = 0.0  # requests have ended that began before a release
                number = step_number(now, step)
                if self.segment.table.take_checkpoint(
                    number, max((number - 1) * step, self._restarted)
                ):
                    step_max = 0.0
                lowest = routes.take_checkpoints(number, self._restarted)
                # Until this process serves, its first record is to pass here.
                deadline = min(number * step, minute) if self.is_serving else -inf

        def open_segment() -> None:
            nonlocal gauges, lanes, routes, users, captures, step_max, lowest, blocks
            segment = self._membership.join().segment
            lanes = segment.table.lanes
            # Swapped before they are added up: a request that begins in between is not lost.
            pending, gauges = gauges, segment.gauges
            _, websockets = pending
            gauges[0] = in_flight
            gauges[1] += websockets
            step_max = segment.table.peak(0)
            for rows_of_another in (rows, streams, known):
                rows_of_another.clear()
            membership = self._membership
            lowest = BUCKETS
            routes = RouteTables(segment, settings, rows, places, blocks, membership.reset)
            blocks = segment.blocks
            users = UserTable(segment, settings, known, membership.last_reset)
            self._restarted = max(self._restarted, membership.last_reset())
            captures = Captures(segment, settings, self._clock, self.faults, membership.last_reset)
            self.faults.count_into(segment.header[Field.FAULTS : Field.FAULTS + 1])
            self.segment = segment

        def start_over(now: float) -> None:
            """Peaks and users begin anew at monotonic ``now``; counts never do."""
            nonlocal step_max
            with self._lock:
                self._restarted = now
                if self.segment is not None:
                    assert routes is not None
                    assert users is not None
                    self.segment.table.restart_peaks(now)
                    routes.restart_peaks(now)
                    assert captures is not None
                    users.clear()
                    captures.clear()
                    step_max = 0.0

        def release() -> None:
            """Go back to the state before the first record."""
            nonlocal gauges, in_flight, lanes, routes, users, captures
            nonlocal deadline, minute, step_max, lowest
            self.segment = None
            self.errors.release()
            self.on_release()
            self.is_serving = False
            self.faults.count_into(None)
            deadline = minute = -inf
            gauges, in_flight, lanes, step_max = [0.0, 0.0], 0.0, NO_LANES, 0.0
            lowest = BUCKETS
            rows.clear()
            streams.clear()
            known.clear()
            routes = users = captures = None

        self.begin, self.end, self.fail, self._completing = begin, end, fail, completing
        self.begin_exchange = begin_exchange
        self.abandon, self.cancel, self.streamed = abandon, cancel, streamed
        self.record_request = record_request
        self.observe, self.observe_route = observe, observe_route
        self.user, self.websocket = user, websocket
        self._take_checkpoint, self.release, self.start_over = take_checkpoint, release, start_over

    # --- not hot ---------------------------------------------------------------------------------

    def completing(self, carriers: Carriers) -> Complete:
        """Return what reads and records a complete response, in one call.

        Builds without a GIL report it step by step: no resolver is called behind the lock.

        Args:
            carriers: How the environs or scopes of a middleware are read.
        """
        return _complete_otherwise if NEEDS_LOCK else self._completing(carriers)

    def _do_minute(self, now: float) -> float:
        """Do the work of a minute, which reads and writes files.

        Returns:
            When there is more to do, as monotonic seconds.
        """
        if runs_event_loop():
            do_aside(self._on_minute, now)
            return now + self._settings.step
        return self._on_minute(now)

    def open(self) -> Segment:
        """Return this process's segment; open it first where it is not open."""
        now = self._clock.monotonic()
        if self.segment is None or not self.segment.is_whole or self._membership.is_waiting(now):
            self._take_checkpoint(now, False)
        assert self.segment is not None
        return self.segment

    def serve(self) -> None:
        """Note that this process serves: an adapter answers here, or its server has started it."""
        self.is_serving = True

    def register_worker(self) -> None:
        """Open a worker's segment as an adapter is installed, so that the worker is counted.

        A master that preloads the app opens nothing; its forks do, as they start.
        """
        self._registered = self._membership.is_measured = True
        do_aside(lambda _: self._open_worker(), self._clock.monotonic())

    def _open_worker(self) -> None:
        try:
            if self._membership.is_worker():
                with self._lock:
                    self._membership.join()
                    self.is_serving = True
        except Exception:
            self.faults.report("opening the worker's segment")

    def close(self) -> None:
        """Leave the server: gauges are zeroed, counts stay."""
        with self._lock:
            self.release()
            self._membership.close()

    def websocket_opened(self) -> None:
        """Count one more open WebSocket connection."""
        self.websocket(1.0)

    def websocket_closed(self) -> None:
        """Count one open WebSocket connection less; never below 0."""
        self.websocket(-1.0)

    def after_fork(self) -> None:
        """Release the segment in a forked child, as it is the parent's."""
        self._lock = threading.RLock()
        self._waiting = []
        self.release()
        # A child of a worker, or a helper process of the program, is no worker until it records.
        if not self._membership.after_fork() and self._registered and is_forked_by_server():
            self._open_worker()


def _after_fork() -> None:
    for recorder in list(live_recorders):
        recorder.after_fork()


on_fork(_after_fork, Stage.MEMBER)
