"""The part of a state that has counted anything is found, whatever has."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.engine.storage.layout import BIAS, SERVER_LANES
from metricsmw.engine.storage.tables import CorruptSegmentError, Cut

counts = st.dictionaries(st.integers(0, SERVER_LANES - 1), st.integers(1, 2**40), max_size=6)


def state(counted: dict[int, int]) -> bytes:
    lanes = [BIAS + counted.get(lane, 0) for lane in range(SERVER_LANES)]
    return struct.pack(f"{SERVER_LANES}d", *lanes)


def as_lanes(counted: dict[int, int]) -> int:
    return sum(count << 64 * lane for lane, count in counted.items())


@given(counts)
def test_nothing_is_left_out(counted: dict[int, int]) -> None:
    cut = Cut.of(state(counted), BUCKETS * 8)
    assert cut.whole(cut.take(state(counted))) == as_lanes(counted)
    assert cut.whole(cut.part(as_lanes(counted))) == as_lanes(counted)


def test_what_counted_where_nothing_has_is_damaged() -> None:
    cut = Cut.of(state({500: 1}), BUCKETS * 8)
    with pytest.raises(CorruptSegmentError):
        cut.take(state({500: 1, 900: 1}))
    with pytest.raises(CorruptSegmentError):
        cut.part(as_lanes({3: 1}))
