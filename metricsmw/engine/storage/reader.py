"""Reading one segment, of this worker or another: its tables, its users, its gauges."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from math import inf
from typing import NamedTuple, Protocol

from metricsmw.config import RANGES
from metricsmw.engine.storage.captures import Capture, read_captures
from metricsmw.engine.storage.errors import StoredError, read_errors
from metricsmw.engine.storage.header import Header, Part
from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.engine.storage.keys import (
    MAX_SAMPLING,
    Name,
    Times,
    read_text,
    unpack_text,
)
from metricsmw.engine.storage.layout import (
    BLOCK_SHAPES,
    HEADER_BYTES,
    NAME_BYTES,
    ROUTE_STEPS_PER_WINDOW,
    SERVER_OFFSET,
    SERVER_SHAPE,
    STEP_RATIO,
    STEPS_PER_WINDOW,
    Field,
    Kind,
    error_shape,
    step_number,
)
from metricsmw.engine.storage.routes import (
    RouteCounts,
    RouteTableReader,
    RouteTotal,
    tables_in_use,
    used_bytes,
)
from metricsmw.engine.storage.tables import (
    ATTEMPTS,
    NO_STEPS,
    CorruptSegmentError,
    Kept,
    Read,
    TableReading,
    read_last_step,
    read_steps,
    read_table,
    read_total,
    table_state,
)

OVERALL = SERVER_OFFSET + SERVER_SHAPE.current + SERVER_SHAPE.stride
# Clocks of processes on several cores agree to far less.
FUTURE_SECONDS = 1.0
SAMPLE = struct.Struct("3d")  # from Field.SAMPLE_RECORD on


class SegmentSource(Protocol):
    """A segment to read."""

    @property
    def alive(self) -> bool:
        """Whether the worker that writes the segment lives."""

    @property
    def size(self) -> int:
        """How many bytes it had when it was looked for; 0: not known."""

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; fewer where the segment ends. Raises OSError."""

    def opened(self) -> SegmentSource:
        """Return the same for several reads in a row, which is cheaper. Raises OSError."""


class Reset(NamedTuple):
    """The last reset: its monotonic time, and the state of every table at it.

    Keys are (segment nonce, offset of the table), values whole states as little-endian integers.
    """

    at: float
    states: Mapping[tuple[int, int], int]


NEVER = Reset(0.0, {})
NOTHING_KEPT: Mapping[int, Kept] = {}


class Period(NamedTuple):
    """The window to read, which ends at monotonic ``now``.

    With ``past`` that time is over: counts of later steps are left out.
    """

    now: float
    step: float
    past: bool = False

    def steps(self, ratio: int, count: int) -> tuple[int, int]:
        """Return the numbers of the last step and of the first one in the window.

        Args:
            ratio: How many steps of the server-wide table make one of the table that is read.
            count: How many such steps the window has.
        """
        last = step_number(self.now, self.step * ratio)
        return last, last - count

    @property
    def start(self) -> float:
        """Monotonic time at which the window begins."""
        return (step_number(self.now, self.step) - 1 - STEPS_PER_WINDOW) * self.step

    @property
    def routes_start(self) -> float:
        """Monotonic time at which the window of the per-route table begins."""
        return (self.steps(STEP_RATIO, ROUTE_STEPS_PER_WINDOW)[1] - 1) * self.step * STEP_RATIO


class WorkerUsage(NamedTuple):
    """A worker's own account of its process.

    Attributes:
        pid: Its process id.
        pid_namespace: What the id is of; 0: not known.
        age: Seconds since it looked at its CPU and memory; infinite where it has not.
        cpu_pct: Percent of one core.
        memory_bytes: Resident memory; 0: not known.
    """

    pid: int
    pid_namespace: int
    age: float
    cpu_pct: float
    memory_bytes: int


class SegmentReading:
    """One segment, read once: header and server-wide table; users and routes on demand."""

    def __init__(
        self,
        name: str,
        source: SegmentSource,
        period: Period,
        reset: Reset,
        window_seconds: int,
        *,
        routes: bool = False,
        kept: Mapping[int, Kept] = NOTHING_KEPT,
    ) -> None:
        """Read it.

        Args:
            name: what the log calls it.
            source: the segment.
            period: the window, and the moment at which it ends.
            reset: the last reset; earlier counts are left out.
            window_seconds: the length of the window.
            routes: read the tables of routes now, before the server-wide one.
            kept: what earlier readings have kept of the server-wide tables, by their segments'
                nonces.

        Raises:
            CorruptSegmentError: its bytes cannot be what a worker wrote.
            OSError: it cannot be read.
        """
        self.name = name
        self._source = source
        opened = source.opened()
        self._read = opened.read
        self._period = period
        self._reset = reset
        self._window_seconds = window_seconds
        self.alive = opened.alive
        self._routes: list[RouteCounts] | None = None
        if routes:
            self._take_header(self._read(0, HEADER_BYTES))
            self._routes = self._route_tables(self._read).window()
        whole = self._read(0, OVERALL)
        self._take_header(whole[:HEADER_BYTES])
        # Where any part is missing, the whole segment is left out.
        if self._header.end > source.size and not self._read(self._header.end - 1, 1):
            raise CorruptSegmentError("truncated")
        self.nonce = self._header.nonce
        self.table = self._server_table(whole[SERVER_OFFSET:], kept.get(self.nonce))
        self._read = source.read
        self.joined = self._joined()

    def _take_header(self, page: bytes) -> None:
        self._header = Header(page)
        self.header = self._header.numbers
        self.pid = self._header.pid
        lowest, highest = RANGES["window_seconds"]
        if not lowest <= self.header[Field.WINDOW] <= highest:
            raise CorruptSegmentError("impossible window")
        # Such a worker's totals count; its steps are of another length, so its window does not.
        self._same_window = self.header[Field.WINDOW] == self._window_seconds

    def _joined(self) -> float:
        """Return the monotonic time at which the worker opened the segment."""
        at = self.header[Field.JOINED]
        return at if self.created < at <= self._period.now + FUTURE_SECONDS else self.created

    def _server_table(self, head: bytes, kept: Kept | None, first: int = 0) -> TableReading:
        steps = self._period.steps(1, STEPS_PER_WINDOW) if self._same_window else NO_STEPS
        steps = steps[0], max(steps[1], first)
        return read_table(
            self._read,
            SERVER_OFFSET,
            SERVER_SHAPE,
            steps,
            self._reset.at,
            self._baseline(SERVER_OFFSET),
            self._period.past,
            head,
            buckets=BUCKETS * 8,
            kept=kept,
        )

    def _route_tables(self, read: Read) -> RouteTableReader:
        steps = NO_STEPS
        if self._same_window:
            steps = self._period.steps(STEP_RATIO, ROUTE_STEPS_PER_WINDOW)
        return RouteTableReader(
            read,
            self._header,
            steps,
            self._reset.at,
            self._baseline,
            self._period.past,
        )

    @property
    def created(self) -> float:
        """Monotonic time at which the segment was made."""
        return self.header[Field.CREATED]

    @property
    def step(self) -> float:
        """The length of a step of the worker's window, in seconds."""
        return self.header[Field.WINDOW] / STEPS_PER_WINDOW

    @property
    def taken_over(self) -> int:
        """How many requests earlier workers had counted in the segment."""
        return int(self.header[Field.TAKEN_OVER])

    @property
    def at_reset(self) -> int:
        """What had been counted in the server-wide table at the last reset, as lanes."""
        return self._baseline(SERVER_OFFSET) or 0

    def own_table(self) -> TableReading:
        """Return the server-wide table, its window without what earlier workers counted.

        That is known to a step of the window.
        """
        first = step_number(self.joined, self._period.step)
        if not self.taken_over or first <= self._period.steps(1, STEPS_PER_WINDOW)[1]:
            return self.table
        return self._server_table(self._bytes(0, OVERALL)[SERVER_OFFSET:], None, first)

    def last_counted(self) -> float | None:
        """Return the end of the latest step in which a request was counted, in monotonic seconds.

        It may be yet to come. None where no step is known.
        """
        last = read_last_step(self._read, SERVER_OFFSET, SERVER_SHAPE)
        return None if last is None else last * self.step

    def usage(self) -> WorkerUsage:
        """Return the worker's own account of its process."""
        at = self.header[Field.SAMPLED]
        return WorkerUsage(
            self.pid,
            int(self.header[Field.PID_NAMESPACE]),
            max(self._period.now - at, 0.0) if 0 < at <= self._period.now + FUTURE_SECONDS else inf,
            self.header[Field.CPU_PCT],
            int(self.header[Field.MEMORY_BYTES]),
        )

    def gauge(self, field: Field) -> int:
        """Return a gauge of a live worker, and 0 for a dead one."""
        return max(int(self.header[field]), 0) if self.alive else 0

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise CorruptSegmentError("truncated")
        return data

    def _user_parts(self) -> Iterable[Part]:
        return (part for part in self._header.parts if part.kind is Kind.USERS)

    def active(self, oldest: float, timeout: float) -> tuple[int, list[int]]:
        """Return the worker's sampling, and the keys of its active users.

        Args:
            oldest: Monotonic time of the oldest activity that counts.
            timeout: Seconds without activity after which a user is not active any more.

        Returns:
            k, where the worker kept one user of 2**k, 0 for all; and the keys of the users seen
            at or after ``oldest``.
        """
        numbers = self.header[Field.SAMPLE_RECORD : Field.SAMPLE_SINCE + 1].tolist()
        k = self._sampling(numbers, timeout)
        if all(part.kind is not Kind.USERS for part in self._header.parts):
            return k, []
        for _ in range(ATTEMPTS):
            keys = self.users(oldest)
            before = k
            raw = self._bytes(Field.SAMPLE_RECORD * 8, SAMPLE.size)
            k = self._sampling(SAMPLE.unpack(raw), timeout)
            if k == before:
                break  # else rows were dropped while they were read
        return k, keys

    def _sampling(self, numbers: Sequence[float], timeout: float) -> int:
        record, count, since = numbers
        k = record if self._period.now >= since + timeout else count
        if not 0 <= k <= MAX_SAMPLING:
            raise CorruptSegmentError("impossible sampling")
        return int(k)

    def users(self, oldest: float) -> list[int]:
        """Return the keys of the users seen at or after monotonic ``oldest``."""
        found: list[int] = []
        for part in self._user_parts():
            columns = self._bytes(part.offset, part.rows * 16)
            recent, keys = self._user_columns(columns, part.rows, oldest)
            found.extend(compress(keys, recent))
        return found

    @staticmethod
    def _user_columns(data: bytes, rows: int, oldest: float) -> tuple[list[bool], list[int]]:
        """Return whether each row was seen at or after monotonic ``oldest``, and all rows' keys."""
        seen = memoryview(data[: rows * 8]).cast("d").tolist()
        keys = memoryview(data[rows * 8 : rows * 16]).cast("Q").tolist()
        return [at >= oldest and at > 0 for at in seen], keys

    def user_ids(self, oldest: float) -> Iterable[str]:
        """Yield the ids of users seen at or after monotonic ``oldest``."""
        for part in self._user_parts():
            data = self._bytes(part.offset, part.size)
            recent, keys = self._user_columns(data, part.rows, oldest)
            for row in compress(range(part.rows), recent):
                start = part.rows * 16 + row * part.width
                text = read_text(data[start : start + part.width], keys[row])
                if text is not None:
                    yield text

    def routes(self) -> Iterable[RouteCounts]:
        """Return the window's counts of every row that has any; a route may have two."""
        if self._routes is not None:
            return self._routes
        return self._route_tables(self._source.opened().read).window()

    def route_totals(self) -> Iterable[RouteTotal]:
        """Return what was counted since the reset; a route has several parts."""
        return self._route_tables(self._source.opened().read).totals()

    def captures(self, *, traced: bool = False) -> Iterable[Capture]:
        """Yield the captured requests that ended in the per-route table's window.

        Args:
            traced: Only those with a trace id.
        """
        oldest = max(self._period.routes_start, self._reset.at)
        for part in self._header.parts:
            if part.kind is Kind.CAPTURES:
                read = self._source.opened().read
                yield from read_captures(read, part.offset, part.rows, oldest, traced=traced)

    def instruments(self) -> Iterable[tuple[Kind, str, int]]:
        """Yield (kind, packed name, lanes since the reset) of the app's own numbers.

        A gauge has its doubles in the place of lanes; those of a dead worker are left out.
        """
        for kind, offset, shape in self._header.instrument_tables():
            if kind is Kind.GAUGES:
                if not self.alive:
                    continue
                state = int.from_bytes(self._bytes(offset + shape.current, shape.stride), "little")
            else:
                state = read_total(self._read, offset, shape, self._baseline(offset))
            lanes = state.to_bytes(shape.stride, "little")
            names = self._bytes(offset + shape.names, shape.rows * NAME_BYTES)
            width = shape.lanes * 8
            for row in range(shape.rows):
                name = unpack_text(names[row * NAME_BYTES : (row + 1) * NAME_BYTES])
                if name:
                    yield (
                        kind,
                        name,
                        int.from_bytes(lanes[row * width : (row + 1) * width], "little"),
                    )

    def errors(self) -> Iterable[StoredError]:
        """Yield the kinds of error that the worker has seen since the reset."""
        read = self._source.opened().read
        for part in self._header.error_chunks():
            yield from read_errors(
                read, part.offset, part.rows, self._reset.at, self._baseline(part.offset)
            )

    def steps(self, first: int) -> dict[int, int]:
        """Return the counts of the worker in each step from ``first`` on, as lanes."""
        return read_steps(
            self._read, SERVER_OFFSET, SERVER_SHAPE, first, self._baseline(SERVER_OFFSET)
        )

    def route_steps(self, name: Name, first: int) -> Iterable[tuple[int, int]]:
        """Yield the counts of one route in each route step from ``first`` on, as lanes."""
        return self._route_tables(self._source.opened().read).steps(name, first)

    def stream_steps(self, first: int, name: Name | None) -> Iterable[tuple[int, Times, int]]:
        """Yield the same of the rows of streams; of one route, or of all where it is None."""
        return self._route_tables(self._source.opened().read).streams(first, name)

    def _baseline(self, offset: int) -> int | None:
        return self._reset.states.get((self._header.nonce, offset))


def table_states(read: Read) -> Iterable[tuple[tuple[int, int], int]]:
    """Yield every table's state, by (nonce, offset). Raises `CorruptSegmentError`."""
    nonce = Header(read(0, HEADER_BYTES)).nonce
    yield (nonce, SERVER_OFFSET), table_state(read, SERVER_OFFSET, SERVER_SHAPE)
    # Looked up only now: a row that appears later has counted nothing before.
    header = Header(read(0, HEADER_BYTES))
    used = used_bytes(header)
    for kind, shape in BLOCK_SHAPES.items():
        for offset in tables_in_use(read, header, kind):
            yield (nonce, offset), table_state(read, offset, shape, used)
    for kind, offset, dense in header.instrument_tables():
        if kind is not Kind.GAUGES:
            yield (nonce, offset), table_state(read, offset, dense)
    for part in header.error_chunks():
        yield (nonce, part.offset), table_state(read, part.offset, error_shape(part.rows))
