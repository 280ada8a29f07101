"""Reading one table of a segment: its totals, its window and its steps.

A read copies two states a table, whatever the number of requests: the current lanes, and the
checkpoint at the window's start. States of one table only ever grow, lane by lane, so the larger
integer is the later state, and their difference is exact in every lane at once.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from metricsmw.engine.storage.histogram import CEILING_SECONDS
from metricsmw.engine.storage.lanes import lane_masks
from metricsmw.engine.storage.layout import Shape, zero_lanes

# A torn or overtaken checkpoint is looked for again this often before the segment is given up.
ATTEMPTS = 5
CUT_BYTES = 512  # by so many a part of a state begins and ends
NO_STEPS = sys.maxsize, sys.maxsize  # a window in which there is none

Read = Callable[[int, int], bytes]


class CorruptSegmentError(Exception):
    """A segment whose bytes cannot be what a worker wrote."""


# What reading such a segment may raise.
READ_ERRORS = (
    CorruptSegmentError,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    MemoryError,
    struct.error,
)


class TableReading(NamedTuple):
    """One table, read once.

    Attributes:
        total: Its lanes since the reset, as one integer.
        window: Its lanes in the window.
        peaks: The largest value of each row in the window, in seconds.
        head: Its bytes before the current lanes.
        kept: What the next reading of it may be given; None: nothing.
    """

    total: int
    window: int
    peaks: list[float]
    head: bytes
    kept: Kept | None


class Cut(NamedTuple):
    """The part of a state that has counted anything: the cheaper to be worked with, the smaller.

    Attributes:
        begin: Where its buckets begin, in bytes.
        end: Where they end.
        tail: Where the counters begin, which are all in it.
    """

    begin: int
    end: int
    tail: int

    @classmethod
    def of(cls, state: bytes, buckets: int) -> Cut:
        """Return the part of a state of which so many bytes are buckets; of 0, all of it."""
        if not buckets:
            return cls(0, len(state), len(state))
        empty = _empty(len(state))

        def is_empty(first: int, behind: int) -> bool:
            begin, end = first * CUT_BYTES, behind * CUT_BYTES
            return state[begin:end] == empty[begin:end]

        pieces = buckets // CUT_BYTES
        first, low = pieces, 0  # nothing was counted before low
        while low < first:
            middle = (low + first) // 2
            if is_empty(low, middle + 1):
                low = middle + 1
            else:
                first = middle
        end = pieces * CUT_BYTES
        if state[end:buckets] != empty[end:buckets]:
            return cls(first * CUT_BYTES, buckets, buckets)
        behind, low = pieces, first  # nothing was counted from behind on
        while low < behind:
            middle = (low + behind) // 2
            if is_empty(middle, behind):
                behind = middle
            else:
                low = middle + 1
        return cls(first * CUT_BYTES, behind * CUT_BYTES, buckets)

    def holds(self, state: bytes) -> bool:
        """Return whether all that a state has counted is in this part of it."""
        begin, end, tail = self
        empty = _empty(len(state))
        return state.startswith(empty[:begin]) and state.startswith(empty[end:tail], end)

    def take(self, state: bytes) -> int:
        """Return what was counted in this part of a state.

        Raises:
            CorruptSegmentError: The bytes are no counts, or there are some outside of it.
        """
        if not self.holds(state):
            raise CorruptSegmentError("impossible counts")
        state = state[self.begin : self.end] + state[self.tail :]
        counted = int.from_bytes(state, "little")
        high, zero = lane_masks(len(state) // 8)
        if counted & high != zero:
            raise CorruptSegmentError("no counts")
        difference: int = counted - zero
        return difference

    def part(self, counted: int) -> int:
        """Return this part of the lanes of a whole state. See `take` for what it raises."""
        size = 8 * (self.end - self.begin)
        found = (counted >> 8 * self.begin & (1 << size) - 1) | counted >> 8 * self.tail << size
        if self.whole(found) != counted:
            raise CorruptSegmentError("impossible counts")
        return found

    def whole(self, part: int) -> int:
        """Return the lanes of a whole state, of which this is the part."""
        size = 8 * (self.end - self.begin)
        if part < 0:
            return part
        return (part & (1 << size) - 1) << 8 * self.begin | part >> size << 8 * self.tail


class Kept(NamedTuple):
    """What a reading leaves to the next one of the same table: a checkpoint never changes.

    Attributes:
        label: The step that begins with the checkpoint.
        cut: The part of a state that has counted anything.
        counted: What that part had counted at the checkpoint.
    """

    label: float
    cut: Cut
    counted: int


class _Slots(NamedTuple):
    """The checkpoints that a window needs.

    Attributes:
        begin: The label of the one at its start; None: the window begins with the table.
        end: The label of the one at its end; None: it ends with the current lanes.
        peaks: Takes those of the window from all peaks of a row; None: there are none.
    """

    begin: float | None
    end: float | None
    peaks: Callable[[Sequence[float]], tuple[float, ...]] | None


# Workers that are as busy have the same labels, and each reading of one step asks for the same.
@lru_cache(maxsize=256)
def _slots(raw: bytes, last: float, first: float, reset_at: float, past: bool) -> _Slots:
    """Return which checkpoints a window needs; see `read_table`.

    Args:
        raw: The labels, and the times from which the peaks are valid.
        last: The number of the window's last step.
        first: That of its first one.
        reset_at: Monotonic time of the last reset.
        past: The window ends with the last step.
    """
    doubles = memoryview(raw).cast("d").tolist()
    labels, since = doubles[: len(doubles) // 2], doubles[len(doubles) // 2 :]
    if sum(labels) % 1:  # NaN too
        raise CorruptSegmentError("impossible steps")
    end = min([label for label in labels if label > last], default=None) if past else None
    inside = [slot for slot, label in enumerate(labels) if label >= first]
    begin = min([labels[slot] for slot in inside], default=None)
    if begin is not None and end is not None and begin >= end:
        begin = None
    valid = [slot for slot in inside if labels[slot] <= last and since[slot] >= reset_at]
    # Of one place twice, as of two it returns a tuple.
    return _Slots(begin, end, itemgetter(*valid, valid[0]) if valid else None)


@lru_cache(maxsize=8)
def _empty(size: int) -> bytes:
    return zero_lanes(size // 8)


def read_table(
    read: Read,
    offset: int,
    shape: Shape,
    steps: tuple[int, int],
    reset_at: float,
    baseline: int | None,
    past: bool,
    head: bytes | None = None,
    used: slice | None = None,
    buckets: int = 0,
    kept: Kept | None = None,
) -> TableReading:
    """Return the counts of one table since the reset and in the window.

    Args:
        read: Reads bytes of the segment.
        offset: The table's place in the segment, in bytes.
        shape: The table's geometry.
        steps: The numbers of the window's last and first step.
        reset_at: Monotonic time of the last reset; older peaks are left out.
        baseline: What the table had counted at the last reset; None: it was not there.
        past: Read the table as it was when the last step ended.
        head: The table's first bytes, up to the end of the current lanes, if they are read already.
        used: The bytes of a state that are in use; None: all.
        buckets: How many bytes at the beginning of a state are buckets, of which few have counted
            anything; 0 says nothing about that.
        kept: What an earlier reading of the same table has kept.

    Raises:
        CorruptSegmentError: The bytes cannot be what a worker wrote.
    """
    # Floats, as the labels are: comparing them with integers takes three times as long.
    last, first = float(steps[0]), float(max(steps[1], 1))  # label 0 is none
    used = used or slice(0, shape.stride)
    size = shape.current + used.stop
    at_reset = 0 if baseline is None else baseline >> 8 * used.start
    for _ in range(ATTEMPTS):
        whole = head or read(offset, size)
        head = None
        if len(whole) != size:
            raise CorruptSegmentError("truncated")
        slots = _slots(whole[: shape.slots * 16], last, first, reset_at, past)
        state = whole[shape.current + used.start :]
        if kept is None or not kept.cut.holds(state):
            kept = None
            cut = Cut.of(state, buckets)
        else:
            cut = kept.cut
        end = begin = cut.take(state)
        if slots.end is not None:
            checkpoint = _checkpoint(read, offset, shape, slots.end, used)
            if checkpoint is None:
                continue
            begin = end = cut.take(checkpoint)
        if slots.begin is not None:
            if kept is None or kept.label != slots.begin:
                checkpoint = _checkpoint(read, offset, shape, slots.begin, used)
                if checkpoint is None:
                    continue
                kept = Kept(slots.begin, cut, cut.take(checkpoint))
            begin = kept.counted
        start = cut.part(at_reset) if at_reset else 0
        high, _ = lane_masks(cut.end - cut.begin + len(state) - cut.tail >> 3)
        total, window = end - start, end - max(begin, start)
        if past:
            total, window = max(total, 0), max(window, 0)
        if total < 0 or window < 0 or (total | window) & high:
            raise CorruptSegmentError("impossible counts")
        peaks = [0.0] * shape.rows
        if slots.peaks is not None:
            raw = whole[shape.peaks : shape.peaks + shape.slots * shape.rows * 8]
            doubles = memoryview(raw).cast("d").tolist()
            rows = range(0, len(doubles), shape.slots)
            peaks = [max(slots.peaks(doubles[row : row + shape.slots])) for row in rows]
        # False for NaN, too.
        if not (sum(peaks) >= 0.0 <= min(peaks) and max(peaks) <= CEILING_SECONDS):
            raise CorruptSegmentError("impossible peaks")
        total, window = cut.whole(total), cut.whole(window)
        return TableReading(total, window, peaks, whole[: shape.current], kept)
    raise CorruptSegmentError("no whole checkpoint")


def _checkpoint(read: Read, offset: int, shape: Shape, label: float, used: slice) -> bytes | None:
    """Return the checkpoint of a label; None where it was overwritten while it was copied."""
    slot = int(label) % shape.slots
    state = read(offset + shape.checkpoint(slot) + used.start, used.stop - used.start)
    if len(state) != used.stop - used.start:
        raise CorruptSegmentError("truncated")
    again = read(offset + slot * 8, 8)
    if len(again) != 8 or struct.unpack("d", again)[0] != label:
        return None
    return state


def read_steps(
    read: Read,
    offset: int,
    shape: Shape,
    first: int,
    baseline: int | None,
    used: slice | None = None,
) -> dict[int, int]:
    """Return what the table at ``offset`` counted in each step from ``first`` on.

    Each is the difference of two neighbouring checkpoints, as lanes; the last one is that of the
    current lanes, and of a step in progress. Steps without a checkpoint counted nothing.
    ``baseline``: what the table had counted at the last reset; nothing from before it is counted.
    ``used``: see `read_table`.

    Raises:
        CorruptSegmentError: The bytes cannot be what a worker wrote.
    """
    used = used or slice(0, shape.stride)
    size = used.stop - used.start
    high, zero = lane_masks(size // 8)
    start = zero if baseline is None else zero + (baseline >> 8 * used.start)
    for _ in range(ATTEMPTS):
        labels = read(offset, shape.since)
        if len(labels) != shape.since:
            raise CorruptSegmentError("truncated")
        numbers = memoryview(labels).cast("d").tolist()
        if sum(numbers) % 1:  # NaN too
            raise CorruptSegmentError("impossible steps")
        begins = sorted(int(number) for number in numbers if number >= max(first, 1))
        places = [shape.checkpoint(number % shape.slots) for number in begins]
        raw = [read(offset + place + used.start, size) for place in (*places, shape.current)]
        if any(len(state) != size for state in raw):
            raise CorruptSegmentError("truncated")
        if read(offset, shape.since) != labels:
            continue  # a checkpoint was taken meanwhile
        states = [int.from_bytes(state, "little") for state in raw]
        if any(state & high != zero for state in states):
            raise CorruptSegmentError("no counts")
        counts: dict[int, int] = {}
        for begin, before, after in zip(begins, states, states[1:], strict=False):
            count = max(after, start) - max(before, start)
            if count < 0 or count & high:
                raise CorruptSegmentError("impossible counts")
            counts[begin] = count
        return counts
    raise CorruptSegmentError("no whole checkpoint")


def read_last_step(read: Read, offset: int, shape: Shape) -> int | None:
    """Return the number of the latest step in which the table at ``offset`` counted anything.

    None where no checkpoint is kept from before that.

    Raises:
        CorruptSegmentError: The bytes cannot be what a worker wrote.
    """
    labels = read(offset, shape.since)
    current = read(offset + shape.current, shape.stride)
    if len(labels) != shape.since or len(current) != shape.stride:
        raise CorruptSegmentError("truncated")
    numbers = memoryview(labels).cast("d").tolist()
    if sum(numbers) % 1:  # NaN too
        raise CorruptSegmentError("impossible steps")
    used = slice(0, shape.stride)
    for label in sorted(filter(None, numbers), reverse=True):
        if _checkpoint(read, offset, shape, label, used) not in (None, current):
            return int(label)
    return None


def read_total(read: Read, offset: int, shape: Shape, baseline: int | None) -> int:
    """Return what the dense table at ``offset`` has counted since the reset, as lanes.

    Raises:
        CorruptSegmentError: The bytes are no counts, or fewer than at the reset.
    """
    state = read_state(read, offset + shape.current, slice(0, shape.stride))
    return since(state, baseline or 0, shape.rows * shape.lanes)


def since(state: int, baseline: int, lanes: int) -> int:
    """Return what was counted since a baseline. Raises `CorruptSegmentError` where it is less."""
    total = state - baseline
    if total < 0 or total & lane_masks(lanes)[0]:
        raise CorruptSegmentError("impossible counts")
    return total


def read_state(read: Read, offset: int, used: slice) -> int:
    """Return what was counted in the used bytes of the state at ``offset``, as lanes of them.

    Raises:
        CorruptSegmentError: The bytes are no counts.
    """
    raw = read(offset + used.start, used.stop - used.start)
    if len(raw) != used.stop - used.start:
        raise CorruptSegmentError("truncated")
    state = int.from_bytes(raw, "little")
    high, zero = lane_masks(len(raw) // 8)
    if state & high != zero:
        raise CorruptSegmentError("no counts")
    counted: int = state - zero
    return counted


def table_state(read: Read, offset: int, shape: Shape, used: slice | None = None) -> int:
    """Return what a table has counted, as the lanes of a whole state.

    It is copied until two copies are equal, five times at most: then no worker was between two
    stores of one request.

    Raises:
        CorruptSegmentError: The bytes are no counts.
    """
    used = used or slice(0, shape.stride)
    state = read_state(read, offset + shape.current, used)
    for _ in range(ATTEMPTS):
        again = read_state(read, offset + shape.current, used)
        if again == state:
            break
        state = again
    whole: int = state << 8 * used.start
    return whole
