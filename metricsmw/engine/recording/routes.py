"""The per-route rows of one worker: which (method, template) has which row of which table.

Bounded: past `max_routes` rows all further templates share ``<other>``, requests that matched
none share ``<unmatched>``, and methods outside the standard set share ``_OTHER``. A row that has
counted nothing in the window goes to a new template when all are taken; what it has counted
before is of ``<other>`` from then on (`quiet`).

A route has a plain status, that of its first answer if that is from 200 to 299, and the URL scheme
of that answer. Its answers with any other status or scheme are counted in a second row, and by both
(`answers`): so plain ones cost no more than two comparisons.

A route that streams has two more rows, of its streams only: the times of their first bytes, and
their latencies. All latencies less those of streams, plus the streams' first bytes, is the
distribution of the time to first byte, and what does not stream pays nothing for it. The first
`MAX_STREAMS` such routes have these rows; all others share a pair, so that the sum over all
routes stays right.

The rows of what has no row of its own are made with the segment: where there is no room for
another route, its requests count in ``_OTHER <other>``, and the sum stays right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from metricsmw.config import Settings
from metricsmw.engine.recording.answers import (
    NO_NAME,
    STATUSES,
    AnswerKey,
    AnswerPlace,
    Answers,
    Place,
    Row,
)
from metricsmw.engine.recording.blocks import BlockRows
from metricsmw.engine.recording.quiet import QuietRows, parts
from metricsmw.engine.recording.slowness import percentile_99
from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.engine.storage.keys import (
    LENGTH_BYTES,
    METHODS,
    OTHER,
    OTHER_METHOD,
    UNMATCHED,
    UNTOLD_STREAMS,
    AnswerName,
    Name,
    RouteFacts,
    Times,
    known_scheme,
)
from metricsmw.engine.storage.layout import (
    BLOCK_BYTES,
    BLOCKS,
    COUNTER_BLOCK,
    NAME_BYTES,
    ROUTE_SHAPE,
    ROUTE_STEPS_PER_WINDOW,
    STEP_RATIO,
    TABLE_ROWS,
    Field,
    Kind,
    place_of,
)
from metricsmw.engine.storage.memory import AnonymousMemory
from metricsmw.engine.storage.reader import Reset
from metricsmw.engine.storage.segment import BlockTable, Segment

logger = logging.getLogger("metricsmw")

# Rows beyond max_routes, for <other> and <unmatched> with each method.
SHARED_ROWS = 2 * (len(METHODS) + 1)
MAX_STREAMS = 16
# Made with the segment: for what has no row of its own, and for the streams among that.
_LAST = Name(OTHER_METHOD, OTHER)
LAST_RESORT = (_LAST, _LAST.of_others(), *UNTOLD_STREAMS)
# Of one class, so that the server's row knows the class of plain answers without counting it.
PLAIN = range(200, 300)

# The place in a state for each bucket of scale 5: two of them make one of a route's row. The first
# bucket of scale 5, -768, has lane 0.
PLACES = [place_of(lane + 1 >> 1) for lane in range(BUCKETS)]
# The first of these buckets in each block up to that of the counters; and in the one behind that.
LOWEST = [
    next(lane for lane, place in enumerate(PLACES) if place >= block * (BLOCK_BYTES // 8))
    for block in range(COUNTER_BLOCK + 1)
]


def _is_kept(key: AnswerKey) -> bool:
    """Return whether a row may remember where these answers are counted: there are few such."""
    if isinstance(key, AnswerName):
        return not key.error and key.status in STATUSES
    return key is None or key in STATUSES


class RouteTables:
    """The writer's side.

    Args:
        segment: The segment.
        settings: The monitor's.
        rows: The recorder's look-up, template -> method -> row.
        places: The recorder's look-up, bucket of scale 5 -> place in a state; begins as `PLACES`.
        blocks: The blocks to have from the start: the recorder may be counting in them.
        last_reset: Returns the server's last reset.
    """

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        rows: dict[str | None, dict[str, Row]],
        places: list[int],
        blocks: range,
        last_reset: Callable[[], Reset],
    ) -> None:
        self._segment = segment
        self._max_routes = settings.max_routes
        self._step = settings.step
        self._threshold = settings.capture_threshold_seconds
        self._rows = rows
        self._places = places
        most = settings.max_routes + SHARED_ROWS + 2 * (MAX_STREAMS + 1)
        self._block_rows = BlockRows(segment, Kind.ROUTES, most)
        self._by_name: dict[bytes, Row] = {}
        self._own = 0  # rows in use that are neither <other> nor <unmatched>, nor of streams
        self._streams = 0  # routes that have rows of their streams
        self._step_now = (0, 0.0)  # the tables' step, and since when its peaks are valid
        self._reset_step = 0  # that of the last reset made here
        self._is_full = False  # there was no room for a table in this step
        self._is_crowded = False  # there was no room for a block in this step
        self._spare: Row | None = None
        self._free: list[Row] = []
        by_place: dict[Place, Row] = {}
        for table in self._block_rows.tables:
            self._adopt(table, by_place)
        for row in self._by_name.values():
            plain = self._by_name.get(row.name.of_all().pack())
            if row.name.times is Times.NOT_PLAIN and plain is not None:
                plain.others, row.scheme = row, plain.scheme
        header = segment.header
        header[Field.RENAMINGS] = float(-(-int(header[Field.RENAMINGS]) // 2) * 2)
        self._answers = Answers(segment, most, by_place)
        self._quiet = QuietRows(segment, self._block_rows.tables, self._answers, last_reset)
        places[:] = PLACES
        for name in LAST_RESORT:
            self._row(name)
        with suppress(OSError):
            self._answers.find(self._last_resort(LAST_RESORT[1]), None)
        self._cover(blocks)

    def _adopt(self, table: BlockTable, by_place: dict[Place, Row]) -> None:
        self._block_rows.next = TABLE_ROWS
        for number in range(TABLE_ROWS):
            facts = RouteFacts.unpack(bytes(table.facts(number)))
            name = Name.unpack(bytes(table.names[number * NAME_BYTES : (number + 1) * NAME_BYTES]))
            if name is None and not facts.other:
                self._block_rows.next = number
                break
            row = by_place[table.offset, number] = Row(table, number, facts, name or NO_NAME)
            if name is None:  # it was to get another name as its worker died
                self._free.append(row)
            else:
                self._by_name[name.pack()] = row
                self._count(name)

    def _count(self, name: Name) -> None:
        self._own += name.is_own
        self._streams += name.times is Times.LAST_BYTE and name not in UNTOLD_STREAMS

    # --- rows ------------------------------------------------------------------------------------

    def find(
        self, route: str | None, method: str, status: int | None = None, scheme: str = ""
    ) -> Row:
        """Return the row of a template, and add it to `rows` where that stays bounded.

        ``status`` and ``scheme`` are those of the answer to be counted, if they are known.
        """
        kept = method if method in METHODS else OTHER_METHOD
        name = Name(kept, UNMATCHED if route is None else str(route))
        row = self._by_name.get(name.pack())
        if row is None and (name.route in (OTHER, UNMATCHED) or self._own < self._max_routes):
            row = self._create(name, status, scheme)
        if row is None and name.is_own:
            row = self._reuse(name)
        if row is None:
            if name.route == OTHER:
                return self._last_resort()
            return self.find(OTHER, kept, status, scheme)
        if kept == method:
            self._rows.setdefault(route, {})[method] = row
        return row

    def answer(self, row: Row, key: AnswerKey) -> AnswerPlace:
        """Return where the answers of a route with that status are counted.

        Where there is no room for another row, those of another route: ``_OTHER <other>``.

        Args:
            row: The route's plain row, which knows it from then on where that stays bounded.
            key: The status, and what else tells them apart.
        """
        with suppress(OSError):
            found = self._answers.find(self._others(row), key)
            if _is_kept(key):
                row.answers[key] = found
            return found
        last = self._last_resort(LAST_RESORT[1])
        if last is not self._spare:
            with suppress(OSError):
                return self._answers.find(last, key, shared=True)
        return AnswerPlace.uncounted(last, key)

    def _others(self, row: Row) -> Row:
        """Return the row of what is not plain of a route. Raises OSError where it has no room."""
        if row.others is None:
            name = row.name.of_others()
            found = self._by_name.get(name.pack()) or self._create(name, row.plain)
            if found is None:
                raise OSError("no room for a row")
            row.others, found.scheme = found, row.scheme
        return row.others

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

    def _create(self, name: Name, status: int | None = None, scheme: str = "") -> Row | None:
        plain = status if status is not None and status in PLAIN else 200
        facts = RouteFacts(plain, name.times is not Times.NOT_PLAIN, scheme=known_scheme(scheme))
        row = next((row for row in self._free if row.facts.is_plain == facts.is_plain), None)
        if row is not None:
            try:
                self._rename([row], [name], row.facts.other)
            except OSError:
                return None
            self._free.remove(row)
            return row
        if self._is_full:
            return None
        try:
            table, number = self._block_rows.take()
        except OSError:
            self._is_full = True
            return None
        table.take_checkpoint(*self._step_now)
        row = Row(table, number, facts)
        self._name(row, name)
        return row

    def _name(self, row: Row, name: Name) -> None:
        table, packed = row.table, name.pack()
        start = row.number * NAME_BYTES
        table.facts(row.number)[:] = row.facts.pack()
        # The length goes last: it is what makes the name count.
        table.names[start + LENGTH_BYTES : start + len(packed)] = packed[LENGTH_BYTES:]
        table.names[start : start + LENGTH_BYTES] = packed[:LENGTH_BYTES]
        row.name = name
        self._by_name[packed] = row
        self._count(name)

    def _rename(self, rows: Sequence[Row], names: Sequence[Name], method: str) -> None:
        """Give rows other names; ``method``: that of the ``<other>`` that gets their counts."""
        with self._quiet.renaming(rows, method):
            for row, name in zip(rows, names, strict=True):
                self._name(row, name)

    def _reuse(self, name: Name) -> Row | None:
        """Return the row of another name that has counted nothing in the window."""
        row = self._quiet.find(self._by_name, name.method, self._step_now[0])
        if row is None:
            return None
        old, rows = row.name, parts(row)
        try:
            # A request of another thread may have them at hand: it counts for the new name then.
            self._rename(rows, [name, name.of_others()][: len(rows)], old.method)
        except OSError:
            return None
        self._own -= 1
        for former in (old, old.of_others()):
            self._by_name.pop(former.pack(), None)
        for methods in self._rows.values():
            for method in [method for method, each in methods.items() if each is row]:
                del methods[method]
        return row

    def _last_resort(self, name: Name = LAST_RESORT[0]) -> Row:
        """Return a row made with the segment, or one that nobody reads where it had no room."""
        if (row := self._by_name.get(name.pack())) is not None:
            return row
        if self._spare is None:
            self._segment.header[Field.FAULTS] += 1.0
            logger.warning("metricsmw: no room for routes, some of which are in no row")
            memory = AnonymousMemory()
            table = BlockTable(
                memory.map(0, ROUTE_SHAPE.size),
                ROUTE_SHAPE,
                memory=memory,
                offset=0,
                blocks=range(BLOCKS),
                fresh=True,
            )
            self._spare = Row(table, 0, RouteFacts(200))
            self._spare.name = name
        return self._spare

    # --- blocks ----------------------------------------------------------------------------------

    def cover(self, lane: int) -> int:
        """Have room for latencies, or count them in the nearest bucket that there is room for.

        Args:
            lane: Their bucket in scale 5.

        Returns:
            The lowest bucket that there is room for.
        """
        block = PLACES[lane] // (BLOCK_BYTES // 8)
        self._cover(range(min(block, COUNTER_BLOCK), max(block, COUNTER_BLOCK) + 1))
        return self._lowest()

    def _lowest(self) -> int:
        if self._is_crowded:
            return 0
        return LOWEST[self._segment.blocks.start]

    def _cover(self, wanted: range) -> None:
        blocks = self._segment.blocks
        wanted = range(min(blocks.start, wanted.start), max(blocks.stop, wanted.stop))
        if wanted == blocks or self._is_crowded:
            return
        tables = [*self._block_rows.tables, *self._answers.tables]
        try:
            self._segment.use_blocks(wanted, tables)
        except OSError:
            self._is_crowded = True
        self._aim()

    def _aim(self) -> None:
        """Let latencies without a block count at the ends of those in use."""
        blocks = self._segment.blocks
        first, behind = (block * (BLOCK_BYTES // 8) for block in (blocks.start, blocks.stop))
        inside = [place for place in PLACES if first <= place < behind]
        lowest, highest = inside[0], inside[-1]
        self._places[:] = [
            place if first <= place < behind else lowest if place < first else highest
            for place in PLACES
        ]

    # --- steps -----------------------------------------------------------------------------------

    def take_checkpoints(self, number: int, not_before: float) -> int:
        """Take the checkpoints that are due in that step of the server-wide table.

        Peaks are valid from the start of the tables' own step on, but not from before
        monotonic ``not_before``. Returns the lowest bucket, in scale 5, that there is room for.
        """
        step = (number - 1) // STEP_RATIO + 1
        self._step_now = step, max((step - 1) * STEP_RATIO * self._step, not_before)
        self._is_full = self._is_crowded = self._answers.is_full = False
        taken = [table.take_checkpoint(*self._step_now) for table in self._block_rows.tables]
        if any(taken):
            self._restart_maxima()
        else:
            for row in self._by_name.values():
                row.limit = 0.0  # as the server's step is a new one
        return self._lowest()

    def slow_from(self, row: Row) -> float:
        """Return the latency above which one of a row is slow, in seconds, as it is now.

        That is the end of the bucket of the 99th percentile of its window, or the setting's
        threshold where that is less.
        """
        # What was counted up to a reset is not of the window.
        first = max(self._step_now[0] - ROUTE_STEPS_PER_WINDOW, self._reset_step + 1)
        row.slow_from = min(percentile_99(row.table, row.number, first), self._threshold)
        return row.slow_from

    def restart_peaks(self, now: float) -> None:
        """Start the peaks anew at monotonic ``now``."""
        self._step_now = self._step_now[0], now
        self._reset_step = self._step_now[0]
        self._quiet.forget()
        for table in self._block_rows.tables:
            table.restart_peaks(now)
        self._restart_maxima()

    def _restart_maxima(self) -> None:
        for row in self._by_name.values():
            row.step_max = row.limit = row.slow_from = 0.0
