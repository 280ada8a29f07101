"""The writer's side of a segment: its header, its server-wide table, and chunks as they appear.

`layout` has the offsets, `memory` the memory, `reader` the reader's side.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from metricsmw.engine.storage.layout import (
    BIAS,
    DIRECTORY_ENTRY,
    DIRECTORY_OFFSET,
    FIXED_BYTES,
    HEADER_BYTES,
    IDENTITY_BYTES,
    LAYOUT,
    MAGIC,
    MAX_CHUNKS,
    OWNER_FIELDS,
    SERVER_OFFSET,
    SERVER_SHAPE,
    Field,
    Kind,
    Owner,
    Shape,
    chunk_bytes,
    instrument_shape,
    route_shape,
    zero_lanes,
)
from metricsmw.engine.storage.memory import Memory


class Table:
    """The writer's side of one table: its current lanes, and the taking of checkpoints."""

    def __init__(self, view: memoryview, shape: Shape, fresh: bool) -> None:
        self.shape = shape
        self.view = view
        self.current = view[shape.current : shape.current + shape.stride]
        self._labels = view[: shape.since].cast("d")
        self._since = view[shape.since : shape.peaks].cast("d")
        self._peaks = view[shape.peaks : shape.names].cast("d")
        self.names = view[shape.names : shape.current]
        self.lanes = self.current.cast("d")
        self.step = 0 if fresh else int(max(self._labels))
        if fresh:
            self.current[:] = zero_lanes(shape.rows * shape.lanes)

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
        offset = self.shape.checkpoint(slot)
        self._labels[slot] = 0.0
        self.view[offset : offset + self.shape.stride] = self.current
        self.step = step
        self.restart_peaks(since)
        self._labels[slot] = float(step)
        return True

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


class Chunk(NamedTuple):
    """An appended part: so many rows, each with `width` bytes of text (users only)."""

    kind: Kind
    rows: int
    width: int
    view: memoryview
    offset: int


class Segment:
    """The writer's side of a segment: header, server-wide table, chunks.

    ``fresh`` segments are initialised. Others are adopted: their counts go on, their gauges start
    at 0, because they are of a dead process, and a window of another length begins anew.
    """

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
        for field, number in zip(OWNER_FIELDS, owner, strict=True):
            header[field] = float(number)
        header[Field.SAMPLED] = 0.0
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
        """Start the window anew, as steps of another length have other numbers; totals go on."""
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
        """Return the gauges, read without touching mapped memory that may be gone.

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
            if kind == Kind.GAUGES:  # of the app's own, and of a dead process
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
            width: Bytes of text a row; users only.
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

    def zero_gauges(self) -> None:
        """Zero the gauges, as its worker leaves; the counts stay for the readers."""
        self.gauges[0] = self.gauges[1] = 0.0
