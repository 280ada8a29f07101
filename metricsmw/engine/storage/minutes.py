"""The minute history: a ring of snapshots that all workers of a server share.

    0    header: 5 doubles: magic, next row's number, first row's number, the origin (monotonic
         time that minutes count from, 0 = none), the minutes after it that are written
    40   capacity rows of doubles: number, monotonic time, Unix time, the snapshot's numeric
         fields, the minute's own numbers (seconds 0: not known), number again (a row whose numbers
         differ is being written)
    ...  the ring of gauge samples, one row a step: the step's number, requests in flight, CPU in
         percent, memory in MiB, the number again
    ...  two places for all that was counted up to the end of a row, see `CumulativeSlots`

Row n is in place n % capacity. Only the worker that holds the server's lock writes. It writes the
header last, in one piece, and readers use no row that the header does not count: a worker that dies
in between has added nothing.

A minute's own numbers are of what was counted up to its end, less what was counted up to the end of
the minute before. Only the latest of these counts are kept; a row has what was derived from them.

Gauge samples (in flight, CPU, memory) cannot be derived from the counters of a step.
So every reader of the metrics stores a gauge sample for the present step, over that of an earlier
reader. No thread samples in the background: a step without a reader has no row. The minute history
reads once a minute.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from metricsmw.engine.files import FileHandle
from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.snapshot import HISTORY_FIELDS, MINUTE_FIELDS, SnapshotDict, history_row

MAGIC = 20_261_201.0
HEADER = struct.Struct("5d")
VALUES = HISTORY_FIELDS[1:]
ROW = struct.Struct(f"{len(VALUES) + 4}d")
UNKNOWN = (0.0,) * len(MINUTE_FIELDS)


class Bytes(Protocol):
    """The bytes of a history: in memory, or in a file."""

    def reserve(self, size: int) -> None:
        """Have room for that many bytes. Raises OSError where there is none."""

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; fewer where they end."""

    def write(self, offset: int, data: bytes) -> None:
        """Write the bytes at an offset. Raises OSError where they cannot be written."""


class MemoryBytes:
    """A history of this process alone."""

    def __init__(self) -> None:
        self._data = bytearray()

    def reserve(self, size: int) -> None:
        """See `Bytes`."""
        self._data.extend(bytes(size - len(self._data)))

    def read(self, offset: int, size: int) -> bytes:
        """See `Bytes`."""
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """See `Bytes`."""
        self._data[offset : offset + len(data)] = data


class FileBytes:
    """A history in a file."""

    def __init__(self, file: FileHandle) -> None:
        self._file = file

    def reserve(self, size: int) -> None:
        """See `Bytes`. A full disk is an error here, not a missing minute later."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)

    def read(self, offset: int, size: int) -> bytes:
        """See `Bytes`."""
        return self._file.pread(size, offset)

    def write(self, offset: int, data: bytes) -> None:
        """See `Bytes`."""
        os.pwrite(self._file.fileno(), data, offset)


# No count is as large, and no time of a snapshot as late: the year 10000.
BEYOND = 2.0**53
MAX_TIME = 253_402_300_800.0


def _is_possible(row: Sequence[float]) -> bool:
    """Return whether a row's numbers are those of a snapshot; not where one is NaN."""
    return all(0 <= number < BEYOND for number in row) and row[2] < MAX_TIME


class _HistoryHeader(NamedTuple):
    magic: float
    next: float
    first: float
    origin: float
    minutes: float

    @property
    def is_whole(self) -> bool:
        return (
            self.magic == MAGIC and self.first <= self.next and all(0 <= n < BEYOND for n in self)
        )


EMPTY = _HistoryHeader(MAGIC, 0.0, 0.0, 0.0, 0.0)


class History:
    """At most ``capacity`` snapshots, one a minute, oldest first. Raises OSError for no room."""

    def __init__(self, data: Bytes, capacity: int) -> None:
        self._data = data
        self._capacity = capacity
        end = HEADER.size + capacity * ROW.size
        data.reserve(end + GAUGE_BYTES + CUMULATIVE_BYTES)
        self.gauge_samples = GaugeSamples(data, end)
        self._cumulative = CumulativeSlots(data, end + GAUGE_BYTES)

    def _header(self) -> _HistoryHeader:
        raw = self._data.read(0, HEADER.size)
        header = _HistoryHeader(*HEADER.unpack(raw)) if len(raw) == HEADER.size else EMPTY
        # What cannot be read is as good as empty.
        return header if header.is_whole else EMPTY

    def _write_header(self, header: _HistoryHeader) -> None:
        self._data.write(0, HEADER.pack(*header))

    @property
    def origin(self) -> float:
        """Monotonic time that minutes count from; 0.0 where they do not yet."""
        return self._header().origin

    @property
    def minutes(self) -> int:
        """How many minutes after the origin are written."""
        return int(self._header().minutes)

    @property
    def cumulative(self) -> Cumulative | None:
        """What was counted up to the end of the last minute; None where it is not there."""
        header = self._header()
        return self._cumulative.latest(header.first, header.next)

    def append(
        self,
        at: float,
        wall: float,
        values: Sequence[float],
        minutes: int | None = None,
        own: Mapping[str, float] | None = None,
        cumulative: Cumulative | None = None,
    ) -> None:
        """Add a snapshot's numeric fields, taken at monotonic ``at``, Unix ``wall``.

        Args:
            at: Monotonic seconds.
            wall: Unix time.
            values: The snapshot's numeric fields.
            minutes: So many minutes after the origin are now written; None: as many as before.
            own: The minute's `MINUTE_FIELDS`; None: they are not known.
            cumulative: What was counted up to its end; None: as much as before.
        """
        header = self._header()
        number = header.next
        if cumulative is not None:
            self._cumulative.put(cumulative, number, header.first)
        minute = UNKNOWN if own is None else [own[name] for name in MINUTE_FIELDS]
        row = ROW.pack(number, at, wall, *values, *minute, number)
        place = int(number) % self._capacity
        self._data.write(HEADER.size + place * ROW.size, row)
        written = header.minutes if minutes is None else float(minutes)
        self._write_header(header._replace(next=number + 1, minutes=written))

    def start(self, origin: float) -> None:
        """Drop all rows; minutes count from monotonic ``origin`` on."""
        header = self._header()
        self._write_header(header._replace(first=header.next, origin=origin, minutes=0.0))

    def _rows(self) -> list[tuple[float, ...] | None]:
        """Return all rows, oldest first: times and fields; None for a damaged row."""
        header = self._header()
        data = self._data.read(HEADER.size, ROW.size * self._capacity)
        rows: list[tuple[float, ...] | None] = []
        first = max(int(header.first), int(header.next) - self._capacity)
        for number in range(first, int(header.next)):
            start = number % self._capacity * ROW.size
            raw = data[start : start + ROW.size]
            row = ROW.unpack(raw) if len(raw) == ROW.size else ()
            is_own = any(row) and row[0] == row[-1] == number  # zeros are no row 0
            rows.append(row[1:-1] if is_own and _is_possible(row) else None)
        return rows

    def damaged(self) -> int:
        """Return how many rows are left out as damaged."""
        rows = self._rows()
        # The oldest of a full ring may just be making room for the next one.
        return rows[len(rows) == self._capacity :].count(None)

    def rows(self, since: float, reset_at: float = 0.0) -> list[SnapshotDict]:
        """Return snapshots, oldest first, from after monotonic ``since`` and since the reset."""
        rows = []
        for row in self._rows():
            if row is not None and row[0] > since and row[0] >= reset_at:
                with suppress(ValueError, OverflowError):  # no time that there is
                    numbers: SnapshotDict = dict(zip(VALUES, row[2:], strict=True))
                    rows.append(history_row(row[1], numbers))
        return rows


GAUGE_ROW = struct.Struct("5d")
GAUGE_ROWS = 64
GAUGE_BYTES = GAUGE_ROW.size * GAUGE_ROWS


class GaugeSample(NamedTuple):
    """The server's gauges at one moment."""

    requests_in_flight: int
    cpu_usage_pct: float
    memory_usage_mb: float


class GaugeSamples:
    """The ring, from byte ``offset`` on."""

    def __init__(self, data: Bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def put(self, step: int, sample: GaugeSample) -> None:
        """Store the sample of a step, unless a later step has its place."""
        place = self._offset + step % GAUGE_ROWS * GAUGE_ROW.size
        with suppress(OSError):  # the numbers themselves do without
            kept = self._data.read(place, GAUGE_ROW.size)
            if len(kept) == GAUGE_ROW.size and GAUGE_ROW.unpack(kept)[0] > step:
                return
            self._data.write(place, GAUGE_ROW.pack(step, *sample, step))

    def get(self, first: int, last: int) -> dict[int, GaugeSample]:
        """Return the samples of the steps from ``first`` to ``last``; steps count from 1."""
        found: dict[int, GaugeSample] = {}
        data = self._data.read(self._offset, GAUGE_BYTES)
        for number, in_flight, cpu, memory, again in GAUGE_ROW.iter_unpack(
            data[: len(data) // GAUGE_ROW.size * GAUGE_ROW.size]
        ):
            if (
                number == again
                and max(first, 1) <= number <= last  # 0: no row yet
                and all(0 <= value < BEYOND for value in (in_flight, cpu, memory))
            ):
                found[int(number)] = GaugeSample(int(in_flight), cpu, memory)
        return found


CUMULATIVE_SLOT = struct.Struct(f"10d{BUCKETS * 8}sd")
CUMULATIVE_BYTES = 2 * CUMULATIVE_SLOT.size


class Cumulative(NamedTuple):
    """All that a server had counted at one time.

    Attributes:
        reset_at: Monotonic time of the reset since which it was counted; 0.0: there was none.
        left_out: How many segments could not be read.
        requests: All requests.
        errors: How many of them failed.
        server_errors: How many of these are the server's own errors.
        classes: How many answers had a status of 1xx, 3xx, 4xx and 5xx.
        histogram: The latencies: one integer with a lane of 64 bits for each bucket.
    """

    reset_at: float
    left_out: int
    requests: int
    errors: int
    server_errors: int
    classes: tuple[int, ...]
    histogram: int


class CumulativeSlots:
    """The two places, from byte ``offset`` on; the latest counts are in one of them.

    A place has the row's number plus 1, the fields of a `Cumulative` as doubles, its histogram as
    whole numbers of 8 bytes, and the first number again.
    """

    def __init__(self, data: Bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def put(self, counts: Cumulative, number: float, first: float) -> None:
        """Store what was counted up to a row's end, in the place that is not the latest one's."""
        latest = self._latest(first, number)
        slot = 1 - latest[1] if latest else 0
        *head, classes, histogram = counts
        data = CUMULATIVE_SLOT.pack(
            number + 1, *head, *classes, histogram.to_bytes(BUCKETS * 8, "little"), number + 1
        )
        self._data.write(self._offset + slot * CUMULATIVE_SLOT.size, data)

    def latest(self, first: float, end: float) -> Cumulative | None:
        """Return the latest of a row from number ``first`` on and before ``end``."""
        latest = self._latest(first, end)
        return latest and latest[2]

    def _latest(self, first: float, end: float) -> tuple[float, int, Cumulative] | None:
        found: list[tuple[float, int, Cumulative]] = []
        for slot in (0, 1):
            raw = self._data.read(self._offset + slot * CUMULATIVE_SLOT.size, CUMULATIVE_SLOT.size)
            if len(raw) != CUMULATIVE_SLOT.size:
                continue
            number, reset_at, *counts, histogram, again = CUMULATIVE_SLOT.unpack(raw)
            if (
                number == again
                and first < number <= end
                and 0 <= reset_at < BEYOND
                and all(0 <= count < BEYOND and count % 1 == 0 for count in counts)
                and max(memoryview(histogram).cast("Q")) < BEYOND
            ):
                left_out, requests, errors, own, *classes = map(int, counts)
                lanes = int.from_bytes(histogram, "little")
                cumulative = Cumulative(
                    reset_at, left_out, requests, errors, own, tuple(classes), lanes
                )
                found.append((number, slot, cumulative))
        return max(found, default=None)
