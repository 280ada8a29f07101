"""The writer's side of a segment: its header, its server-wide table, and chunks as they appear.

`layout` has the offsets, `memory` the memory, `reader` the reader's side.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.engine.storage.lanes import lane_masks, rows_of
from metricsmw.engine.storage.layout import (
    BIAS,
    BLOCK_BYTES,
    BLOCK_LANES,
    BLOCK_SHAPES,
    COUNTER_BLOCK,
    DIRECTORY_ENTRY,
    DIRECTORY_OFFSET,
    FACT_BYTES,
    FIXED_BYTES,
    HEADER_BYTES,
    IDENTITY_BYTES,
    LAYOUT,
    MAGIC,
    MAX_CHUNKS,
    OWNER_FIELDS,
    SERVER_OFFSET,
    SERVER_SHAPE,
    TABLE_ROWS,
    BlockShape,
    Field,
    Kind,
    Lane,
    Owner,
    Shape,
    chunk_bytes,
    instrument_shape,
    zero_lanes,
)
from metricsmw.engine.storage.memory import Memory


class Table:
    """The writer's side of one table: its current lanes, and the taking of checkpoints."""

    def __init__(self, view: memoryview, shape: Shape, fresh: bool) -> None:
        self.shape = shape
        self.view = view
        self.current = view[shape.current : shape.current + shape.stride]
        self.names = view[shape.names : shape.names + shape.rows * shape.name_bytes]
        self.lanes = self.current.cast("d")
        self.used = slice(0, shape.stride)  # the bytes of a state that are in use
        self._labels = view[: shape.since].cast("d")
        self._since = view[shape.since : 2 * shape.since].cast("d")
        self._peaks = view[shape.peaks : shape.peaks + shape.slots * shape.rows * 8].cast("d")
        self.step = 0 if fresh else int(max(self._labels, default=0))
        if fresh:
            self.current[:] = zero_lanes(shape.rows * shape.lanes)

    @property
    def requests(self) -> int:
        """How many requests a server-wide table has counted since it was made."""
        lanes = self.lanes
        return sum(int(lane - BIAS) for lane in [*lanes[:BUCKETS], lanes[Lane.ABANDONED]])

    @property
    def _slot(self) -> int:
        return self.step % self.shape.slots

    def take_checkpoint(self, step: int, since: float) -> bool:
        """Copy the current lanes to the checkpoint of a step.

        Args:
            step: The step's number.
            since: Monotonic time at which the step begins.

        Returns:
            False where that step, or a later one, has its checkpoint already.
        """
        if step <= self.step:
            return False
        slot = step % self.shape.slots
        begin, used = self.shape.checkpoint(slot), self.used
        self._labels[slot] = 0.0
        self.view[begin + used.start : begin + used.stop] = self.current[used]
        self.step = step
        self.restart_peaks(since)
        self._labels[slot] = float(step)
        return True

    def checkpoint_since(self, step: int) -> int | None:
        """Return the offset of the first checkpoint from a step on; None where there is none."""
        labels = [label for label in self._labels if label >= max(step, 1)]
        if not labels:
            return None
        return self.shape.checkpoint(int(min(labels)) % self.shape.slots)

    def drop_checkpoints(self) -> None:
        """Drop all checkpoints, so that no window has what was counted so far."""
        for slot in range(self.shape.slots):
            self._labels[slot] = 0.0
        self.step = 0

    def restart_peaks(self, since: float) -> None:
        """Start the peaks of the step anew at monotonic ``since``."""
        for number in range(self.shape.rows):
            self.set_peak(number, 0.0)
        self._since[self._slot] = since

    def peak(self, number: int) -> float:
        """Return the largest value of a row in this step, in seconds."""
        return self._peaks[number * self.shape.slots + self._slot]

    def set_peak(self, number: int, seconds: float) -> None:
        """Set the largest value of a row in this step, in seconds."""
        self._peaks[number * self.shape.slots + self._slot] = seconds

    def drop_peaks(self, number: int) -> None:
        """Drop the largest values of a row, in all steps."""
        for slot in range(self.shape.slots):
            self._peaks[number * self.shape.slots + slot] = 0.0


class BlockTable(Table):
    """A table of routes or of answers, whose blocks get memory as they are used.

    ``memory`` and ``offset``: where the table lies; ``blocks``: those that are in use, or shall be.
    A fresh one needs room, else it raises OSError; with ``growth`` some is left to others.
    """

    shape: BlockShape

    def __init__(
        self,
        view: memoryview,
        shape: BlockShape,
        *,
        memory: Memory,
        offset: int,
        blocks: range,
        fresh: bool,
        growth: bool = False,
    ) -> None:
        self._memory = memory
        self.offset = offset
        self._states = [shape.current, *map(shape.checkpoint, range(shape.slots))]
        head = (offset, shape.current)
        memory.allocate([head, *self._parts(blocks)], growth=fresh and growth)
        super().__init__(view, shape, fresh=False)
        if fresh:
            self.fill(blocks)
        self.use(blocks)
        view[shape.in_use : shape.in_use + 8].cast("d")[0] = 1.0

    def _parts(self, blocks: range) -> list[tuple[int, int]]:
        size = len(blocks) * BLOCK_BYTES
        return [
            (self.offset + state + blocks.start * BLOCK_BYTES, size)
            for state in self._states
            if size
        ]

    def allocate(self, blocks: range) -> None:
        """Have memory for more blocks. Raises OSError where there is no room."""
        self._memory.allocate(self._parts(blocks), growth=True)

    def fill(self, blocks: range) -> None:
        """Let these blocks, which have memory, have counted nothing."""
        zero = zero_lanes(len(blocks) * BLOCK_BYTES // 8)
        for state in self._states:
            begin = state + blocks.start * BLOCK_BYTES
            self.view[begin : begin + len(zero)] = zero

    def use(self, blocks: range) -> None:
        """Copy these blocks in each checkpoint from now on."""
        self.used = slice(blocks.start * BLOCK_BYTES, blocks.stop * BLOCK_BYTES)

    def lanes_of(self, number: int) -> memoryview[float]:
        """Return the lanes of a row, by their places (`place_of`)."""
        return self.lanes[number * BLOCK_LANES :]

    def facts(self, number: int) -> memoryview:
        """Return the bytes of a row's facts."""
        begin = self.shape.facts + number * FACT_BYTES
        return self.view[begin : begin + FACT_BYTES]

    def allocate_base(self) -> None:
        """Have memory for the base. Raises OSError where there is no room."""
        begin, used = self.offset + self.shape.base, self.used
        self._memory.allocate([(begin + used.start, used.stop - used.start)], growth=True)

    def rebase(self, number: int) -> None:
        """Make what a row has counted its base, which has memory."""
        base = self._pieces(number, self.shape.base)
        for to, piece in zip(base, self._pieces(number, self.shape.current), strict=True):
            to[:] = piece

    def _pieces(self, number: int, state: int) -> Iterator[memoryview]:
        """Yield what a row has in each block that is in use, of the state at an offset."""
        size = BLOCK_LANES * 8
        for begin in range(self.used.start, self.used.stop, BLOCK_BYTES):
            place = state + begin + number * size
            yield self.view[place : place + size]

    def rows(self, state: int, baseline: int = 0) -> list[int]:
        """Return what each row has counted in the state at an offset, as lanes.

        ``baseline``: what the table had counted before, as lanes of a whole state.
        """
        used = self.used
        raw = self.view[state + used.start : state + used.stop]
        _, zero = lane_masks(len(raw) // 8)
        counted = int.from_bytes(raw, "little") - zero - (baseline >> 8 * used.start)
        return rows_of(max(counted, 0), used)


class Chunk(NamedTuple):
    """An appended part: so many rows, each with `width` bytes (of users and captures only)."""

    kind: Kind
    rows: int
    width: int
    view: memoryview
    offset: int


class Segment:
    """The writer's side of a segment: header, server-wide table, chunks.

    ``fresh`` segments are initialised. Others are adopted: their counts go on, their gauges start
    at 0, where they are of a dead process, and a window of another length begins anew.

    Attributes:
        blocks: The blocks in use of the tables of routes and answers.
    """

    blocks: range

    def __init__(
        self,
        memory: Memory,
        *,
        window_seconds: int,
        now: float,
        owner: Owner,
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
        is_own = header[Field.PID] == owner.pid and header[Field.PROCESS_START] == (
            owner.process_start
        )
        if not is_own:  # else a private worker has taken its counts along
            header[Field.JOINED] = now
            header[Field.TAKEN_OVER] = 0.0 if fresh else float(self.table.requests)
        for field, number in zip(OWNER_FIELDS, owner, strict=True):
            header[field] = float(number)
        header[Field.SAMPLED] = 0.0
        if fresh:
            header[Field.LAYOUT] = LAYOUT
            header[Field.NONCE] = float(int.from_bytes(os.urandom(6), "little"))
            header[Field.WINDOW] = float(window_seconds)
            header[Field.CREATED] = now
            self._set_blocks(range(COUNTER_BLOCK, COUNTER_BLOCK + 2))
            fixed[: len(MAGIC)] = MAGIC  # last: from here on readers take it for whole
        else:
            first, last = header[Field.FIRST_BLOCK : Field.LAST_BLOCK + 1].tolist()
            self.blocks = range(int(first), int(last))
        self._end = FIXED_BYTES
        self._appending = threading.Lock()
        self.chunks: list[Chunk] = []
        if not fresh:
            self._reopen_chunks(is_own)
        if restart:
            self._restart_window(window_seconds)
        self._identity = self._read_identity()

    def _restart_window(self, window_seconds: int) -> None:
        """Start the window anew, as steps of another length have other numbers; totals go on."""
        self.table.drop_checkpoints()
        for chunk in self.chunks:
            if chunk.kind is Kind.ROUTES:
                for table in self.block_tables(chunk):
                    table.drop_checkpoints()
        self.header[Field.WINDOW] = float(window_seconds)

    def _read_identity(self) -> bytes:
        return self.memory.read(0, IDENTITY_BYTES)

    @property
    def is_whole(self) -> bool:
        """Whether the memory is all there, and readers still take it for this worker's."""
        return self.memory.is_whole and self._read_identity() == self._identity

    def saved_websockets(self) -> float:
        """Return how many WebSockets are open, read without touching memory that may be gone.

        0 where the number is gone, or stands in a header that somebody else has written.
        """
        try:
            raw = self.memory.read(Field.WEBSOCKETS * 8, 8)
            if len(raw) < 8 or self._read_identity() != self._identity:
                return 0.0
        except OSError:  # its file was closed
            return 0.0
        (number,) = struct.unpack("d", raw)
        return number if 0 <= number < BIAS else 0.0

    def _reopen_chunks(self, is_own: bool) -> None:
        for number in range(int(self.header[Field.CHUNKS])):
            entry = number * DIRECTORY_ENTRY
            kind, offset, rows, width = (int(v) for v in self._directory[entry : entry + 4])
            map_part = self.memory.map_holes if kind in BLOCK_SHAPES else self.memory.map
            view = map_part(offset, chunk_bytes(Kind(kind), rows, width))
            if kind == Kind.GAUGES and not is_own:  # of the app's own, and of a dead process
                shape = instrument_shape(Kind.GAUGES, rows)
                view[shape.current : shape.current + shape.stride] = bytes(shape.stride)
            self.chunks.append(Chunk(Kind(kind), rows, width, view, offset))
            self._end = offset + len(view)

    @contextmanager
    def appended(
        self, kind: Kind, rows: int, width: int = 0, *, growth: bool = True
    ) -> Iterator[Chunk]:
        """Append a zeroed chunk, which readers see once the ``with`` block has filled it in.

        Chunks are appended one at a time, as two threads may need one at once.

        Args:
            kind: What the chunk holds.
            rows: Its number of rows.
            width: Bytes of a row's text or record; users and captures only.
            growth: The segment can do without the chunk, so more room is left to others.

        Yields:
            The chunk.

        Raises:
            OSError: There is no room for the chunk.
        """
        with self._appending:
            number = len(self.chunks)
            if number == MAX_CHUNKS:
                raise OSError(f"a segment holds at most {MAX_CHUNKS} chunks")
            size = chunk_bytes(kind, rows, width)
            if kind in BLOCK_SHAPES:
                view = self.memory.map_holes(self._end, size)
            else:
                if growth:
                    self.memory.check_growth(size)
                view = self.memory.map(self._end, size)
            chunk = Chunk(kind, rows, width, view, self._end)
            yield chunk
            entry = number * DIRECTORY_ENTRY
            for place, value in enumerate((kind, self._end, rows, width)):
                self._directory[entry + place] = float(value)
            self._end += len(view)
            self.chunks.append(chunk)
            self.header[Field.CHUNKS] = float(number + 1)

    def _set_blocks(self, blocks: range) -> None:
        self.blocks = blocks
        self.header[Field.FIRST_BLOCK] = float(blocks.start)
        self.header[Field.LAST_BLOCK] = float(blocks.stop)

    def use_blocks(self, blocks: range, tables: Iterable[BlockTable]) -> None:
        """Have memory for more blocks, which include all that are in use.

        Readers see them once they are whole.

        Args:
            blocks: The blocks.
            tables: All tables of routes and answers.

        Raises:
            OSError: There is no room; nothing has changed.
        """
        before = self.blocks
        added = [range(blocks.start, before.start), range(before.stop, blocks.stop)]
        for part in filter(None, added):
            for table in tables:
                table.allocate(part)
        for part in filter(None, added):
            for table in tables:
                table.fill(part)
        self._set_blocks(blocks)
        for table in tables:
            table.use(blocks)

    def block_tables(self, chunk: Chunk) -> Iterator[BlockTable]:
        """Yield the tables of a chunk that are in use."""
        for number in range(chunk.rows // TABLE_ROWS):
            table = self.block_table(chunk, number, fresh=False)
            if table is None:
                return
            yield table

    def block_table(
        self, chunk: Chunk, number: int, *, fresh: bool, growth: bool = False
    ) -> BlockTable | None:
        """Return a table of a chunk; None for one that is not in use and not to be.

        Args:
            chunk: A chunk of routes or of answers.
            number: Which one of its tables.
            fresh: Take it into use.
            growth: The segment can do without it, so more room is left to others.

        Raises:
            OSError: There is no room.
        """
        shape = BLOCK_SHAPES[chunk.kind]
        begin = number * shape.size
        offset = chunk.offset + begin
        # Not through the mapping: there may be no memory.
        if not fresh and self.memory.read(offset + shape.in_use, 8) in (bytes(8), b""):
            return None
        return BlockTable(
            chunk.view[begin : begin + shape.size],
            shape,
            memory=self.memory,
            offset=offset,
            blocks=self.blocks,
            fresh=fresh,
            growth=growth,
        )

    def zero_gauges(self) -> None:
        """Zero the gauges, as its worker leaves; the counts stay for the readers."""
        self.gauges[0] = self.gauges[1] = 0.0
