"""One worker's memory: its byte layout, its single writer, and its rings of checkpoints.

A segment is written by one process only and read by all. It lives in anonymous memory (a private
monitor) or in a mapped file. All numbers are 8-byte native doubles.

    0      header page, 4096 bytes: a magic, then one double per `Field`
    1024     chunk directory in that page: (kind, offset, rows, text bytes a row) for each chunk
    4096   the server-wide `Table`: 1 row of 1216 lanes, 64 checkpoints
    ...    chunks, appended as routes and users appear; each page-aligned

A `Table` is

    labels       slots doubles: the step at whose start the checkpoint was taken, 0 = none
    since        slots doubles: monotonic time from which that step's peaks are valid
    peaks        rows x slots doubles: the largest value of that step, in seconds
    names        rows x 512 bytes (tables of routes only)
    CUR          rows x lanes cumulative lanes
    CP[slots]    copies of CUR as it stood at the start of a step

CUR is never zeroed: a window is CUR minus the checkpoint at the window's start.

Lanes are doubles biased by 2**52: the bit pattern of 2**52 + n is 0x433 << 52 | n. So a lane is
counted up by a float addition, the cheapest read-modify-write that Python has on shared memory,
while two states subtract as whole big integers, all lanes at once (`difference`).

Rotation publishes in this order: label 0, copy, label of the new step. A reader takes a label,
copies, and looks at the label again (`merge`): a torn copy is never used.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from typing import NamedTuple, Protocol

from metricsmw.descriptor import Descriptor
from metricsmw.histogram import BUCKETS, ROUTE_BUCKETS
from metricsmw.server import Process

MAGIC = b"metricmw"
LAYOUT = 1.0
HEADER_BYTES = 4096
DIRECTORY_OFFSET = 1024
DIRECTORY_ENTRY = 4
MAX_CHUNKS = (HEADER_BYTES - DIRECTORY_OFFSET) // (8 * DIRECTORY_ENTRY)
PAGE = mmap.ALLOCATIONGRANULARITY

BIAS = 2.0**52
NAME_BYTES = 512

# What no worker changes once a segment is its own: the header up to the time it was made.
IDENTITY_BYTES = 7 * 8

# A route's window slides by six steps, a tenth of the window.
STEPS_PER_WINDOW = 60
ROUTE_STEPS_PER_WINDOW = 10


class Field(IntEnum):
    """Doubles of the header page, by their place."""

    MAGIC = 0
    LAYOUT = 1
    PID = 2
    PROCESS_START = 3
    NONCE = 4  # tells this segment from an earlier one of the same name
    WINDOW = 5  # seconds
    CREATED = 6  # monotonic seconds
    CHUNKS = 7  # chunks in use
    IN_FLIGHT = 8
    WEBSOCKETS = 9
    FAULTS = 10
    SAMPLE_RECORD = 11  # users: see users.py
    SAMPLE_COUNT = 12
    SAMPLE_SINCE = 13
    ROOT_PID = 14  # the master of the server that the worker belonged to
    ROOT_START = 15


class Kind(IntEnum):
    """What a chunk holds."""

    ROUTES = 1
    USERS = 2


class Lane(IntEnum):
    """Counter lanes of the server-wide row, behind those of the buckets, the lowest first."""

    ERRORS = BUCKETS
    ABANDONED = BUCKETS + 1


SERVER_LANES = 1216


class RouteLane(IntEnum):
    """Counter lanes of a route's row, behind those of the buckets, the lowest first."""

    ERRORS = ROUTE_BUCKETS
    ABANDONED = ROUTE_BUCKETS + 1
    STATUS = ROUTE_BUCKETS + 2  # + 1, 3, 4, 5: the class of the status; + 0: none; 2 is the rest
    STREAMS = ROUTE_BUCKETS + 8  # whose first byte is in no row of this route


ROUTE_LANES = 640


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class Shape:
    """The geometry of a `Table`; offsets are relative to its start."""

    __slots__ = ("current", "lanes", "named", "names", "peaks", "rows", "since", "slots", "stride")

    def __init__(self, rows: int, lanes: int, slots: int, *, named: bool) -> None:
        self.rows = rows
        self.lanes = lanes
        self.slots = slots
        self.named = named
        self.since = slots * 8
        self.peaks = slots * 16
        self.names = self.peaks + slots * rows * 8
        self.current = self.names + (rows * NAME_BYTES if named else 0)
        self.stride = rows * lanes * 8

    def checkpoint(self, slot: int) -> int:
        return self.current + (1 + slot) * self.stride

    @property
    def size(self) -> int:
        return _round_up(self.checkpoint(self.slots), PAGE)


SERVER_SHAPE = Shape(1, SERVER_LANES, 64, named=False)
SERVER_OFFSET = HEADER_BYTES
FIXED_BYTES = _round_up(HEADER_BYTES + SERVER_SHAPE.size, PAGE)


def zero_lanes(lanes: int) -> bytes:
    """That many lanes that have counted nothing."""
    return struct.pack("d", BIAS) * lanes


@cache
def route_shape(rows: int) -> Shape:
    """The table of a chunk of that many routes."""
    return Shape(rows, ROUTE_LANES, 12, named=True)


def step_number(now: float, step: float) -> int:
    """Number of the step that the monotonic time lies in; from 1 on, so that 0 can mean none."""
    return int(now // step) + 1


class Memory(Protocol):
    """Where a segment lives."""

    def map(self, offset: int, size: int) -> memoryview:
        """A writable view of newly allocated, zeroed (or, adopted, existing) bytes.

        Raises OSError where there is no room.
        """

    def read(self, offset: int, size: int) -> bytes:
        """A copy of the bytes; shorter where the segment ends."""

    @property
    def is_whole(self) -> bool:
        """Whether all that was mapped is still there, where others look for it."""


class AnonymousMemory:
    """Memory of this process alone."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, mmap.mmap]] = []

    def map(self, offset: int, size: int) -> memoryview:
        part = mmap.mmap(-1, size)
        self._parts.append((offset, part))
        return memoryview(part)

    def read(self, offset: int, size: int) -> bytes:
        for start, part in self._parts:
            if start <= offset < start + len(part):
                return part[offset - start : offset - start + size]
        return b""

    @property
    def is_whole(self) -> bool:
        return True


class FileMemory:
    """A mapped file."""

    def __init__(self, file: Descriptor) -> None:
        self._file = file
        self._end = 0

    def map(self, offset: int, size: int) -> memoryview:
        fd = self._file.fileno()
        # Allocated first: a full disk is an error here, not a SIGBUS at some later store.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, size)
        elif os.fstat(fd).st_size < offset + size:
            os.pwrite(fd, bytes(size), offset)
        self._end = max(self._end, offset + size)
        return memoryview(mmap.mmap(fd, size, offset=offset))

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    @property
    def is_whole(self) -> bool:
        status = os.fstat(self._file.fileno())
        return status.st_size >= self._end and status.st_nlink > 0


class Table:
    """The writer's side of one table: its current lanes, and the taking of checkpoints."""

    def __init__(self, view: memoryview, shape: Shape, fresh: bool) -> None:
        self.shape = shape
        self._view = view
        self._current = view[shape.current : shape.current + shape.stride]
        self._labels = view[: shape.since].cast("d")
        self._since = view[shape.since : shape.peaks].cast("d")
        self._peaks = view[shape.peaks : shape.names].cast("d")
        self.names = view[shape.names : shape.current]
        self.lanes = self._current.cast("d")
        self.step = 0 if fresh else int(max(self._labels))
        if fresh:
            self._current[:] = zero_lanes(shape.rows * shape.lanes)

    @property
    def _slot(self) -> int:
        return self.step % self.shape.slots

    def roll(self, step: int, since: float) -> bool:
        """Keep CUR as the checkpoint of ``step``, which begins at monotonic ``since``.

        False where that step, or a later one, has its checkpoint already.
        """
        if step <= self.step:
            return False
        slot = step % self.shape.slots
        offset = self.shape.checkpoint(slot)
        self._labels[slot] = 0.0
        self._view[offset : offset + self.shape.stride] = self._current
        self.step = step
        self.restart_peaks(since)
        self._labels[slot] = float(step)
        return True

    def drop_checkpoints(self) -> None:
        """Forget all steps: nothing that was counted so far is in any window."""
        for slot in range(self.shape.slots):
            self._labels[slot] = 0.0
        self.step = 0

    def restart_peaks(self, since: float) -> None:
        """The peaks of the step begin anew at monotonic ``since``."""
        for number in range(self.shape.rows):
            self.set_peak(number, 0.0)
        self._since[self._slot] = since

    def peak(self, number: int) -> float:
        """The largest value in seconds of that row in this step."""
        return self._peaks[number * self.shape.slots + self._slot]

    def set_peak(self, number: int, seconds: float) -> None:
        self._peaks[number * self.shape.slots + self._slot] = seconds


class Chunk(NamedTuple):
    """A part that was appended: so many rows, each with `width` bytes of text (users only)."""

    kind: Kind
    rows: int
    width: int
    view: memoryview


def chunk_bytes(kind: Kind, rows: int, width: int) -> int:
    """Size of a chunk. A user's row is a time, a key and its text, column by column."""
    if kind is Kind.ROUTES:
        return route_shape(rows).size
    return _round_up(rows * (16 + width), PAGE)


class Segment:
    """The writer's side of a segment: header, server-wide table, chunks.

    ``fresh`` segments are initialised; others are adopted: their counts go on, their gauges are
    those of a dead process and start at 0. A window of another length begins anew.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        window_seconds: int,
        now: float,
        owner: Process,
        root: Process | None = None,
        fresh: bool = True,
    ) -> None:
        self.memory = memory
        fixed = memory.map(0, FIXED_BYTES)
        self.header = fixed[:HEADER_BYTES].cast("d")
        self.table = Table(
            fixed[SERVER_OFFSET : SERVER_OFFSET + SERVER_SHAPE.size], SERVER_SHAPE, fresh
        )
        self.gauges = self.header[Field.IN_FLIGHT : Field.WEBSOCKETS + 1]
        self._directory = fixed[DIRECTORY_OFFSET:HEADER_BYTES].cast("d")
        header = self.header
        self.gauges[0] = self.gauges[1] = 0.0
        restart = not fresh and header[Field.WINDOW] != window_seconds
        header[Field.PID], header[Field.PROCESS_START] = map(float, owner)
        header[Field.ROOT_PID], header[Field.ROOT_START] = map(float, root or owner)
        if fresh:
            header[Field.LAYOUT] = LAYOUT
            header[Field.NONCE] = float(int.from_bytes(os.urandom(6), "little"))
            header[Field.WINDOW] = float(window_seconds)
            header[Field.CREATED] = now
            fixed[: len(MAGIC)] = MAGIC  # last: from here on readers take it for whole
        self._end = FIXED_BYTES
        self._appending = threading.Lock()
        self.chunks: list[Chunk] = []
        if not fresh:
            self._reopen_chunks()
        if restart:
            self._restart_window(window_seconds)
        self._identity = self._read_identity()

    def _restart_window(self, window_seconds: int) -> None:
        """Steps of another length have other numbers: the window begins anew, totals go on."""
        self.table.drop_checkpoints()
        for chunk in self.chunks:
            if chunk.kind is Kind.ROUTES:
                Table(chunk.view, route_shape(chunk.rows), fresh=False).drop_checkpoints()
        self.header[Field.WINDOW] = float(window_seconds)

    def _read_identity(self) -> bytes:
        return self.memory.read(0, IDENTITY_BYTES)

    @property
    def is_whole(self) -> bool:
        """Whether the memory is all there, and readers still take it for this worker's."""
        return self.memory.is_whole and self._read_identity() == self._identity

    def saved_gauges(self) -> list[float]:
        """The gauges, read without touching mapped memory that may be gone.

        0 where they are gone, or stand in a header that somebody else has written.
        """
        raw = self.memory.read(Field.IN_FLIGHT * 8, 16)
        if len(raw) < 16 or self._read_identity() != self._identity:
            return [0.0, 0.0]
        return [v if 0 <= v < BIAS else 0.0 for v in struct.unpack("2d", raw)]

    def _reopen_chunks(self) -> None:
        for number in range(int(self.header[Field.CHUNKS])):
            entry = number * DIRECTORY_ENTRY
            kind, offset, rows, width = (int(v) for v in self._directory[entry : entry + 4])
            view = self.memory.map(offset, chunk_bytes(Kind(kind), rows, width))
            self.chunks.append(Chunk(Kind(kind), rows, width, view))
            self._end = offset + len(view)

    @contextmanager
    def appended(self, kind: Kind, rows: int, width: int = 0) -> Iterator[Chunk]:
        """A new zeroed chunk, which readers see once the block has filled it in.

        Raises OSError where there is no room for it. One at a time: a thread may need a chunk of
        users while another needs one of routes.
        """
        with self._appending:
            number = len(self.chunks)
            if number == MAX_CHUNKS:
                raise OSError(f"a segment holds at most {MAX_CHUNKS} chunks")
            view = self.memory.map(self._end, chunk_bytes(kind, rows, width))
            chunk = Chunk(kind, rows, width, view)
            yield chunk
            entry = number * DIRECTORY_ENTRY
            for place, value in enumerate((kind, self._end, rows, width)):
                self._directory[entry + place] = float(value)
            self._end += len(view)
            self.chunks.append(chunk)
            self.header[Field.CHUNKS] = float(number + 1)

    def silence(self) -> None:
        """Zero the gauges, as its worker leaves; the counts stay for the readers."""
        self.gauges[0] = self.gauges[1] = 0.0
