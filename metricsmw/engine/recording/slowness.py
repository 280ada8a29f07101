"""A row's own 99th percentile, read by the worker that writes the row."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import inf
from operator import sub

from metricsmw.engine.storage.histogram import ROUTE_FIRST, ROUTE_SCALE, upper_bound
from metricsmw.engine.storage.layout import BLOCK_BYTES, BLOCK_LANES, COUNTER_BLOCK
from metricsmw.engine.storage.segment import BlockTable


def percentile_99(table: BlockTable, number: int, first: int) -> float:
    """Return the end of the bucket that holds a row's 99th percentile, in seconds.

    So at most one in a hundred of the row's latencies is above it.

    Args:
        table: The table.
        number: The row's.
        first: The step at whose start the window begins, or the first one after it that has a
            checkpoint.

    Returns:
        Infinity where there is no such checkpoint, or nothing was counted since.
    """
    begin = table.checkpoint_since(first)
    if begin is None:
        return inf
    buckets = [
        lane
        for block in range(table.used.start // BLOCK_BYTES, table.used.stop // BLOCK_BYTES)
        if block != COUNTER_BLOCK
        for lane in _lanes(table, number, table.shape.current, begin, block)
    ]
    ranks = list(accumulate(buckets))
    if not ranks[-1]:
        return inf
    # Blocks above that of the counters have the number that follows among those of buckets.
    lowest = ROUTE_FIRST + table.used.start // BLOCK_BYTES * BLOCK_LANES
    return upper_bound(lowest + bisect_left(ranks, -(-ranks[-1] * 99 // 100)), ROUTE_SCALE)


def _lanes(table: BlockTable, number: int, state: int, before: int, block: int) -> list[float]:
    """Return what a row has counted in one block from a state to another one, lane by lane."""
    place = block * BLOCK_BYTES + number * BLOCK_LANES * 8
    size = BLOCK_LANES * 8
    now, then = (
        table.view[offset + place : offset + place + size].cast("d").tolist()
        for offset in (state, before)
    )
    return list(map(sub, now, then))
