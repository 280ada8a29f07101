"""The byte layout of a segment: one worker's memory, with its rings of checkpoints.

A segment is written by one process only and read by all. It lives in anonymous memory (a private
monitor) or in a mapped file. All numbers are 8-byte native doubles. docs/layout.md has each offset.

    0      header page, 4096 bytes: a magic, then one double per `Field`
    1024     chunk directory in that page: (kind, offset, rows, text bytes a row) for each chunk
    4096   the server-wide table (`Shape`): 1 row of 1216 lanes, 64 checkpoints
    ...    chunks, appended as routes and users appear; each page-aligned

A `Shape` is the geometry of a table:

    labels       slots doubles: the step at whose start the checkpoint was taken, 0 = none
    since        slots doubles: monotonic time from which that step's peaks are valid
    peaks        rows x slots doubles: the largest value of that step, in seconds
    names        rows x a fixed number of bytes: what the row counts
    current      rows x lanes cumulative lanes
    checkpoints  slots copies of `current`, each as it stood at the start of a step

`current` is never zeroed: a window is `current` minus the checkpoint at the window's start.

Lanes are doubles biased by 2**52: the bit pattern of 2**52 + n is 0x433 << 52 | n. So a lane is
counted up by a float addition, the cheapest read-modify-write that Python has on shared memory,
while two states subtract as whole big integers, all lanes at once (`tables`).

A checkpoint is written in this order: label 0, copy, label of the new step. A reader reads the
label, copies, and reads the label again (`tables`), so that it never uses a torn copy.

Tables of routes and of answers (`BlockShape`) are sparse: a state of their 16 rows is 19 blocks of
4096 bytes. A block has 32 lanes of each row: two octaves of latencies, or the row's counters. Only
the blocks from `Field.FIRST_BLOCK` up to before `Field.LAST_BLOCK` have memory, those that the
latencies of the worker fall in; the others are holes of the file.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from metricsmw.engine.storage.histogram import BUCKETS, ROUTE_BUCKETS

MAGIC = b"metricmw"
LAYOUT = 4.0
HEADER_BYTES = 4096
DIRECTORY_OFFSET = 1024
DIRECTORY_ENTRY = 4
MAX_CHUNKS = (HEADER_BYTES - DIRECTORY_OFFSET) // (8 * DIRECTORY_ENTRY)
PAGE = mmap.ALLOCATIONGRANULARITY

BIAS = 2.0**52
NAME_BYTES = 512
ANSWER_NAME_BYTES = 256
FACT_BYTES = 64
# Captured requests: so many records of so many bytes, beside a sequence of 8 bytes for each.
CAPTURE_ROWS, RECORD_BYTES = 256, 1016
ERROR_BYTES = 4096

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
    FIRST_BLOCK = 24  # blocks in use of the tables of routes and answers: the first one,
    LAST_BLOCK = 25  # and the one behind the last
    RENAMINGS = 26  # odd while a row of a route gets another name; 0: none ever did
    USER_TIMEOUT = 27  # settings of the worker, for who reads from outside: seconds,
    MAX_ROUTES = 28  # and rows; 0: not said
    JOINED = 29  # when the worker opened the segment: monotonic seconds; 0: not said
    TAKEN_OVER = 30  # the requests that earlier workers had counted in it until then


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
    ANSWERS = 6  # of one status of a route's row
    CAPTURES = 7  # requests
    ERRORS = 8  # kinds of error: see errors.py


class Lane(IntEnum):
    """Counter lanes of the server-wide row, behind those of the buckets, the lowest first."""

    ERRORS = BUCKETS
    ABANDONED = BUCKETS + 1
    SERVER_ERRORS = BUCKETS + 2  # those errors that are the server's own; no status is one, too
    CLASSES = BUCKETS + 3  # + 1, 3, 4, 5: answers by the class of their status; all others are 2xx


SERVER_LANES = 1216


class RouteLane(IntEnum):
    """Counter lanes of a route's row, behind those of the buckets, the lowest first."""

    ERRORS = ROUTE_BUCKETS
    ABANDONED = ROUTE_BUCKETS + 1
    STREAMS = ROUTE_BUCKETS + 2  # whose first byte is in no row of this route
    SERVER_ERRORS = ROUTE_BUCKETS + 3  # those errors that are the server's own
    REST = ROUTE_BUCKETS + 4  # + 1 … 5: answers of no row but the shared one, by class; + 0: none
    ANSWERS = ROUTE_BUCKETS + 10  # + the answer's number in its route


# The answers of a route that have a row each; all others share one more.
MAX_ANSWERS = 12

# A state of a table of routes, or of answers, is so many blocks; each has so many lanes of a row.
TABLE_ROWS, BLOCK_LANES, BLOCKS = 16, 32, 19
BLOCK_BYTES = TABLE_ROWS * BLOCK_LANES * 8
# The one of the counters. It lies amid those of the buckets, at 2**-10 s, so that the blocks in use
# are neighbours.
COUNTER_BLOCK = 7
ROUTE_LANES = ROUTE_BUCKETS + BLOCK_LANES


def place_of(lane: int) -> int:
    """Return the place of a row's lane in a state, in doubles, behind the row's first double."""
    if lane >= ROUTE_BUCKETS:
        block, inside = COUNTER_BLOCK, lane - ROUTE_BUCKETS
    else:  # the last bucket is above the ceiling, and has no lane
        block, inside = divmod(min(lane, (BLOCKS - 1) * BLOCK_LANES - 1), BLOCK_LANES)
        block += block >= COUNTER_BLOCK
    return block * TABLE_ROWS * BLOCK_LANES + inside


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class Shape:
    """The geometry of a table; offsets are relative to its start."""

    __slots__ = (
        "current",
        "lanes",
        "name_bytes",
        "names",
        "peaks",
        "rows",
        "since",
        "slots",
        "stride",
    )

    def __init__(self, rows: int, lanes: int, slots: int, name_bytes: int = 0) -> None:
        self.rows = rows
        self.lanes = lanes
        self.slots = slots
        self.name_bytes = name_bytes
        self.since = slots * 8
        self.peaks = slots * 16
        self.names = self.peaks + slots * rows * 8
        self.current = self.names + rows * name_bytes
        self.stride = rows * lanes * 8

    def checkpoint(self, slot: int) -> int:
        """Return the offset of the checkpoint in a slot, 0 <= slot < slots."""
        return self.current + (1 + slot) * self.stride

    @property
    def size(self) -> int:
        """The table's size in bytes, whole pages."""
        return _round_up(self.checkpoint(self.slots), PAGE)


class BlockShape(Shape):
    """The geometry of a table of routes or of answers.

    Behind ``since`` it has a double that is 1 once the table is in use; behind the peaks, the facts
    of each row (`keys.RouteFacts`). Behind the checkpoints is the base: what each row had counted
    when it got its name; bytes of 0 where it has had no other name before.
    """

    __slots__ = ("base", "facts", "in_use")

    def __init__(self, slots: int, name_bytes: int) -> None:
        super().__init__(TABLE_ROWS, BLOCKS * BLOCK_LANES, slots, name_bytes)
        self.in_use = self.peaks
        self.peaks += 8
        self.facts = self.peaks + slots * TABLE_ROWS * 8
        facts = self.facts + (TABLE_ROWS * FACT_BYTES if slots else 0)
        self.names = _round_up(facts, BLOCK_BYTES)
        self.current = self.names + TABLE_ROWS * name_bytes
        self.base = self.checkpoint(slots)

    @property
    def size(self) -> int:
        """The table's size in bytes, most of which are holes."""
        return _round_up(self.base + self.stride, PAGE)


SERVER_SHAPE = Shape(1, SERVER_LANES, 64)
SERVER_OFFSET = HEADER_BYTES
FIXED_BYTES = _round_up(HEADER_BYTES + SERVER_SHAPE.size, PAGE)

ROUTE_SHAPE = BlockShape(12, NAME_BYTES)
ANSWER_SHAPE = BlockShape(0, ANSWER_NAME_BYTES)
BLOCK_SHAPES = {Kind.ROUTES: ROUTE_SHAPE, Kind.ANSWERS: ANSWER_SHAPE}


def zero_lanes(lanes: int) -> bytes:
    """Return so many lanes that have counted nothing."""
    return struct.pack("d", BIAS) * lanes


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
    return Shape(rows, INSTRUMENT_LANES[kind], 0, NAME_BYTES)


@cache
def error_shape(rows: int) -> Shape:
    """Return the geometry of so many kinds of error: their rows, and a lane of each."""
    return Shape(rows, 1, 0, ERROR_BYTES)


def chunk_bytes(kind: Kind, rows: int, width: int) -> int:
    """Return a chunk's size.

    A user's row is a time, a key and its text, column by column; a captured request's is a sequence
    and its record.
    """
    if kind in BLOCK_SHAPES:
        return BLOCK_SHAPES[kind].size * (rows // TABLE_ROWS)
    if kind in INSTRUMENT_LANES:
        return instrument_shape(kind, rows).size
    if kind is Kind.CAPTURES:
        return _round_up(rows * (8 + width), PAGE)
    if kind is Kind.ERRORS:
        return error_shape(rows).size
    return _round_up(rows * (16 + width), PAGE)
