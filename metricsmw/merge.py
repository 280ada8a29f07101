"""Many segments to one answer: what a reader computes, without disturbing any writer.

A read copies two states a table, whatever the number of requests: CUR, and the checkpoint at the
window's start. States of one table only ever grow, lane by lane, so the larger integer is the
later state, and their difference is exact in every lane at once.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import compress
from typing import NamedTuple, Protocol, TypedDict, TypeVar

from metricsmw.config import RANGES
from metricsmw.histogram import (
    BUCKETS,
    CEILING_SECONDS,
    FIRST,
    ROUTE_BUCKETS,
    ROUTE_FIRST,
    ROUTE_SCALE,
    SCALE,
    Distribution,
)
from metricsmw.routes import OTHER, STEP_RATIO, UNTOLD_STREAMS, Name
from metricsmw.segment import (
    DIRECTORY_ENTRY,
    DIRECTORY_OFFSET,
    FIXED_BYTES,
    HEADER_BYTES,
    LAYOUT,
    MAGIC,
    MAX_CHUNKS,
    NAME_BYTES,
    ROUTE_LANES,
    ROUTE_STEPS_PER_WINDOW,
    SERVER_OFFSET,
    SERVER_SHAPE,
    STEPS_PER_WINDOW,
    Field,
    Kind,
    Lane,
    RouteLane,
    Shape,
    chunk_bytes,
    route_shape,
    step_number,
    zero_lanes,
)
from metricsmw.users import KEY_BITS, LONG_TEXT, MAX_SAMPLING, SHORT_TEXT, read_text

# A torn or overtaken checkpoint is looked for again this often before the segment is given up.
ATTEMPTS = 5
LANE_MASK = (1 << 64) - 1
# The lanes of all buckets, of the server-wide row and of a route's.
HISTOGRAM = (1 << 64 * BUCKETS) - 1
ROUTE_HISTOGRAM = (1 << 64 * ROUTE_BUCKETS) - 1
OVERALL = SERVER_OFFSET + SERVER_SHAPE.current + SERVER_SHAPE.stride
# No number of the header, and no count, is as large.
BEYOND = 2.0**53
MOST_ROWS = 1 << 17
NO_STEPS = sys.maxsize, sys.maxsize  # a window in which there is none
SAMPLE = struct.Struct("3d")  # from Field.SAMPLE_RECORD on
WIDTHS: dict[float, tuple[int, ...]] = {Kind.ROUTES: (0,), Kind.USERS: (SHORT_TEXT, LONG_TEXT)}

Read = Callable[[int, int], bytes]


T = TypeVar("T")


class DamagedError(Exception):
    """A segment whose bytes cannot be what a worker wrote."""


# What reading such a segment may raise.
DAMAGE = (DamagedError, OSError, ValueError, OverflowError)


class Source(Protocol):
    """A segment to read."""

    @property
    def alive(self) -> bool: ...

    def read(self, offset: int, size: int) -> bytes: ...


class Reset(NamedTuple):
    """The last reset: its monotonic time, and the state of every table at it.

    Keys are (segment nonce, offset of the table), values whole states as little-endian integers.
    """

    at: float
    states: Mapping[tuple[int, int], int]


NEVER = Reset(0.0, {})


class Period(NamedTuple):
    """What to read: the window that ends at monotonic ``now``.

    With ``past`` that time has passed, and what came in later steps is left out.
    """

    now: float
    step: float
    past: bool = False

    def steps(self, ratio: int, count: int) -> tuple[int, int]:
        """Number of the last step, and its first one in the window, for tables of that ratio."""
        last = step_number(self.now, self.step * ratio)
        return last, last - count

    @property
    def start(self) -> float:
        """Monotonic time at which the window begins."""
        return (step_number(self.now, self.step) - 1 - STEPS_PER_WINDOW) * self.step


class TableReading(NamedTuple):
    """One table: lanes since the reset and lanes in the window, as integers; peaks in seconds."""

    total: int
    window: int
    peaks: list[float]


@lru_cache(maxsize=8)
def _masks(lanes: int) -> tuple[int, int]:
    """The lanes' exponent bits, and lanes that have counted nothing."""
    high = int.from_bytes(struct.pack("<Q", 0xFFF << 52) * lanes, "little")
    return high, int.from_bytes(zero_lanes(lanes), "little")


def unpack(state: int, lanes: int) -> list[int]:
    """The lanes of a difference of states."""
    return memoryview(state.to_bytes(lanes * 8, "little")).cast("Q").tolist()


def lane_of(state: int, lane: int) -> int:
    """One lane of a difference of states."""
    return state >> 64 * lane & LANE_MASK


def in_use(state: int) -> tuple[int, list[int]]:
    """The lanes from the first to the last that is not 0, and the number of the first.

    Latencies of one app lie close together, so that these are few of all.
    """
    skipped = max((state & -state).bit_length() - 1, 0) // 64  # of the lowest bit
    state >>= 64 * skipped
    return skipped, unpack(state, (state.bit_length() + 63) // 64)


def distribution(histogram: int, first: int, scale: int, peak: float = 0.0) -> Distribution:
    """Of the buckets' lanes alone, of which ``first`` is the lowest; see `Distribution`."""
    skipped, counts = in_use(histogram)
    return Distribution(counts, first + skipped, scale, peak)


def read_table(
    read: Read,
    offset: int,
    shape: Shape,
    steps: tuple[int, int],
    reset_at: float,
    baseline: int | None,
    past: bool,
    head: bytes | None = None,
) -> TableReading:
    """The table at ``offset``, over the window of ``steps`` (last, first).

    With ``past`` it is read as it was when the last step ended. Raises `DamagedError`.
    """
    # Floats, as the labels are: comparing them with integers takes three times as long.
    last, first = float(steps[0]), float(max(steps[1], 1))  # label 0 is none
    high, zero = _masks(shape.rows * shape.lanes)
    size = shape.current + shape.stride
    for _ in range(ATTEMPTS):
        whole = head or read(offset, size)
        head = None
        if len(whole) != size:
            raise DamagedError("truncated")
        doubles = memoryview(whole[: shape.names]).cast("d").tolist()
        slots = shape.slots
        labels = doubles[:slots]
        if sum(labels) % 1:  # NaN too
            raise DamagedError("impossible steps")
        end = int.from_bytes(whole[shape.current :], "little")
        begin = end
        end_label = None
        if past:
            later = [label for label in labels if label > last]
            if later:
                end_label = min(later)
                checkpoint = _checkpoint(read, offset, shape, end_label)
                if checkpoint is None:
                    continue
                begin = end = checkpoint
        inside = [slot for slot, label in enumerate(labels) if label >= first]
        if inside:
            begin_label = min([labels[slot] for slot in inside])
            if end_label is None or begin_label < end_label:
                checkpoint = _checkpoint(read, offset, shape, begin_label)
                if checkpoint is None:
                    continue
                begin = checkpoint
        if end & high != zero or begin & high != zero:
            raise DamagedError("no counts")
        start = zero if baseline is None else baseline
        total, window = end - start, end - max(begin, start)
        if past:
            total, window = max(total, 0), max(window, 0)
        if total < 0 or window < 0 or (total | window) & high:
            raise DamagedError("impossible counts")
        valid = [s for s in inside if labels[s] <= last and doubles[slots + s] >= reset_at]
        peaks = [
            max([doubles[row + slot] for slot in valid], default=0.0)
            for row in range(2 * slots, len(doubles), slots)
        ]
        if not all(0.0 <= peak <= CEILING_SECONDS for peak in peaks):
            raise DamagedError("impossible peaks")
        return TableReading(total, window, peaks)
    raise DamagedError("no whole checkpoint")


def _checkpoint(read: Read, offset: int, shape: Shape, label: float) -> int | None:
    """The state kept under a label; None where it was overtaken while it was copied."""
    slot = int(label) % shape.slots
    state = read(offset + shape.checkpoint(slot), shape.stride)
    if len(state) != shape.stride:
        raise DamagedError("truncated")
    again = read(offset + slot * 8, 8)
    if len(again) != 8 or struct.unpack("d", again)[0] != label:
        return None
    return int.from_bytes(state, "little")


def read_steps(
    read: Read, offset: int, shape: Shape, row: int, first: int, baseline: int | None
) -> dict[int, int]:
    """What one row of the table at ``offset`` counted in each step from ``first`` on, as lanes.

    Each is the difference of two neighbouring checkpoints; the last one is CUR's, and of a step in
    progress. Steps without a checkpoint counted nothing. ``baseline``: the whole table at the last
    reset; nothing from before it is counted. Raises `DamagedError`.
    """
    size = shape.lanes * 8
    inside = row * size
    high, zero = _masks(shape.lanes)
    start = zero
    if baseline is not None:
        start = baseline >> inside * 8 & (1 << size * 8) - 1
    for _ in range(ATTEMPTS):
        labels = read(offset, shape.since)
        if len(labels) != shape.since:
            raise DamagedError("truncated")
        numbers = memoryview(labels).cast("d").tolist()
        if sum(numbers) % 1:  # NaN too
            raise DamagedError("impossible steps")
        begins = sorted(int(number) for number in numbers if number >= max(first, 1))
        places = [shape.checkpoint(number % shape.slots) for number in begins]
        raw = [read(offset + place + inside, size) for place in (*places, shape.current)]
        if any(len(state) != size for state in raw):
            raise DamagedError("truncated")
        if read(offset, shape.since) != labels:
            continue  # a checkpoint was taken meanwhile
        states = [int.from_bytes(state, "little") for state in raw]
        if any(state & high != zero for state in states):
            raise DamagedError("no counts")
        counts: dict[int, int] = {}
        for begin, before, after in zip(begins, states, states[1:], strict=False):
            count = max(after, start) - max(before, start)
            if count < 0 or count & high:
                raise DamagedError("impossible counts")
            counts[begin] = count
        return counts
    raise DamagedError("no whole checkpoint")


class Part(NamedTuple):
    """A chunk as the directory names it."""

    kind: Kind
    offset: int
    rows: int
    width: int

    @property
    def size(self) -> int:
        return chunk_bytes(self.kind, self.rows, self.width)


class Header:
    """The header page of a segment, checked. Raises `DamagedError`."""

    __slots__ = ("end", "nonce", "numbers", "parts", "pid")

    def __init__(self, page: bytes) -> None:
        if len(page) != HEADER_BYTES:
            raise DamagedError("truncated")
        if page[: len(MAGIC)] != MAGIC:
            raise DamagedError("no segment")
        self.numbers = memoryview(page).cast("d")
        if self.numbers[Field.LAYOUT] != LAYOUT:
            raise DamagedError("of another version")
        # False for NaN, too.
        if not all(map(BEYOND.__gt__, map(abs, self.numbers[1 : len(Field)].tolist()))):
            raise DamagedError("impossible header")
        self.nonce = int(self.numbers[Field.NONCE])
        self.pid = int(self.numbers[Field.PID])
        self.parts: list[Part] = []
        self.end = FIXED_BYTES
        if not 0 <= self.numbers[Field.CHUNKS] <= MAX_CHUNKS:
            raise DamagedError("impossible directory")
        for number in range(int(self.numbers[Field.CHUNKS])):
            self._add_part(DIRECTORY_OFFSET // 8 + number * DIRECTORY_ENTRY)

    def _add_part(self, entry: int) -> None:
        kind, offset, rows, width = self.numbers[entry : entry + DIRECTORY_ENTRY]
        # Chunks lie one after the other.
        if offset != self.end or not 1 <= rows <= MOST_ROWS or width not in WIDTHS.get(kind, ()):
            raise DamagedError("impossible directory")
        part = Part(Kind(int(kind)), self.end, int(rows), int(width))
        self.parts.append(part)
        self.end += part.size

    def route_tables(self) -> Iterable[tuple[int, Shape]]:
        """Offset and shape of the routes' tables."""
        for part in self.parts:
            if part.kind is Kind.ROUTES:
                yield part.offset, route_shape(part.rows)


class SegmentReading:
    """One segment, read once: header and server-wide table; users and routes on demand."""

    def __init__(
        self, name: str, source: Source, period: Period, reset: Reset, window_seconds: int
    ) -> None:
        self.name = name
        self._read = source.read
        self._period = period
        self._reset = reset
        self.alive = source.alive
        whole = self._read(0, OVERALL)
        self._header = Header(whole[:HEADER_BYTES])
        self.header = self._header.numbers
        self.pid = self._header.pid
        lowest, highest = RANGES["window_seconds"]
        if not lowest <= self.header[Field.WINDOW] <= highest:
            raise DamagedError("impossible window")
        # Such a worker's totals count; its steps are of another length, so its window does not.
        self._same_window = self.header[Field.WINDOW] == window_seconds
        # Whatever part is missing, the segment is left out as a whole.
        if not self._read(self._header.end - 1, 1):
            raise DamagedError("truncated")
        self.table = self._table(SERVER_OFFSET, SERVER_SHAPE, whole[SERVER_OFFSET:])

    def _table(self, offset: int, shape: Shape, head: bytes | None = None) -> TableReading:
        routes = shape.named
        steps = NO_STEPS
        if self._same_window:
            steps = self._period.steps(
                STEP_RATIO if routes else 1, ROUTE_STEPS_PER_WINDOW if routes else STEPS_PER_WINDOW
            )
        return read_table(
            self._read,
            offset,
            shape,
            steps,
            self._reset.at,
            self._baseline(offset),
            self._period.past,
            head,
        )

    @property
    def created(self) -> float:
        return self.header[Field.CREATED]

    def gauge(self, field: Field) -> int:
        """A gauge of a live worker; that of a dead one is 0."""
        return max(int(self.header[field]), 0) if self.alive else 0

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise DamagedError("truncated")
        return data

    def _user_parts(self) -> Iterable[Part]:
        return (part for part in self._header.parts if part.kind is Kind.USERS)

    def active(self, oldest: float, timeout: float) -> tuple[int, list[int]]:
        """Keys of the users seen at or after monotonic ``oldest``, and k: the worker kept only
        one user of 2**k to be counted; 0 where it kept all."""
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
            raise DamagedError("impossible sampling")
        return int(k)

    def users(self, oldest: float) -> list[int]:
        """Keys of the users seen at or after monotonic ``oldest``."""
        found: list[int] = []
        for part in self._user_parts():
            columns = self._bytes(part.offset, part.rows * 16)
            recent, keys = self._user_columns(columns, part.rows, oldest)
            found.extend(compress(keys, recent))
        return found

    @staticmethod
    def _user_columns(data: bytes, rows: int, oldest: float) -> tuple[list[bool], list[int]]:
        """Which rows were seen at or after monotonic ``oldest``, and all rows' keys."""
        seen = memoryview(data[: rows * 8]).cast("d").tolist()
        keys = memoryview(data[rows * 8 : rows * 16]).cast("Q").tolist()
        return [at >= oldest and at > 0 for at in seen], keys

    def user_ids(self, oldest: float) -> Iterable[str]:
        """The ids of users seen at or after monotonic ``oldest``."""
        for part in self._user_parts():
            data = self._bytes(part.offset, part.size)
            recent, keys = self._user_columns(data, part.rows, oldest)
            for row in compress(range(part.rows), recent):
                start = part.rows * 16 + row * part.width
                text = read_text(data[start : start + part.width], keys[row])
                if text is not None:
                    yield text

    def routes(self) -> Iterable[tuple[Name, int, float]]:
        """(name, lanes in the window, peak in seconds) of every row in use."""
        for offset, shape in self._header.route_tables():
            table = self._table(offset, shape)
            if not table.window:
                continue
            lanes = table.window.to_bytes(shape.stride, "little")
            names = self._bytes(offset + shape.names, shape.rows * NAME_BYTES)
            width = ROUTE_LANES * 8
            for row in range(shape.rows):
                count = int.from_bytes(lanes[row * width : (row + 1) * width], "little")
                if not count:
                    continue
                name = Name.unpack(names[row * NAME_BYTES : (row + 1) * NAME_BYTES])
                if name is None:
                    raise DamagedError("counts of no route")
                yield name, count, table.peaks[row]

    def steps(self, first: int) -> dict[int, int]:
        """What the worker counted in each step from ``first`` on, as lanes."""
        return read_steps(
            self._read, SERVER_OFFSET, SERVER_SHAPE, 0, first, self._baseline(SERVER_OFFSET)
        )

    def route_steps(self, name: Name, first: int) -> Iterable[tuple[int, int]]:
        """What the worker counted of one route in each of the routes' steps, as lanes."""
        packed = name.pack()
        for offset, shape in self._header.route_tables():
            names = self._bytes(offset + shape.names, shape.rows * NAME_BYTES)
            for row in range(shape.rows):
                if names.startswith(packed, row * NAME_BYTES):
                    baseline = self._baseline(offset)
                    found = read_steps(self._read, offset, shape, row, first, baseline)
                    yield from found.items()

    def _baseline(self, offset: int) -> int | None:
        return self._reset.states.get((self._header.nonce, offset))


def table_states(read: Read) -> Iterable[tuple[tuple[int, int], int]]:
    """Every table's state as it is now, by (nonce, offset). Raises `DamagedError`."""
    nonce = Header(read(0, HEADER_BYTES)).nonce
    yield (nonce, SERVER_OFFSET), _state(read, SERVER_OFFSET, SERVER_SHAPE)
    # Looked up only now: a route's row that appears later has counted nothing before.
    for offset, shape in Header(read(0, HEADER_BYTES)).route_tables():
        yield (nonce, offset), _state(read, offset, shape)


def _state(read: Read, offset: int, shape: Shape) -> int:
    # Two equal copies: no worker stood between two stores of one request.
    state = read(offset + shape.current, shape.stride)
    for _ in range(ATTEMPTS):
        again = read(offset + shape.current, shape.stride)
        if again == state:
            break
        state = again
    return int.from_bytes(state, "little")


class RouteRow(TypedDict):
    """A row of the per-route table, over the window."""

    method: str
    route: str
    requests: int
    error_rate_pct: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    statuses: dict[str, int]
    latency_ttfb_p50_ms: float | None
    latency_ttfb_p95_ms: float | None
    latency_ttfb_p99_ms: float | None


class RouteLanes:
    """The route tables of all segments, added up: lanes in the window and peak by name."""

    def __init__(self, rows: Iterable[tuple[Name, int, float]]) -> None:
        self.lanes: dict[Name, int] = {}
        self.peaks: dict[Name, float] = {}
        for name, count, peak in rows:
            self.add(name, count, peak)

    def add(self, name: Name, count: int, peak: float) -> None:
        self.lanes[name] = self.lanes.get(name, 0) + count
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak)

    def names(self) -> list[Name]:
        """All but those of streams."""
        return [name for name in self.lanes if ":" not in name.method]

    def hold_to(self, max_routes: int) -> None:
        """Add what is beyond the busiest ``max_routes`` to ``<other>``."""
        own = [name for name in self.lanes if name.is_own]
        if len(own) <= max_routes:
            return
        own.sort(key=lambda name: -sum(in_use(self.lanes[name])[1]))
        for name in own[max_routes:]:
            other = Name(name.method, OTHER)
            for old, new in zip(
                (name, *name.of_stream()), (other, *other.of_stream()), strict=True
            ):
                if old in self.lanes:
                    self.add(new, self.lanes.pop(old), self.peaks.pop(old))

    def first_bytes(self, name: Name) -> list[int] | None:
        """Buckets of a route's times to first byte; None where some stream's is not known."""
        lanes = self.lanes[name]
        if lane_of(lanes, RouteLane.STREAMS):
            return None
        return _first_bytes(lanes, *(self.lanes.get(part, 0) for part in name.of_stream()))

    def all_first_bytes(self) -> list[int]:
        """Buckets of all routes' times to first byte."""
        routes = self.names()
        pairs = [*(name.of_stream() for name in routes), UNTOLD_STREAMS]
        first, last = (sum(self.lanes.get(pair[k], 0) for pair in pairs) for k in (0, 1))
        return _first_bytes(sum(self.lanes[name] for name in routes), first, last)


def _first_bytes(lanes: int, first: int, last: int) -> list[int]:
    """All latencies less those of streams, plus the streams' first bytes."""
    buckets = _buckets(lanes)
    if first:
        # Rows are copied one after the other: a stream may be in one of them only.
        rows = zip(buckets, _buckets(first), _buckets(last), strict=True)
        return [max(all_ - b, 0) + a for all_, a, b in rows]
    return buckets


def _buckets(lanes: int) -> list[int]:
    return unpack(lanes & ROUTE_HISTOGRAM, ROUTE_BUCKETS)


class ServerReading:
    """All segments of a server, read once: every number of one moment comes from here.

    Segments that cannot be right are left out and listed in ``damaged`` with the reason.
    """

    def __init__(
        self, sources: Mapping[str, Source], period: Period, reset: Reset, window_seconds: int
    ) -> None:
        self.period = period
        self.reset = reset
        self.damaged: dict[str, str] = {}
        self._sources = sources
        self.segments: list[SegmentReading] = []
        for name, source in sources.items():
            try:
                segment = SegmentReading(name, source, period, reset, window_seconds)
            except DAMAGE as error:
                self.damaged[name] = str(error)
            else:
                self.segments.append(segment)
        window = sum(s.table.window for s in self.segments)
        total = sum(s.table.total for s in self.segments)
        peak = max((s.table.peaks[0] for s in self.segments), default=0.0)
        self.latency = distribution(window & HISTOGRAM, FIRST, SCALE, peak)
        self.requests = self.latency.count + lane_of(window, Lane.ABANDONED)
        self.errors = min(lane_of(window, Lane.ERRORS), self.requests)
        # The buckets' lanes since the start or the last reset, as one integer.
        self.total_histogram = total & HISTOGRAM
        counted = sum(in_use(self.total_histogram)[1])
        self.total_requests = counted + lane_of(total, Lane.ABANDONED)
        self.total_errors = min(lane_of(total, Lane.ERRORS), self.total_requests)

    @property
    def created(self) -> float:
        """Monotonic time of the server's start."""
        return min((segment.created for segment in self.segments), default=self.period.now)

    @property
    def started(self) -> float:
        """Monotonic time since when there are numbers: the server's start or the last reset."""
        return max(self.created, self.reset.at)

    @property
    def workers(self) -> int:
        return sum(segment.alive for segment in self.segments)

    def pids(self) -> list[int]:
        """The live workers' processes."""
        return [segment.pid for segment in self.segments if segment.alive]

    def faults(self) -> int:
        """Failures inside the metrics, over all workers."""
        return sum(int(segment.header[Field.FAULTS]) for segment in self.segments)

    def gauge(self, field: Field) -> int:
        """The sum of a gauge over the live workers."""
        return sum(segment.gauge(field) for segment in self.segments)

    def covered(self, window_seconds: int) -> float:
        """Seconds that the window's counts cover.

        The window with its step in progress, or the server's age where that is less, but at
        least a minute (or the window, where that is shorter).
        """
        now = self.period.now
        age = now - self.started
        return min(now - self.period.start, max(age, min(60.0, window_seconds)))

    def active_users(self, timeout: float) -> tuple[int, float]:
        """How many users were active within ``timeout`` seconds, and that count's relative
        standard error: 0.0 where it is exact."""
        oldest = self._oldest(timeout)

        def look(segment: SegmentReading) -> Iterable[tuple[int, list[int]]]:
            k, keys = segment.active(oldest, timeout)
            # Of a dead worker's sample nothing is left, once no user in it is active.
            if keys or segment.alive:
                yield k, keys

        found = list(self._gather(look))
        k = max((k for k, _ in found), default=0)
        keys = set().union(*(keys for _, keys in found))
        if not k:
            return len(keys), 0.0
        limit = 1 << KEY_BITS - k
        kept = sum(key < limit for key in keys)
        return kept << k, max(kept, 1) ** -0.5

    def user_ids(self, timeout: float) -> list[str]:
        """The ids of the active users that are kept by name, sorted."""
        oldest = self._oldest(timeout)
        return sorted(set(self._gather(lambda segment: segment.user_ids(oldest))))

    def _oldest(self, timeout: float) -> float:
        return max(self.period.now - timeout, self.reset.at)

    def _gather(self, read: Callable[[SegmentReading], Iterable[T]]) -> Iterable[T]:
        """What ``read`` finds in each segment; of one that turns out damaged, nothing."""
        for segment in self.segments:
            try:
                found = list(read(segment))
            except DAMAGE as error:
                self.damaged[segment.name] = str(error)
                continue
            yield from found

    def steps(self, first: int) -> dict[int, int]:
        """What all workers counted in each step from ``first`` on, as lanes."""
        return self._add_up(lambda segment: segment.steps(first).items())

    def route_steps(self, name: Name, first: int) -> dict[int, int]:
        """What all workers counted of one route in each of the routes' steps, as lanes."""
        return self._add_up(lambda segment: segment.route_steps(name, first))

    def _add_up(
        self, read: Callable[[SegmentReading], Iterable[tuple[int, int]]]
    ) -> dict[int, int]:
        counts: dict[int, int] = {}
        for number, count in self._gather(read):
            counts[number] = counts.get(number, 0) + count
        return counts

    def states(self) -> dict[tuple[int, int], int]:
        """Every table's state as it is now, for a reset; of damaged segments too, as what is
        wrong with their window passes with it."""
        states: dict[tuple[int, int], int] = {}
        for source in self._sources.values():
            with suppress(*DAMAGE):
                states.update(table_states(source.read))
        return states

    def routes(self, max_routes: int) -> list[RouteRow]:
        """The per-route rows of the window, busiest first; past ``max_routes``: ``<other>``."""
        routes = RouteLanes(self._gather(SegmentReading.routes))
        # Each worker holds to the maximum; together they may know more.
        routes.hold_to(max_routes)
        found = [_route_row(name, routes) for name in routes.names()]
        return sorted(found, key=lambda row: (-row["requests"], row["route"], row["method"]))

    def first_bytes(self) -> Distribution:
        """The times to first byte of all requests with a route's row, over that table's window."""
        routes = RouteLanes(self._gather(SegmentReading.routes))
        return Distribution(routes.all_first_bytes(), ROUTE_FIRST, ROUTE_SCALE)


def _route_row(name: Name, routes: RouteLanes) -> RouteRow:
    lanes = routes.lanes[name]
    latency = distribution(lanes & ROUTE_HISTOGRAM, ROUTE_FIRST, ROUTE_SCALE, routes.peaks[name])
    first = routes.first_bytes(name)
    ttfb = None if first is None else Distribution(first, ROUTE_FIRST, ROUTE_SCALE, latency.max)
    requests = latency.count + lane_of(lanes, RouteLane.ABANDONED)
    errors = min(lane_of(lanes, RouteLane.ERRORS), requests)
    classes = [lane_of(lanes, RouteLane.STATUS + k) for k in range(6)]
    # Copied after the histogram, they may be ahead of it.
    classes[2] = latency.count
    for k in (0, 1, 3, 4, 5):
        classes[k] = min(classes[k], classes[2])
        classes[2] -= classes[k]
    return {
        "method": name.method,
        "route": name.route,
        "requests": requests,
        "error_rate_pct": round(100 * errors / requests, 2) if requests else 0.0,
        "latency_p50_ms": round(latency.percentile(50) * 1000, 2),
        "latency_p95_ms": round(latency.percentile(95) * 1000, 2),
        "latency_p99_ms": round(latency.percentile(99) * 1000, 2),
        "latency_max_ms": round(latency.max * 1000, 2),
        "statuses": {f"{k}xx": classes[k] for k in range(1, 6) if classes[k]},
        "latency_ttfb_p50_ms": None if ttfb is None else round(ttfb.percentile(50) * 1000, 2),
        "latency_ttfb_p95_ms": None if ttfb is None else round(ttfb.percentile(95) * 1000, 2),
        "latency_ttfb_p99_ms": None if ttfb is None else round(ttfb.percentile(99) * 1000, 2),
    }
