"""`ErrorRecorder`: counts errors by their kind, into this worker's segment.

Nothing here is called for a request that succeeds, and the segment has no room for errors before
the first one. A worker tells `MOST_KINDS` kinds apart; all further ones share ``<other>``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from metricsmw.clock import Clock
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.fork import Stage, on_fork
from metricsmw.engine.recording.raised import Known, Raised, being_answered, type_name
from metricsmw.engine.storage.errors import (
    OTHER_KEY,
    ErrorCells,
    ErrorText,
    error_rows,
)
from metricsmw.engine.storage.keys import (
    METHODS,
    OTHER,
    OTHER_METHOD,
    UNMATCHED,
    AnswerName,
    Name,
    user_key,
)
from metricsmw.engine.storage.layout import Kind, error_shape, zero_lanes
from metricsmw.engine.storage.reader import Reset
from metricsmw.engine.storage.segment import Segment

MOST_KINDS = 63  # and one for all others
CHUNK_ROWS = 16


class SegmentOwner(Protocol):
    """The recorder, as far as it is needed here."""

    segment: Segment | None

    def open(self) -> Segment:
        """Return this process's segment, opened if need be."""


class ErrorRecorder:
    """The writer of the errors of one process.

    Args:
        owner: Has the segment.
        clock: The clock of the times.
        faults: Gets what fails here.
        last_reset: Returns the server's last reset.
        with_message: Keep the messages of exceptions, which may hold secrets.
    """

    def __init__(
        self,
        owner: SegmentOwner,
        clock: Clock,
        faults: FaultLog,
        last_reset: Callable[[], Reset],
        *,
        with_message: bool,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._faults = faults
        self._last_reset = last_reset
        self._with_message = with_message
        self._segment: Segment | None = None
        self._rows: dict[int, ErrorCells] = {}
        self._free: list[ErrorCells] = []
        # A signal's handler may come in the middle of a count, and fail itself.
        self._lock = threading.RLock()
        _all.add(self)

    def summary(self, error: BaseException) -> Raised | None:
        """Return what is kept of an exception; None where that fails. Never raises."""
        try:
            return Raised.of(error, with_message=self._with_message)
        except Exception:
            self._faults.report("looking at an exception")
            return None

    def raised(
        self,
        error: BaseException | None,
        status: int,
        route: str | None,
        method: str,
        earlier: Raised | None = None,
    ) -> str:
        """Count an exception that has escaped from the app. Never raises.

        Args:
            error: The exception; None: there was none, and nothing is counted.
            status: The status of the answer, or that which the server makes of it.
            route: The template of the route; None: there was none.
            method: The request's method.
            earlier: What the framework has answered before; it counts instead, where it led to this
                exception.

        Returns:
            The exception's type; "" where there was none, or nothing can be told of it.
        """
        if error is None:
            return ""
        is_known = earlier is not None and earlier.led_to(error)
        found = earlier if is_known else self.summary(error)
        if found is None:
            return ""
        try:
            name = Name(
                method if method in METHODS else OTHER_METHOD,
                UNMATCHED if route is None else str(route),
            )
            self._count(self._owner.open(), found, status, name)
        except Exception:
            self._faults.report("counting an error")
        return type_name(error)

    def answered(self, name: Name, key: int | AnswerName | None) -> None:
        """Count an answer by which the server says that it has failed. Never raises.

        Args:
            name: The route.
            key: The status, or more than one; an escaped exception is counted by `raised`.
        """
        try:
            segment = self._owner.segment
            if segment is None or key is None or (isinstance(key, AnswerName) and key.error):
                return
            status = key.status if isinstance(key, AnswerName) else key
            found: Raised | None = None
            if isinstance(status, Known):
                found = status.raised
            elif (error := being_answered()) is not None:
                found = self.summary(error)
            if found is None:
                text = ErrorText(f"HTTP {int(status)}")
                key_text = f"{text.type} {name.method} {name.route}"
                found = Raised(max(user_key(key_text), OTHER_KEY + 1), text)
            self._count(segment, found, int(status), name)
        except Exception:
            self._faults.report("counting an error")

    def _count(self, segment: Segment, found: Raised, status: int, name: Name) -> None:
        now, wall = self._clock.monotonic(), self._clock.time()
        reset_at = self._last_reset().at
        with self._lock:
            if segment is not self._segment:
                self._adopt(segment)
            row = self._rows.get(found.key) or self._add(found, reset_at)
            row.count(now, wall, reset_at, os.getpid(), status, name.text())

    def _adopt(self, segment: Segment) -> None:
        """Go on with the rows of a segment."""
        self._rows, self._free = {}, []
        for chunk in segment.chunks:
            if chunk.kind is Kind.ERRORS:
                self._take(chunk.view, chunk.rows)
        self._segment = segment

    def _take(self, view: memoryview, rows: int) -> None:
        for row in error_rows(view, rows):
            if row.key:
                self._rows[row.key] = row
            else:
                self._free.append(row)

    def _add(self, found: Raised, reset_at: float) -> ErrorCells:
        """Return a row for another kind. Raises OSError where not even ``<other>`` has room."""
        if len(self._rows) >= MOST_KINDS:
            self._release(reset_at)
        kinds = len(self._rows) - (OTHER_KEY in self._rows)
        if kinds < MOST_KINDS:
            try:
                return self._begin(found)
            except OSError:
                if OTHER_KEY not in self._rows and not self._free:
                    raise
        return self._rows.get(OTHER_KEY) or self._begin(Raised(OTHER_KEY, ErrorText(OTHER)))

    def _begin(self, found: Raised) -> ErrorCells:
        if not self._free:
            self._grow()
        row = self._free.pop()
        row.begin(found.key, found.text.pack())
        self._rows[found.key] = row
        return row

    def _release(self, reset_at: float) -> None:
        """Take the rows of kinds that were not seen since the reset."""
        for key, row in list(self._rows.items()):
            if row.last_at <= reset_at:
                self._free.append(self._rows.pop(key))

    def _grow(self) -> None:
        """Append a chunk. Raises OSError where there is no room."""
        assert self._segment is not None
        shape = error_shape(CHUNK_ROWS)
        with self._segment.appended(Kind.ERRORS, CHUNK_ROWS) as chunk:
            chunk.view[shape.current : shape.current + shape.stride] = zero_lanes(CHUNK_ROWS)
        self._take(chunk.view, chunk.rows)

    def release(self) -> None:
        """Release the segment, so that its memory can go."""
        with self._lock:
            self._segment = None
            self._rows, self._free = {}, []

    def after_fork(self) -> None:
        """Leave the parent's segment, and a lock that another of its threads may have held."""
        self._lock = threading.RLock()
        self.release()


_all: weakref.WeakSet[ErrorRecorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_all):
        recorder.after_fork()


on_fork(_after_fork, Stage.LOCKS)
