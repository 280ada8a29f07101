"""Which requests are captured, and which of them stay where there is no room for all.

A request is captured that is the slowest so far of its row in the per-route table, in the step of
that table, or that is slower than the row's 99th percentile or than `capture_threshold_seconds`. Of
the latter there are at most `MOST_A_SECOND`. A row has the answers of a route with its plain
status; another one has all others of it.

The ring holds `CAPTURE_ROWS` requests. Where it is full of requests of the window, the fastest one
goes of that route and class of status that has the most, be it the new one. So the slowest
request of a route never goes for another route's, up to as many routes as there are records.

Nothing here is on the way of ordinary requests: `Row.limit` keeps them out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.recording.tracing import Trace, current_trace
from metricsmw.engine.storage.captures import NO_SPAN, NO_TRACE, Capture, CaptureRing
from metricsmw.engine.storage.histogram import CEILING_SECONDS
from metricsmw.engine.storage.keys import Name
from metricsmw.engine.storage.layout import (
    CAPTURE_ROWS,
    RECORD_BYTES,
    ROUTE_STEPS_PER_WINDOW,
    STEP_RATIO,
    Kind,
)
from metricsmw.engine.storage.segment import Segment

# Of requests that are slow and not the slowest so far, in each worker.
MOST_A_SECOND = 4


class Evidence(NamedTuple):
    """What is known of a request beside what is counted of it.

    Attributes:
        start: When it began, in monotonic seconds.
        first_byte: When its first byte was sent; 0.0: with the last one.
        in_flight: The requests that were in flight as it began, itself included; -1: not known.
        trace: The span that it belongs to.
        request_id: Its X-Request-ID.
        user: Its user; None unless that was asked for.
        path: Its path, likewise.
        query: Its query string, likewise.
    """

    start: float
    first_byte: float = 0.0
    in_flight: int = -1
    trace: Trace | None = None
    request_id: str | None = None
    user: str | None = None
    path: str | None = None
    query: str | None = None


class CapturedRequest(Protocol):
    """A request, as an adapter has it."""

    def evidence(self, wanted: tuple[str, ...]) -> Evidence:
        """Return what is known of the request.

        Args:
            wanted: What may be told of "path", "query" and "user".
        """


class RingEntry(NamedTuple):
    """A captured request that is in the ring: what the choice of the one to go depends on.

    Attributes:
        row: Its place; -1: it is not in the ring yet.
        ended: Monotonic seconds.
        seconds: How long it took.
        group: Its route and the class of its status.
    """

    row: int
    ended: float
    seconds: float
    group: tuple[Name, int]

    @classmethod
    def of(cls, row: int, capture: Capture) -> RingEntry:
        """Return it for a capture in that row."""
        return cls(row, capture.ended, capture.seconds, (capture.name, capture.status // 100))


class Captures:
    """The captured requests of this worker's segment.

    The ring is made with the first of them. The recorder calls with its lock held.

    Args:
        segment: The segment.
        settings: The monitor's.
        clock: The clock of all times.
        faults: Gets what fails.
        last_reset: Returns the monotonic time of the server's last reset.
    """

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        clock: Clock,
        faults: FaultLog,
        last_reset: Callable[[], float],
    ) -> None:
        self._segment = segment
        self._wanted = settings.capture
        # The longest time that the window of the per-route table covers.
        self._kept_for = settings.step * STEP_RATIO * (ROUTE_STEPS_PER_WINDOW + 1)
        self._wall = clock.time
        self._faults = faults
        self._last_reset = last_reset
        self._second, self._left = -1, MOST_A_SECOND
        self._is_full = False  # there was no room for the ring
        self._ring: CaptureRing | None = None
        self._kept: list[RingEntry] = []
        for chunk in segment.chunks:
            if chunk.kind is Kind.CAPTURES:
                self._ring = CaptureRing(chunk.view, chunk.rows)
                self._kept = [RingEntry.of(row, one) for row, one in self._ring.read().items()]

    def may_take(self, now: float) -> bool:
        """Return whether one more slow request may be captured at monotonic ``now``."""
        return self._left > 0 or int(now) != self._second

    def take(self, now: float) -> None:
        """Note that one is."""
        if int(now) != self._second:
            self._second, self._left = int(now), MOST_A_SECOND
        self._left -= 1

    def add(
        self,
        name: Name,
        seconds: float,
        now: float,
        status: int,
        error: str = "",
        user: object = None,
        request: CapturedRequest | None = None,
    ) -> None:
        """Capture a request. Never raises.

        Args:
            name: The name of its row.
            seconds: How long it took.
            now: When it ended, in monotonic seconds.
            status: Its status; 0: none.
            error: The type of the exception that escaped.
            user: Its user, if that is known already.
            request: What knows the rest; None: it was recorded by hand.
        """
        try:
            self._add(name, seconds, now, status, error, user, request)
        except Exception:
            self._faults.report("capturing a request")

    def _add(
        self,
        name: Name,
        seconds: float,
        now: float,
        status: int,
        error: str,
        user: object,
        request: CapturedRequest | None,
    ) -> None:
        # Not asked for the rest before it is sure that there is a place.
        new = RingEntry(-1, now, seconds, (name.of_all(), status // 100))
        row = self._place(new)
        if row is None:
            return
        if request is None:
            found = Evidence(now - seconds, trace=current_trace())
        else:
            found = request.evidence(self._wanted)
        told = found.user
        if told is None and user is not None and "user" in self._wanted:
            told = str(user)
        trace = found.trace or Trace(NO_TRACE, NO_SPAN)
        assert self._ring is not None
        self._ring.write(
            row,
            Capture(
                now,
                max(self._wall() - max(now - found.start, 0.0), 0.0),
                seconds,
                _until(found.first_byte, found.start) if found.first_byte else seconds,
                status,
                os.getpid(),
                found.in_flight,
                trace.trace_id,
                trace.span_id,
                new.group[0],
                error or None,
                found.request_id,
                told,
                found.path,
                found.query,
            ),
        )
        self._kept.append(new._replace(row=row))

    def _place(self, new: RingEntry) -> int | None:
        """Return a row of the ring for a request; None where others have all of them."""
        ring = self._ring or self._make_ring()
        if ring is None:
            return None
        oldest = max(new.ended - self._kept_for, self._last_reset())
        self._kept = kept = [one for one in self._kept if one.ended >= oldest]
        if len(kept) < ring.rows:
            return min(set(range(ring.rows)).difference(one.row for one in kept))
        sizes = Counter(one.group for one in kept)
        sizes[new.group] += 1
        last = min([new, *kept], key=lambda one: (-sizes[one.group], one.seconds))
        if last is new:
            return None
        kept.remove(last)
        return last.row

    def _make_ring(self) -> CaptureRing | None:
        if not self._is_full:
            try:
                with self._segment.appended(Kind.CAPTURES, CAPTURE_ROWS, RECORD_BYTES) as chunk:
                    self._ring = CaptureRing(chunk.view, chunk.rows)
            except OSError:
                self._is_full = True
        return self._ring

    def clear(self) -> None:
        """Forget all of them."""
        self._kept = []
        if self._ring is not None:
            self._ring.clear()


def _until(at: float, start: float) -> float:
    """Return the seconds from the start on, within what a record may say."""
    return min(max(at - start, 0.0), CEILING_SECONDS)
