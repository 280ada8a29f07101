"""Lanes as big integers: all lanes of a table are subtracted and decoded at once."""

from __future__ import annotations

import struct
from functools import lru_cache

from metricsmw.engine.storage.histogram import (
    BUCKETS,
    ROUTE_BUCKETS,
    Distribution,
)
from metricsmw.engine.storage.layout import (
    BLOCK_BYTES,
    BLOCK_LANES,
    COUNTER_BLOCK,
    TABLE_ROWS,
    zero_lanes,
)

LANE_MASK = (1 << 64) - 1
# The lanes of all buckets, of the server-wide row and of a route's.
HISTOGRAM = (1 << 64 * BUCKETS) - 1
ROUTE_HISTOGRAM = (1 << 64 * ROUTE_BUCKETS) - 1


@lru_cache(maxsize=64)
def lane_masks(lanes: int) -> tuple[int, int]:
    """Return the lanes' exponent bits, and lanes that have counted nothing."""
    high = int.from_bytes(struct.pack("<Q", 0xFFF << 52) * lanes, "little")
    return high, int.from_bytes(zero_lanes(lanes), "little")


def unpack(state: int, lanes: int) -> list[int]:
    """Return the lanes of a difference of states."""
    return memoryview(state.to_bytes(lanes * 8, "little")).cast("Q").tolist()


def lane_of(state: int, lane: int) -> int:
    """One lane of a difference of states."""
    return state >> 64 * lane & LANE_MASK


def rows_of(state: int, used: slice) -> list[int]:
    """Return the lanes of each row of a table of routes or of answers.

    Args:
        state: Lanes of the blocks in use, without exponent bits.
        used: Their bytes in a whole state.
    """
    if not state:
        return [0] * TABLE_ROWS
    size = BLOCK_LANES * 8
    raw = state.to_bytes(used.stop - used.start, "little")
    counters = COUNTER_BLOCK * BLOCK_BYTES - used.start
    places = [place for place in range(0, len(raw), BLOCK_BYTES) if place != counters]
    # Blocks below that of the counters have the number that they have among those of buckets.
    shift = used.start // BLOCK_BYTES * size * 8
    rows = []
    for row in range(0, BLOCK_BYTES, size):
        buckets = b"".join([raw[place + row : place + row + size] for place in places])
        counted = int.from_bytes(raw[counters + row : counters + row + size], "little")
        rows.append(int.from_bytes(buckets, "little") << shift | counted << 64 * ROUTE_BUCKETS)
    return rows


def in_use(state: int) -> tuple[int, list[int]]:
    """Return the lanes from the first to the last that is not 0, and the first one's number.

    Latencies of one app lie close together, so that these are few of all.
    """
    skipped = max((state & -state).bit_length() - 1, 0) // 64  # of the lowest bit
    state >>= 64 * skipped
    return skipped, unpack(state, (state.bit_length() + 63) // 64)


def distribution(histogram: int, first: int, scale: int, peak: float = 0.0) -> Distribution:
    """Of the buckets' lanes alone, of which ``first`` is the lowest; see `Distribution`."""
    skipped, counts = in_use(histogram)
    return Distribution(counts, first + skipped, scale, peak)
