"""Reading the tables of routes and of answers of one segment.

A row counts plain answers only. The answers of its route with another status are counted in a
second row, which has checkpoints, too, and each once more in a row of answers, which tells them
apart. So the window of a route is that of its two rows, and what it counted since the reset is its
plain row and its rows of answers. No number is a difference of two rows: each only grows.

A row that got another name keeps its lanes. What they had at that moment is its base: it is of the
`<other>` row of the earlier name's method, and the rest is of the row's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

from metricsmw.engine.storage.header import Header
from metricsmw.engine.storage.histogram import ROUTE_BUCKETS
from metricsmw.engine.storage.keys import (
    LENGTH_BYTES,
    OTHER,
    AnswerName,
    AnswerRow,
    Name,
    RouteFacts,
    Times,
)
from metricsmw.engine.storage.lanes import (
    ROUTE_HISTOGRAM,
    lane_of,
    rows_of,
    unpack,
)
from metricsmw.engine.storage.layout import (
    ANSWER_NAME_BYTES,
    ANSWER_SHAPE,
    BIAS,
    BLOCK_BYTES,
    BLOCK_SHAPES,
    FACT_BYTES,
    NAME_BYTES,
    ROUTE_LANES,
    ROUTE_SHAPE,
    TABLE_ROWS,
    Field,
    Kind,
    RouteLane,
)
from metricsmw.engine.storage.tables import (
    ATTEMPTS,
    CorruptSegmentError,
    Read,
    read_state,
    read_steps,
    read_table,
    since,
)

T = TypeVar("T")
COUNTS = int(BIAS) - 1  # the bits of a lane that count, without those of the bias
SPARE = ROUTE_LANES - RouteLane.ANSWERS
# The lanes of a row but those of its answers.
OWN_LANES = (1 << 64 * RouteLane.ANSWERS) - 1
STREAM_TIMES = (Times.FIRST_BYTE, Times.LAST_BYTE)


class RouteCounts(NamedTuple):
    """What a row counted in the window.

    Attributes:
        name: Its name.
        lanes: Its lanes, but those of its answers.
        peak: Its largest latency in seconds.
        plain: Their status; None for answers that are not plain.
        statuses: Of those that are not plain, how many had which status.
    """

    name: Name
    lanes: int
    peak: float
    plain: int | None
    statuses: dict[int, int]


class RouteTotal(NamedTuple):
    """What one row of a route counted since the reset, or one of its rows of answers.

    Attributes:
        name: The route's name.
        answer: The status of what was counted, and what else tells such answers apart.
        histogram: The buckets of their latencies.
        errors: How many were errors; those of a row of answers are counted elsewhere.
        abandoned: How many were given up by their clients; they are in no bucket.
        server_errors: How many of the errors were the server's own.
    """

    name: Name
    answer: AnswerName
    histogram: int
    errors: int = 0
    abandoned: int = 0
    server_errors: int = 0

    def plus(self, other: RouteTotal) -> RouteTotal:
        """Return the sum of two parts of the same name and answer."""
        return self._replace(
            histogram=self.histogram + other.histogram,
            errors=self.errors + other.errors,
            abandoned=self.abandoned + other.abandoned,
            server_errors=self.server_errors + other.server_errors,
        )


class _Named(NamedTuple):
    """A row in use of a table of routes.

    Attributes:
        route: The name of its route.
        other: That of the row that has what this one counted under earlier names.
        plain: The status of what it counts; None for a row of answers that are not plain.
        scheme: The URL scheme of that; "": it is not known.
    """

    route: Name
    other: Name
    plain: int | None
    scheme: str


def used_bytes(header: Header) -> slice:
    """Return the bytes of a state that are in use, of tables of routes and answers."""
    return slice(header.blocks.start * BLOCK_BYTES, header.blocks.stop * BLOCK_BYTES)


def tables_in_use(read: Read, header: Header, kind: Kind) -> Iterator[int]:
    """Yield the offsets of the tables of routes or of answers."""
    place = BLOCK_SHAPES[kind].in_use
    for offsets in header.block_tables(kind):
        for offset in offsets:
            mark = read(offset + place, 8)
            if len(mark) != 8:
                raise CorruptSegmentError("truncated")
            if mark == bytes(8):
                break
            yield offset


class RouteTableReader:
    """Reads the tables of routes and answers of a segment; see `read_table` for its arguments."""

    def __init__(
        self,
        read: Read,
        header: Header,
        steps: tuple[int, int],
        reset_at: float,
        baseline: Callable[[int], int | None],
        past: bool,
    ) -> None:
        self._read = read
        self._header = header
        self._steps = steps
        self._reset_at = reset_at
        self._baseline = baseline
        self._past = past
        self._used = used_bytes(header)
        self._lanes = (self._used.stop - self._used.start) // 8

    def window(self) -> list[RouteCounts]:
        """Return the window's counts of every row that has any; a route may have two."""
        return self._steady(lambda: list(self._window()))

    def totals(self) -> list[RouteTotal]:
        """Return what was counted since the reset; a route has several parts."""
        return self._steady(lambda: list(self._totals()))

    def steps(self, name: Name, first: int) -> list[tuple[int, int]]:
        """Return what a route counted in each route step from ``first`` on, as lanes.

        A step may be there twice, for what was plain and what was not.
        """
        packed = name.pack(), name.of_others().pack()
        return self._steady(lambda: list(self._steps_of(packed, first)))

    def streams(self, first: int, name: Name | None = None) -> list[tuple[int, Times, int]]:
        """Return what the rows of streams counted in each route step from ``first`` on.

        Args:
            first: The number of the first step.
            name: Of that route only; None: of all.

        Returns:
            Steps, what their times are, and lanes; a step may be there several times.
        """
        rows = None if name is None else {part.pack() for part in name.of_stream()}
        return self._steady(lambda: list(self._streams(rows, first)))

    def _steady(self, found: Callable[[], T]) -> T:
        """Return what is found while no row gets another name, if that can be had."""
        for _ in range(ATTEMPTS):
            before = self._renamings()
            result = found()
            if self._renamings() == before and not before % 2:
                break
        return result  # else its worker died as it named a row

    def _renamings(self) -> float:
        raw = self._read(Field.RENAMINGS * 8, 8)
        if len(raw) != 8:
            raise CorruptSegmentError("truncated")
        number: float = memoryview(raw).cast("d")[0]
        return number

    # --- the window ------------------------------------------------------------------------------

    def _window(self) -> Iterator[RouteCounts]:
        read = []
        for offset in tables_in_use(self._read, self._header, Kind.ROUTES):
            table = read_table(
                self._read,
                offset,
                ROUTE_SHAPE,
                self._steps,
                self._reset_at,
                self._baseline(offset),
                self._past,
                used=self._used,
            )
            if table.window:
                read.append((offset, table))
        # Only now: what counts in a row has a name.
        numbers = self._statuses()
        for offset, table in read:
            for row, lanes in enumerate(rows_of(table.window, self._used)):
                if not lanes:
                    continue
                named = _named(table.head, row)
                statuses: dict[int, int] = {}
                told = lanes >> 64 * RouteLane.ANSWERS
                for number, count in enumerate(unpack(told, SPARE) if told else ()):
                    if count:
                        status = numbers.get((offset, row, number), 0)
                        statuses[status] = statuses.get(status, 0) + count
                yield RouteCounts(
                    named.route, lanes & OWN_LANES, table.peaks[row], named.plain, statuses
                )

    def _statuses(self) -> dict[tuple[int, int, int], int]:
        """Return the status of each row of answers, by table, row and number of its route."""
        return {
            (name.table, name.row, name.number): name.answer.status
            for offset in tables_in_use(self._read, self._header, Kind.ANSWERS)
            for name in _answer_rows(self._bytes(offset, ANSWER_SHAPE.current))
            if name is not None
        }

    # --- totals ----------------------------------------------------------------------------------

    def _totals(self) -> Iterator[RouteTotal]:
        heads: dict[int, bytes] = {}
        answers: list[tuple[AnswerRow | None, tuple[int, int]]] = []
        # First, as a request is counted in the row of its answer last.
        for offset in tables_in_use(self._read, self._header, Kind.ANSWERS):
            head, counted = self._counted(offset, ANSWER_SHAPE.current, ANSWER_SHAPE.base)
            answers += zip(_answer_rows(head), counted, strict=True)
        for offset in tables_in_use(self._read, self._header, Kind.ROUTES):
            head, counted = self._counted(offset, ROUTE_SHAPE.current, ROUTE_SHAPE.base)
            heads[offset] = head
            for row, (own, earlier) in enumerate(counted):
                if not own and not earlier:
                    continue
                named = _named(head, row)
                if own:
                    yield _total(named.route, own, named)
                if earlier:
                    yield _total(named.other, earlier, named)
        for answer, (own, earlier) in answers:
            if not own and not earlier:
                continue
            if answer is None or answer.table not in heads:
                raise CorruptSegmentError("answers of no route")
            named = _named(heads[answer.table], answer.row)
            if own:
                yield RouteTotal(named.route, answer.answer, own & ROUTE_HISTOGRAM)
            if earlier:
                yield RouteTotal(named.other, answer.answer, earlier & ROUTE_HISTOGRAM)

    def _counted(self, offset: int, current: int, base: int) -> tuple[bytes, list[tuple[int, int]]]:
        """Return a table's head, and of each row what it counted since it has its name, and before.

        Nothing from before the reset is in either.
        """
        head = self._bytes(offset, current)
        # Before the current lanes, which are never behind it.
        based = self._base(offset + base)
        state = read_state(self._read, offset + current, self._used)
        baseline = (self._baseline(offset) or 0) >> 8 * self._used.start
        total = rows_of(since(state, baseline, self._lanes), self._used)
        if not based:
            return head, [(row, 0) for row in total]
        pairs = zip(rows_of(based, self._used), rows_of(baseline, self._used), strict=True)
        begun = [max(of_base - of_reset, 0) for of_base, of_reset in pairs]
        counted = []
        for row, earlier in zip(total, begun, strict=True):
            counted.append((since(row, earlier, ROUTE_BUCKETS), earlier))
        return head, counted

    def _base(self, offset: int) -> int:
        if not self._renamings():
            return 0
        raw = self._bytes(offset + self._used.start, self._used.stop - self._used.start)
        # Rows without a base are 0 there, without the bias of lanes.
        return int.from_bytes(raw, "little") & int.from_bytes(
            COUNTS.to_bytes(8, "little") * self._lanes, "little"
        )

    # --- steps -----------------------------------------------------------------------------------

    def _steps_of(self, packed: tuple[bytes, ...], first: int) -> Iterable[tuple[int, int]]:
        for offset in tables_in_use(self._read, self._header, Kind.ROUTES):
            head = self._bytes(offset, ROUTE_SHAPE.current)
            for row in range(TABLE_ROWS):
                if head.startswith(packed, ROUTE_SHAPE.names + row * NAME_BYTES):
                    found = read_steps(
                        self._read, offset, ROUTE_SHAPE, first, self._baseline(offset), self._used
                    )
                    for step, state in found.items():
                        yield step, rows_of(state, self._used)[row] & OWN_LANES

    def _streams(self, rows: set[bytes] | None, first: int) -> Iterable[tuple[int, Times, int]]:
        for offset in tables_in_use(self._read, self._header, Kind.ROUTES):
            head = self._bytes(offset, ROUTE_SHAPE.current)
            found: list[tuple[int, Times]] = []
            for row in range(TABLE_ROWS):
                start = ROUTE_SHAPE.names + row * NAME_BYTES
                if head[start + LENGTH_BYTES] not in STREAM_TIMES:
                    continue  # without unpacking it, as most rows are none of streams
                name = Name.unpack(head[start : start + NAME_BYTES])
                if name is not None and (rows is None or name.pack() in rows):
                    found.append((row, name.times))
            if not found:
                continue
            steps = read_steps(
                self._read, offset, ROUTE_SHAPE, first, self._baseline(offset), self._used
            )
            for step, state in steps.items():
                lanes = rows_of(state, self._used)
                for row, times in found:
                    yield step, times, lanes[row] & OWN_LANES

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise CorruptSegmentError("truncated")
        return data


def _named(head: bytes, row: int) -> _Named:
    """Return whose counts a row has. Raises `CorruptSegmentError`."""
    facts = ROUTE_SHAPE.facts + row * FACT_BYTES
    name = ROUTE_SHAPE.names + row * NAME_BYTES
    return _unpack_named(head[facts : facts + FACT_BYTES], head[name : name + NAME_BYTES])


# Names seldom change, are the same in all workers, and are looked at in every reading.
@lru_cache(maxsize=1024)
def _unpack_named(packed_facts: bytes, packed_name: bytes) -> _Named:
    """Return whose counts a row has.

    Raises:
        CorruptSegmentError: It has neither a name nor had one.
    """
    facts = RouteFacts.unpack(packed_facts)
    name = Name.unpack(packed_name)
    if not facts.status or (name is None and not facts.other):
        raise CorruptSegmentError("counts of no route")
    other = Name(facts.other, OTHER)
    plain = facts.status if facts.is_plain else None
    # Without a name, it was to get another one as its worker died.
    route = other if name is None else name.of_all() if plain is None else name
    return _Named(route, other, plain, facts.scheme)


_unpack_answer = lru_cache(maxsize=2048)(AnswerRow.unpack)


def _answer_rows(head: bytes) -> Iterator[AnswerRow | None]:
    for row in range(TABLE_ROWS):
        start = ANSWER_SHAPE.names + row * ANSWER_NAME_BYTES
        yield _unpack_answer(head[start : start + ANSWER_NAME_BYTES])


def _total(name: Name, lanes: int, named: _Named) -> RouteTotal:
    """Return what a row of a table of routes counted, as the counts of a name."""
    is_plain = named.plain is not None
    return RouteTotal(
        name,
        AnswerName(named.plain or 0, named.scheme if is_plain else ""),
        # The others are all in rows of answers.
        lanes & ROUTE_HISTOGRAM if is_plain else 0,
        lane_of(lanes, RouteLane.ERRORS),
        lane_of(lanes, RouteLane.ABANDONED),
        lane_of(lanes, RouteLane.SERVER_ERRORS),
    )
