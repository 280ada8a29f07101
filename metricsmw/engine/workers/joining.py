"""Joining late: a private worker becomes one of the server's, and keeps its counts.

Its segment is copied, byte for byte, to a file, and adopted from there as a dead worker's would be.
Threads that are in the middle of a record go on counting in the old segment for a moment. Its
counts beyond the copy are added later, at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from metricsmw.config import Settings
from metricsmw.engine.storage.lanes import unpack
from metricsmw.engine.storage.layout import (
    BLOCK_SHAPES,
    SERVER_OFFSET,
    SERVER_SHAPE,
    Kind,
    instrument_shape,
)
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.group import PrivateGroup
from metricsmw.engine.workers.shared import SharedGroup

# It is tried within a record, again and again.
RETRY_SECONDS = 0.05


def take_along(
    private: PrivateGroup, settings: Settings, clock: Callable[[], float]
) -> tuple[SharedGroup, Remainder]:
    """Return a group with the counts of a private one, and what will bring the rest of them.

    The caller sees to it that no table of the private group is opened meanwhile. Raises OSError
    where joining fails again; the private group is then unchanged.
    """
    savings = private.savings()
    group = SharedGroup(settings, clock, savings, patience=RETRY_SECONDS)
    return group, Remainder(private.segment, group.segment, savings.data)


class Remainder:
    """The counts that a segment gets after it was copied, for the copy."""

    def __init__(self, old: Segment, new: Segment, copied: bytes) -> None:
        self._tables = list(_tables(old, new, copied))

    def settle(self) -> None:
        """Add to the copy the counts of the old segment since the last call."""
        for number, (old, new, known) in enumerate(self._tables):
            state = bytes(old)
            if state == known:
                continue
            more = int.from_bytes(state, "little") - int.from_bytes(known, "little")
            for lane, count in enumerate(unpack(more, len(state) // 8)):
                if count:
                    new[lane] += float(count)
            self._tables[number] = old, new, state


def _tables(
    old: Segment, new: Segment, copied: bytes
) -> Iterator[tuple[memoryview, memoryview[float], bytes]]:
    """Yield the lanes of both, and the old ones as they were copied."""

    def as_copied(start: int, lanes: memoryview) -> bytes:
        return copied[start : start + len(lanes)]

    current = old.table.current
    start = SERVER_OFFSET + SERVER_SHAPE.current
    yield current, new.table.lanes, as_copied(start, current)
    for before, after in zip(old.chunks, new.chunks, strict=False):
        if before.kind in BLOCK_SHAPES:
            pairs = zip(old.block_tables(before), new.block_tables(after), strict=False)
            for before_table, after_table in pairs:
                used = after_table.used
                current = before_table.current[used]
                start = before_table.offset + before_table.shape.current + used.start
                yield current, after_table.current[used].cast("d"), as_copied(start, current)
        elif before.kind in (Kind.COUNTERS, Kind.HISTOGRAMS):
            shape = instrument_shape(before.kind, before.rows)
            lanes = slice(shape.current, shape.current + shape.stride)
            current = before.view[lanes]
            yield (
                current,
                after.view[lanes].cast("d"),
                as_copied(before.offset + shape.current, current),
            )
