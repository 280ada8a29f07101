"""Joining late: a private worker becomes one of the server's, and keeps its counts.

Its segment is copied, byte for byte, to a file, and adopted from there as a dead worker's would be.
Threads that are in the middle of a record go on counting in the old segment for a moment. Its
counts beyond the copy are added later, at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from metricsmw.config import Settings
from metricsmw.engine.storage.lanes import unpack
from metricsmw.engine.storage.layout import SERVER_OFFSET, SERVER_SHAPE, Kind, Shape, route_shape
from metricsmw.engine.storage.segment import Segment, Table
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
        for number, (old, new, shape, known) in enumerate(self._tables):
            state = bytes(old.current)
            if state == known:
                continue
            more = int.from_bytes(state, "little") - int.from_bytes(known, "little")
            for lane, count in enumerate(unpack(more, shape.rows * shape.lanes)):
                if count:
                    new.lanes[lane] += float(count)
            self._tables[number] = old, new, shape, state


def _tables(
    old: Segment, new: Segment, copied: bytes
) -> Iterator[tuple[Table, Table, Shape, bytes]]:
    """Yield the tables of both, with their counters as they were copied."""
    start = SERVER_OFFSET + SERVER_SHAPE.current
    yield old.table, new.table, SERVER_SHAPE, copied[start : start + SERVER_SHAPE.stride]
    for before, after in zip(old.chunks, new.chunks, strict=False):
        if before.kind is Kind.ROUTES:
            shape = route_shape(before.rows)
            start = before.offset + shape.current
            yield (
                Table(before.view, shape, fresh=False),
                Table(after.view, shape, fresh=False),
                shape,
                copied[start : start + shape.stride],
            )
