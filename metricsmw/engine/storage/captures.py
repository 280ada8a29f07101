"""Captured requests in a segment: records of one size, which a reader sees whole or not at all.

A chunk of R rows has R sequences of 8 bytes, and behind them R records of `RECORD_BYTES`. The
sequence of a record becomes 0, the record is written, and the sequence becomes one that the segment
has not had yet. A reader copies the sequences, the records, and the sequences again: a record whose
sequence is the same before and after, and not 0, is whole.

A record is `HEAD`, and behind it six texts of UTF-8, each behind its length (2 bytes; 0xFFFF: it is
not there): the packed name of the route's row, the type of the exception, the request's id, the
user, the path, the query.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from metricsmw.engine.storage.histogram import CEILING_SECONDS
from metricsmw.engine.storage.keys import LENGTH_BYTES, Name
from metricsmw.engine.storage.layout import RECORD_BYTES
from metricsmw.engine.storage.tables import CorruptSegmentError

HEAD = struct.Struct("=4d4i16s8s")
HEADS = struct.Struct(f"{HEAD.format}{RECORD_BYTES - HEAD.size}x")
NOT_THERE = 0xFFFF
MOST_SEQUENCE = 1 << 63
# The most bytes of each text behind the name. Path and query, the last ones, get what is left.
MOST_BYTES = (100, 100, 100, 250, 250)
LATEST = 1e11  # Unix seconds, of the year 5138: later ones are damage
NO_TRACE, NO_SPAN = bytes(16), bytes(8)


class Capture(NamedTuple):
    """One captured request.

    Attributes:
        ended: When it ended, in monotonic seconds.
        time: When it began, in Unix seconds.
        seconds: How long it took; of a stream of events, until its first byte.
        first_byte: Seconds until its first byte.
        status: Its status; 0: not known.
        pid: The worker's process.
        in_flight: The requests that were in flight as it began, itself included; -1: not known.
        trace_id: 16 bytes, all 0 where it is not known.
        span_id: 8 bytes, likewise.
        name: The name of its row in the per-route table.
        error: The type of the exception that escaped.
        request_id: Its X-Request-ID.
        user: Its user.
        path: Its path, as it came.
        query: Its query string.
    """

    ended: float
    time: float
    seconds: float
    first_byte: float
    status: int
    pid: int
    in_flight: int
    trace_id: bytes
    span_id: bytes
    name: Name
    error: str | None = None
    request_id: str | None = None
    user: str | None = None
    path: str | None = None
    query: str | None = None

    def pack(self) -> bytes:
        """Return its stored form; texts that are too long lose their ends, a type its beginning."""
        numbers = self[:7]
        parts = [HEAD.pack(*numbers, 0, self.trace_id, self.span_id)]
        name = self.name.of_all().pack()
        parts.append(len(name).to_bytes(LENGTH_BYTES, "little") + name)
        texts = self[10:]
        room = RECORD_BYTES - sum(map(len, parts)) - LENGTH_BYTES * len(texts)
        for place, (text, most) in enumerate(zip(texts, MOST_BYTES, strict=True)):
            if text is None:
                parts.append(NOT_THERE.to_bytes(LENGTH_BYTES, "little"))
                continue
            raw = _cut(text, min(most, room), from_end=place == 0)
            room -= len(raw)
            parts.append(len(raw).to_bytes(LENGTH_BYTES, "little") + raw)
        return b"".join(parts)


def _cut(text: str, most: int, *, from_end: bool = False) -> bytes:
    """Return at most so many bytes of a text, with no character cut in two."""
    # A character is a byte at least: what is cut off for certain is not encoded.
    text = text[-most:] if from_end and most else text[:most]
    raw = text.encode("utf-8", "backslashreplace")
    raw = raw[max(len(raw) - most, 0) :] if from_end else raw[:most]
    return raw.decode("utf-8", "ignore").encode()


def unpack(numbers: tuple[float, ...], record: bytes) -> Capture | None:
    """Return the request of a record, given what `HEAD` has of it; None for what is no record."""
    ended, time, seconds, first_byte, status, pid, in_flight, _, trace_id, span_id = numbers
    # False for NaN, too.
    if not (
        0 <= time < LATEST
        and 0 <= seconds <= CEILING_SECONDS
        and 0 <= first_byte <= CEILING_SECONDS
        and 0 <= status < 1000
        and pid > 0
    ):
        return None
    texts: list[bytes | None] = []
    place = HEAD.size
    for _ in range(len(MOST_BYTES) + 1):
        length = int.from_bytes(record[place : place + LENGTH_BYTES], "little")
        place += LENGTH_BYTES
        if length == NOT_THERE:
            texts.append(None)
            continue
        texts.append(record[place : place + length])
        place += length
    if place > RECORD_BYTES or not texts[0] or len(texts[0]) <= LENGTH_BYTES:
        return None
    name = Name.unpack(texts[0])
    if name is None:
        return None
    told = [None if text is None else text.decode("utf-8", "replace") for text in texts[1:]]
    return Capture(
        ended,
        time,
        seconds,
        first_byte,
        int(status),
        int(pid),
        int(in_flight),
        trace_id,  # type: ignore[arg-type]
        span_id,  # type: ignore[arg-type]
        name,
        *told,
    )


class CaptureRing:
    """The writer's side of a chunk of captured requests.

    Attributes:
        rows: How many records it has.
    """

    def __init__(self, view: memoryview, rows: int) -> None:
        self.rows = rows
        self._sequences = view[: rows * 8].cast("Q")
        self._records = view[rows * 8 : rows * (8 + RECORD_BYTES)]
        self._last = max(self._sequences)
        if self._last > MOST_SEQUENCE:  # damaged
            self._last = 0
            self.clear()

    def write(self, row: int, capture: Capture) -> None:
        """Replace a record."""
        packed = capture.pack().ljust(RECORD_BYTES, b"\0")  # nothing is left of the one before
        begin = row * RECORD_BYTES
        self._sequences[row] = 0
        self._records[begin : begin + RECORD_BYTES] = packed
        self._last += 1
        self._sequences[row] = self._last

    def read(self) -> dict[int, Capture]:
        """Return the records, by their rows; one that was cut off by its worker's end is none."""
        raw = bytes(self._records)
        found = {}
        for row, numbers in enumerate(HEADS.iter_unpack(raw)):
            if self._sequences[row]:
                capture = unpack(numbers, raw[row * RECORD_BYTES : (row + 1) * RECORD_BYTES])
                if capture is not None:
                    found[row] = capture
        return found

    def clear(self) -> None:
        """Forget all records."""
        for row in range(self.rows):
            self._sequences[row] = 0
        self._records[:] = bytes(len(self._records))


def read_captures(
    read: Callable[[int, int], bytes],
    offset: int,
    rows: int,
    oldest: float,
    *,
    traced: bool = False,
) -> Iterator[Capture]:
    """Yield the whole records of a chunk.

    Args:
        read: Reads bytes of the segment.
        offset: The chunk's place in the segment.
        rows: How many records it has.
        oldest: Only requests that ended at or after this monotonic time.
        traced: Only requests with a trace id.

    Raises:
        CorruptSegmentError: The segment ends before the chunk does.
    """
    before = _read(read, offset, rows * 8)
    sequences = memoryview(before).cast("Q").tolist()
    used = next((row + 1 for row in reversed(range(rows)) if sequences[row]), 0)
    raw = _read(read, offset + rows * 8, used * RECORD_BYTES)
    after = memoryview(_read(read, offset, rows * 8)).cast("Q").tolist()
    for row, numbers in enumerate(HEADS.iter_unpack(raw)):
        if not sequences[row] or sequences[row] != after[row] or not numbers[0] >= oldest:
            continue
        if traced and numbers[8] == NO_TRACE:
            continue
        capture = unpack(numbers, raw[row * RECORD_BYTES : (row + 1) * RECORD_BYTES])
        if capture is not None:
            yield capture


def _read(read: Callable[[int, int], bytes], offset: int, size: int) -> bytes:
    data = read(offset, size)
    if len(data) != size:
        raise CorruptSegmentError("truncated")
    return data
