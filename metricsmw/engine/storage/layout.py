"""The byte layout of a segment: one worker's memory, with its rings of checkpoints.

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
    names        rows x 512 bytes (tables of routes only): length, what it times, text (`keys.Name`)
    current      rows x lanes cumulative lanes
    checkpoints  slots copies of `current`, each as it stood at the start of a step

`current` is never zeroed: a window is `current` minus the checkpoint at the window's start.

Lanes are doubles biased by 2**52: the bit pattern of 2**52 + n is 0x433 << 52 | n. So a lane is
counted up by a float addition, the cheapest read-modify-write that Python has on shared memory,
while two states subtract as whole big integers, all lanes at once (`tables`).

A checkpoint is written in this order: label 0, copy, label of the new step. A reader reads the
label, copies, and reads the label again (`tables`), so that it never uses a torn copy.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from metricsmw.engine.storage.histogram import BUCKETS, ROUTE_BUCKETS

MAGIC = b"metricmw"
LAYOUT = 1.0
HEADER_BYTES = 4096
DIRECTORY_OFFSET = 1024
DIRECTORY_ENTRY = 4
MAX_CHUNKS = (HEADER_BYTES - DIRECTORY_OFFSET) // (8 * DIRECTORY_ENTRY)
PAGE = mmap.ALLOCATIONGRANULARITY

BIAS = 2.0**52
NAME_BYTES = 512

# The header up to `Field.CREATED`, which a worker writes once, when it opens the segment.
IDENTITY_BYTES = 7 * 8

# A route's window slides by six steps, a tenth of the window.
STEPS_PER_WINDOW = 60
ROUTE_STEPS_PER_WINDOW = 10
STEP_RATIO = STEPS_PER_WINDOW // ROUTE_STEPS_PER_WINDOW


class Field(IntEnum):
    """Doubles of the header page, by their place."""

    MAGIC = 0
    LAYOUT = 1
    PID = 2
    PROCESS_START = 3
    NONCE = 4  # differs from that of an earlier segment of the same name
    WINDOW = 5  # seconds
    CREATED = 6  # monotonic seconds
    CHUNKS = 7  # chunks in use
    IN_FLIGHT = 8
    WEBSOCKETS = 9
    FAULTS = 10
    SAMPLE_RECORD = 11  # users: see users.py
    SAMPLE_COUNT = 12
    SAMPLE_SINCE = 13
    ROOT_PID = 14  # the topmost process of the server, which keeps it alive between workers,
    ROOT_START = 15
    PARENT_PID = 16  # and the parent of this process
    PARENT_START = 17
    BOOT = 18  # the clock of the times: a hash of the boot's id,
    TIME_NAMESPACE = 19
    PID_NAMESPACE = 20  # of the process ids
    SAMPLED = 21  # when the worker measured its own resources: monotonic seconds,
    CPU_PCT = 22  # percent of one core since the time before
    MEMORY_BYTES = 23  # resident


class Owner(NamedTuple):
    """The process that owns a segment, by the segment's header; 0 stands for unknown."""

    pid: int
    process_start: int
    root_pid: int = 0
    root_start: int = 0
    parent_pid: int = 0
    parent_start: int = 0
    boot: int = 0
    time_namespace: int = 0
    pid_namespace: int = 0


# The header's fields for each field of an `Owner`.
OWNER_FIELDS = tuple(Field[name.upper()] for name in Owner._fields)


class Kind(IntEnum):
    """The kind of a chunk: the rows that it holds."""

    ROUTES = 1
    USERS = 2
    COUNTERS = 3  # of the app's own
    GAUGES = 4
    HISTOGRAMS = 5


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
        """Return the offset of the checkpoint in a slot, 0 <= slot < slots."""
        return self.current + (1 + slot) * self.stride

    @property
    def size(self) -> int:
        """The table's size in bytes, whole pages."""
        return _round_up(self.checkpoint(self.slots), PAGE)


SERVER_SHAPE = Shape(1, SERVER_LANES, 64, named=False)
SERVER_OFFSET = HEADER_BYTES
FIXED_BYTES = _round_up(HEADER_BYTES + SERVER_SHAPE.size, PAGE)


def zero_lanes(lanes: int) -> bytes:
    """Return so many lanes that have counted nothing."""
    return struct.pack("d", BIAS) * lanes


@cache
def route_shape(rows: int) -> Shape:
    """Return the geometry of a chunk of so many routes."""
    return Shape(rows, ROUTE_LANES, 12, named=True)


def step_number(now: float, step: float) -> int:
    """Return the number of the step around monotonic ``now``: 1 or more, as 0 stands for none."""
    return int(now // step) + 1


class CounterLane(IntEnum):
    """Lanes of a row of the app's own counters: whole units, and millionths."""

    WHOLE = 0
    MILLIONTHS = 1


class GaugeColumn(IntEnum):
    """Doubles of a row of the app's own gauges; they are no counting lanes."""

    VALUE = 0
    SET_AT = 1  # monotonic seconds; 0: it was not set by this worker


class HistogramLane(IntEnum):
    """Lanes of a row of the app's own histograms, behind those of the buckets."""

    SUM = ROUTE_BUCKETS  # in parts of the unit, as `instrument_buckets` has it


INSTRUMENT_LANES = {Kind.COUNTERS: 2, Kind.GAUGES: 2, Kind.HISTOGRAMS: ROUTE_BUCKETS + 7}


@cache
def instrument_shape(kind: Kind, rows: int) -> Shape:
    """Return the geometry of so many rows of the app's own numbers; they have no checkpoints."""
    return Shape(rows, INSTRUMENT_LANES[kind], 0, named=True)


def chunk_bytes(kind: Kind, rows: int, width: int) -> int:
    """Return a chunk's size. A user's row is a time, a key and its text, column by column."""
    if kind is Kind.ROUTES:
        return route_shape(rows).size
    if kind in INSTRUMENT_LANES:
        return instrument_shape(kind, rows).size
    return _round_up(rows * (16 + width), PAGE)
