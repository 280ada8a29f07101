"""The per-route rows of one worker: which (method, template) has which row of which table.

Bounded: past `max_routes` rows all further templates share ``<other>``, requests that matched
none share ``<unmatched>``, and methods outside the standard set share ``_OTHER``.

A route that streams has two more rows, of its streams only: the times of their first bytes, and
their latencies. All latencies less those of streams, plus the streams' first bytes, is the
distribution of the time to first byte, and what does not stream pays nothing for it. The first
`MAX_STREAMS` such routes have these rows; all others share a pair, so that the sum over all
routes stays right.

The rows of what has no row of its own are made with the segment, in a small chunk: where there is
no room for another route, its requests count in ``_OTHER <other>``, and the sum stays right.
"""

from __future__ import annotations

import logging

from metricsmw.config import Settings
from metricsmw.engine.storage.keys import (
    LENGTH_BYTES,
    METHODS,
    OTHER,
    OTHER_METHOD,
    UNMATCHED,
    UNTOLD_STREAMS,
    Name,
    Times,
)
from metricsmw.engine.storage.layout import (
    NAME_BYTES,
    ROUTE_LANES,
    STEP_RATIO,
    Field,
    Kind,
    route_shape,
)
from metricsmw.engine.storage.segment import Segment, Table

logger = logging.getLogger("metricsmw")

# Rows beyond max_routes, for <other> and <unmatched> with each method.
SHARED_ROWS = 2 * (len(METHODS) + 1)
MAX_STREAMS = 16
CHUNKS = 32
# Made with the segment: for what has no row of its own, and for the streams among that.
LAST_RESORT = (Name(OTHER_METHOD, OTHER), *UNTOLD_STREAMS)
FIRST_ROWS = len(LAST_RESORT) + 1


class Row:
    """One (method, template): where its lanes are, and the step's peak in seconds so far.

    ``limit``: a latency up to this is no new peak, neither of the row nor of the server.
    """

    __slots__ = ("lanes", "limit", "number", "step_max", "table")

    def __init__(self, table: Table, number: int) -> None:
        self.lanes = table.lanes[number * ROUTE_LANES : (number + 1) * ROUTE_LANES]
        self.number = number
        self.table = table
        self.step_max = table.peak(number)
        self.limit = 0.0

    def raise_peak(self, seconds: float) -> None:
        """Set the step's peak where this one is higher."""
        if seconds > self.step_max:
            self.step_max = seconds
            self.table.set_peak(self.number, seconds)


class RouteTables:
    """The writer's side. ``rows`` is the recorder's look-up, template -> method -> row."""

    def __init__(
        self, segment: Segment, settings: Settings, rows: dict[str | None, dict[str, Row]]
    ) -> None:
        self._segment = segment
        self._max_routes = settings.max_routes
        self._chunk_rows = max(8, -(-(settings.max_routes + SHARED_ROWS) // CHUNKS))
        self._step = settings.step
        self._rows = rows
        self._tables: list[Table] = []
        self._by_name: dict[bytes, Row] = {}
        self._own = 0  # rows in use that are neither <other> nor <unmatched>, nor of streams
        self._streams = 0  # routes that have rows of their streams
        self._next = 0  # next free row of the last table
        self._step_now = (0, 0.0)  # the tables' step, and since when its peaks are valid
        self._is_full = False  # there was no room for a chunk in this step
        self._spare: Row | None = None
        for chunk in segment.chunks:
            if chunk.kind is Kind.ROUTES:
                self._adopt(Table(chunk.view, route_shape(chunk.rows), fresh=False))
        for name in LAST_RESORT:
            self._row(name)

    def _adopt(self, table: Table) -> None:
        self._tables.append(table)
        self._next = table.shape.rows
        for number in range(table.shape.rows):
            start = number * NAME_BYTES
            name = Name.unpack(bytes(table.names[start : start + NAME_BYTES]))
            if name is None:
                self._next = number
                break
            self._by_name[name.pack()] = Row(table, number)
            self._count(name)

    def _count(self, name: Name) -> None:
        self._own += name.is_own
        self._streams += name.times is Times.LAST_BYTE and name not in UNTOLD_STREAMS

    def find(self, route: str | None, method: str) -> Row:
        """Return the row of a template, and add it to `rows` where that stays bounded."""
        kept = method if method in METHODS else OTHER_METHOD
        name = Name(kept, UNMATCHED if route is None else str(route))
        row = self._by_name.get(name.pack())
        if row is None and (name.route in (OTHER, UNMATCHED) or self._own < self._max_routes):
            row = self._create(name)
        if row is None:
            return self._last_resort() if name.route == OTHER else self.find(OTHER, kept)
        if kept == method:
            self._rows.setdefault(route, {})[method] = row
        return row

    def find_streams(self, route: str | None, method: str) -> tuple[Row, Row, bool]:
        """Return the rows of a route's streams, and whether they are its own."""
        name = Name(
            method if method in METHODS else OTHER_METHOD,
            UNMATCHED if route is None else str(route),
        )
        if name.pack() not in self._by_name:
            name = Name(name.method, OTHER)
        own = [self._by_name.get(part.pack()) for part in name.of_stream()]
        if None in own and self._streams < MAX_STREAMS:
            own = [self._row(part) for part in name.of_stream()]
        first, last = own
        if first is not None and last is not None:
            return first, last, True
        shared = [self._row(part) or self._last_resort(part) for part in UNTOLD_STREAMS]
        return shared[0], shared[1], False

    def _row(self, name: Name) -> Row | None:
        return self._by_name.get(name.pack()) or self._create(name)

    def _create(self, name: Name) -> Row | None:
        if not self._tables or self._next == self._tables[-1].shape.rows:
            if self._is_full:
                return None
            rows = self._chunk_rows if self._tables else FIRST_ROWS
            growth = bool(self._tables)
            try:
                with self._segment.appended(Kind.ROUTES, rows, growth=growth) as chunk:
                    table = Table(chunk.view, route_shape(chunk.rows), fresh=True)
                    table.take_checkpoint(*self._step_now)
            except OSError:
                self._is_full = True
                return None
            self._tables.append(table)
            self._next = 0
        table = self._tables[-1]
        packed = name.pack()
        start = self._next * NAME_BYTES
        # The length goes last: it is what makes the name count.
        table.names[start + LENGTH_BYTES : start + len(packed)] = packed[LENGTH_BYTES:]
        table.names[start : start + LENGTH_BYTES] = packed[:LENGTH_BYTES]
        row = self._by_name[packed] = Row(table, self._next)
        self._next += 1
        self._count(name)
        return row

    def _last_resort(self, name: Name = LAST_RESORT[0]) -> Row:
        """Return a row made with the segment, or one that nobody reads where it had no room."""
        if (row := self._by_name.get(name.pack())) is not None:
            return row
        if self._spare is None:
            self._segment.header[Field.FAULTS] += 1.0
            logger.warning("metricsmw: no room for routes, some of which are in no row")
            shape = route_shape(1)
            self._spare = Row(Table(memoryview(bytearray(shape.size)), shape, fresh=True), 0)
        return self._spare

    def take_checkpoints(self, number: int, not_before: float) -> None:
        """Take the checkpoints that are due in that step of the server-wide table.

        Peaks are valid from the start of the tables' own step on, but not from before
        monotonic ``not_before``.
        """
        step = (number - 1) // STEP_RATIO + 1
        self._step_now = step, max((step - 1) * STEP_RATIO * self._step, not_before)
        self._is_full = False
        taken = [table.take_checkpoint(*self._step_now) for table in self._tables]
        if any(taken):
            self._restart_maxima()
        else:
            for row in self._by_name.values():
                row.limit = 0.0  # as the server's step is a new one

    def restart_peaks(self, now: float) -> None:
        """Start the peaks anew at monotonic ``now``."""
        self._step_now = self._step_now[0], now
        for table in self._tables:
            table.restart_peaks(now)
        self._restart_maxima()

    def _restart_maxima(self) -> None:
        for row in self._by_name.values():
            row.step_max = row.limit = 0.0
