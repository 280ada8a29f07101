"""Which requests are captured, and which of them stay where there is no room for all.

A request is captured that is the slowest so far of its row in the per-route table, in the step of
that table, or that is slower than the row's 99th percentile or than `capture_threshold_seconds`. Of
the latter there are at most `MOST_A_SECOND`. A row has the answers of a route with its plain
status; another one has all others of it.

The ring holds `CAPTURE_ROWS` requests. Where it is full of requests of the window, one goes of that
route and class of status that has the most, be it the new one: the fastest of those that can never
be the slowest, as a later one took as long or longer, else the fastest. So the slowest request of a
route never goes for those of another one, up to as many routes as there are records.

Nothing here is on the way of ordinary requests: `Row.limit` keeps them out.
"""

from __future__ import annotations

import logging
import os
from bisect import insort
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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
    Field,
    Kind,
)
from metricsmw.engine.storage.segment import Segment

logger = logging.getLogger("metricsmw")

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

    def evidence(self, carrier: Any, wanted: tuple[str, ...]) -> Evidence:
        """Return what is known of the request.

        Args:
            carrier: Its environ or scope.
            wanted: What may be told of "path", "query" and "user".
        """


class RingEntry(NamedTuple):
    """A captured request that is in the ring; the fastest is the lowest.

    Attributes:
        seconds: How long it took.
        ended: When it ended, in monotonic seconds.
        row: Its place in the ring; -1: it has none yet.
    """

    seconds: float
    ended: float
    row: int


# A route, and the class of the status.
Group = tuple[Name, int]


class Captures:
    """The captured requests of this worker's segment.

    The ring is made with the first of them. The recorder calls with its lock held, but for `ask`.

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
        self._groups: dict[Group, list[RingEntry]] = {}  # each from the fastest to the slowest
        self._free: list[int] = []
        self._earliest = 0.0  # none in the ring ended before that
        for chunk in segment.chunks:
            if chunk.kind is Kind.CAPTURES:
                self._adopt(CaptureRing(chunk.view, chunk.rows))

    def _adopt(self, ring: CaptureRing) -> None:
        self._ring = ring
        self._groups.clear()
        self._earliest = 0.0
        found = ring.read()
        self._free = [row for row in reversed(range(ring.rows)) if row not in found]
        for row, one in found.items():
            self._put((one.name, one.status // 100), RingEntry(one.seconds, one.ended, row))

    def _put(self, group: Group, entry: RingEntry) -> None:
        insort(self._groups.setdefault(group, []), entry)

    def may_take(self, now: float) -> bool:
        """Return whether one more slow request may be captured at monotonic ``now``."""
        return self._left > 0 or int(now) != self._second

    def take(self, now: float) -> None:
        """Note that one was captured as slow at monotonic ``now``."""
        if int(now) != self._second:
            self._second, self._left = int(now), MOST_A_SECOND
        self._left -= 1

    def ask(
        self,
        seconds: float,
        now: float,
        user: object,
        request: CapturedRequest | None,
        carrier: Any,
    ) -> Evidence | None:
        """Return what is known of a request beside what is counted; None where asking has failed.

        Args:
            seconds: How long it took.
            now: When it ended, in monotonic seconds.
            user: Its user, if that is known already.
            request: What knows the rest; None: it was recorded by hand.
            carrier: Its environ or scope.
        """
        is_told = user is not None and "user" in self._wanted
        wanted = tuple(name for name in self._wanted if name != "user" or user is None)
        try:
            if request is None:
                found = Evidence(now - seconds, trace=current_trace())
            else:
                found = request.evidence(carrier, wanted)
            return found._replace(user=str(user)) if is_told else found
        except Exception:
            self._faults.report("capturing a request")
            return None

    def add(
        self, name: Name, seconds: float, now: float, status: int, error: str, found: Evidence
    ) -> None:
        """Capture a request.

        Args:
            name: The name of its row.
            seconds: How long it took.
            now: When it ended, in monotonic seconds.
            status: Its status; 0: none.
            error: The type of the exception that escaped; empty for none.
            found: What else is known of it.
        """
        trace = found.trace or Trace(NO_TRACE, NO_SPAN)
        name = name.of_all()
        status = status if 0 <= status < 1000 else 0  # no app should send any other
        ring = self._ring or self._make_ring()
        row = self._place((name, status // 100), seconds, now)
        if ring is None or row is None:
            return
        ring.write(
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
                name,
                error or None,
                found.request_id,
                found.user,
                found.path,
                found.query,
            ),
        )

    def _place(self, group: Group, seconds: float, now: float) -> int | None:
        """Return a row of the ring for a request; None where others have all of them."""
        if not self._free:
            self._expire(max(now - self._kept_for, self._last_reset()))
        if self._free:
            row = self._free.pop()
            self._put(group, RingEntry(seconds, now, row))
            return row
        self._put(group, RingEntry(seconds, now, -1))
        victim, entry = self._victim()
        row = entry.row
        self._groups[victim].remove(entry)
        if not self._groups[victim]:
            del self._groups[victim]
        if row < 0:
            return None
        self._groups[group].remove(RingEntry(seconds, now, -1))
        self._put(group, RingEntry(seconds, now, row))
        return row

    def _victim(self) -> tuple[Group, RingEntry]:
        """Return the request that is to go, and its group."""
        groups = self._groups
        fullest = sorted(groups, key=lambda one: (-len(groups[one]), groups[one][0].seconds))
        for group in fullest:
            entry = _outdone(groups[group])
            if entry is not None:
                return group, entry
        return fullest[0], groups[fullest[0]][0]

    def _expire(self, oldest: float) -> None:
        """Free the rows of requests that ended before a monotonic time."""
        if oldest <= self._earliest:
            return
        for group, entries in list(self._groups.items()):
            stay = [entry for entry in entries if entry.ended >= oldest]
            self._free += [entry.row for entry in entries if entry.ended < oldest]
            if stay:
                self._groups[group] = stay
            else:
                del self._groups[group]
        ends = (entry.ended for entries in self._groups.values() for entry in entries)
        self._earliest = min(ends, default=oldest)

    def _make_ring(self) -> CaptureRing | None:
        if not self._is_full:
            try:
                with self._segment.appended(Kind.CAPTURES, CAPTURE_ROWS, RECORD_BYTES) as chunk:
                    self._adopt(CaptureRing(chunk.view, chunk.rows))
            except OSError:
                self._is_full = True
                self._segment.header[Field.FAULTS] += 1.0
                logger.warning("metricsmw: no room for captured requests, of which there are none")
        return self._ring

    def clear(self) -> None:
        """Forget all of them."""
        if self._ring is not None:
            self._ring.clear()
            self._adopt(self._ring)


def _outdone(entries: list[RingEntry]) -> RingEntry | None:
    """Return the fastest request of a group of which a later one took as long, or longer."""
    found = None
    latest = -1.0
    for entry in reversed(entries):
        if entry.ended <= latest:
            found = entry
        else:
            latest = entry.ended
    return found


def _until(at: float, start: float) -> float:
    """Return the seconds from the start on, within what a record may say."""
    return min(max(at - start, 0.0), CEILING_SECONDS)
