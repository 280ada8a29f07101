"""The header page of a segment: which worker wrote it, and which chunks it has.

Every number is checked before it is used, as any program may have written into the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import inf
from typing import NamedTuple

from metricsmw.engine.storage.keys import LONG_TEXT, SHORT_TEXT
from metricsmw.engine.storage.layout import (
    BLOCK_SHAPES,
    BLOCKS,
    COUNTER_BLOCK,
    DIRECTORY_ENTRY,
    DIRECTORY_OFFSET,
    FIXED_BYTES,
    HEADER_BYTES,
    INSTRUMENT_LANES,
    LAYOUT,
    MAGIC,
    MAX_CHUNKS,
    OWNER_FIELDS,
    RECORD_BYTES,
    TABLE_ROWS,
    Field,
    Kind,
    Shape,
    chunk_bytes,
    instrument_shape,
)
from metricsmw.engine.storage.tables import CorruptSegmentError

# No number of the header, and no count, is as large.
BEYOND = 2.0**53
# Rows of a chunk of users, and of any other kind: no setting leads to more.
MOST_ROWS, MOST_TABLE_ROWS = 1 << 17, 1 << 13
MOST_PID = 2.0**31
USAGE = (Field.SAMPLED, Field.CPU_PCT, Field.MEMORY_BYTES)
# Fields that are never negative.
JOINING = (Field.JOINED, Field.TAKEN_OVER)
UNSIGNED = (Field.NONCE, Field.CREATED, Field.FAULTS, *OWNER_FIELDS, *USAGE, *JOINING)
# Bytes of text a row that a chunk of each kind may have.
WIDTHS: dict[float, tuple[int, ...]] = {
    **dict.fromkeys(BLOCK_SHAPES, (0,)),
    Kind.USERS: (SHORT_TEXT, LONG_TEXT),
    Kind.CAPTURES: (RECORD_BYTES,),
    **dict.fromkeys(INSTRUMENT_LANES, (0,)),
    Kind.ERRORS: (0,),
}


class Part(NamedTuple):
    """A chunk as the directory names it."""

    kind: Kind
    offset: int
    rows: int
    width: int

    @property
    def size(self) -> int:
        """The chunk's size in bytes."""
        return chunk_bytes(self.kind, self.rows, self.width)

    @property
    def end(self) -> int:
        """The offset behind the chunk."""
        return self.offset + self.size


# Directories seldom change, and each is looked at in every reading.
@lru_cache(maxsize=512)
def _parts(directory: bytes) -> tuple[tuple[Part, ...], int]:
    """Return the chunks of a directory, and where they end. Raises `CorruptSegmentError`."""
    parts: list[Part] = []
    end = FIXED_BYTES
    numbers = memoryview(directory).cast("d").tolist()
    for entry in range(0, len(numbers), DIRECTORY_ENTRY):
        kind, offset, rows, width = numbers[entry : entry + DIRECTORY_ENTRY]
        # Chunks lie one after the other.
        if offset != end or not 1 <= rows <= MOST_ROWS or width not in WIDTHS.get(kind, ()):
            raise CorruptSegmentError("impossible directory")
        if rows % 1 or (rows > MOST_TABLE_ROWS and kind != Kind.USERS):
            raise CorruptSegmentError("impossible directory")
        if kind in BLOCK_SHAPES and rows % TABLE_ROWS:
            raise CorruptSegmentError("impossible directory")
        parts.append(Part(Kind(int(kind)), end, int(rows), int(width)))
        end = parts[-1].end
    return tuple(parts), end


OTHER_VERSION = "of another version"


class OtherVersionError(CorruptSegmentError):
    """A segment of a worker that runs another version of this package."""


class Header:
    """The header page of a segment, checked. Raises `CorruptSegmentError`."""

    __slots__ = ("blocks", "end", "nonce", "numbers", "parts", "pid")

    def __init__(self, page: bytes) -> None:
        if len(page) != HEADER_BYTES:
            raise CorruptSegmentError("truncated")
        if page[: len(MAGIC)] != MAGIC:
            raise CorruptSegmentError("no segment")
        self.numbers = memoryview(page).cast("d")
        layout = self.numbers[Field.LAYOUT]
        if layout != LAYOUT:
            # Layouts count from 1; anything else is damage.
            is_one = layout >= 1 and layout < BEYOND and not layout % 1
            kind = OtherVersionError if is_one else CorruptSegmentError
            raise kind(OTHER_VERSION)
        # False for NaN, too.
        fields = self.numbers[1 : len(Field)].tolist()
        if not (max(fields) < BEYOND and min(fields) > -BEYOND and sum(fields) < inf):
            raise CorruptSegmentError("impossible header")
        if min(map(self.numbers.__getitem__, UNSIGNED)) < 0 or not (
            1 <= self.numbers[Field.PID] < MOST_PID
        ):
            raise CorruptSegmentError("impossible header")
        self.nonce = int(self.numbers[Field.NONCE])
        self.pid = int(self.numbers[Field.PID])
        first, last = self.numbers[Field.FIRST_BLOCK : Field.LAST_BLOCK + 1].tolist()
        if not 0 <= first <= COUNTER_BLOCK < last <= BLOCKS or (first + last) % 1:
            raise CorruptSegmentError("impossible blocks")
        self.blocks = range(int(first), int(last))
        chunks = self.numbers[Field.CHUNKS]
        if not 0 <= chunks <= MAX_CHUNKS:
            raise CorruptSegmentError("impossible directory")
        size = int(chunks) * DIRECTORY_ENTRY * 8
        self.parts, self.end = _parts(page[DIRECTORY_OFFSET : DIRECTORY_OFFSET + size])

    def block_tables(self, kind: Kind) -> Iterable[list[int]]:
        """Yield the offsets of the tables of each chunk of routes or of answers.

        From some table on, none of a chunk is in use.
        """
        size = BLOCK_SHAPES[kind].size
        for part in self.parts:
            if part.kind is kind:
                yield [part.offset + k * size for k in range(part.rows // TABLE_ROWS)]

    def instrument_tables(self) -> Iterable[tuple[Kind, int, Shape]]:
        """Yield kind, offset and shape of the tables of the app's own numbers."""
        for part in self.parts:
            if part.kind in INSTRUMENT_LANES:
                yield part.kind, part.offset, instrument_shape(part.kind, part.rows)

    def error_chunks(self) -> Iterable[Part]:
        """Yield the chunks of kinds of error."""
        return (part for part in self.parts if part.kind is Kind.ERRORS)
