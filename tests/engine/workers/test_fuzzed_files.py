"""Whatever a shared file holds, it is read or it is damaged: no parser raises anything else.

`test_damaged_segments` mutates segments, `test_leader` notes, `test_lasting_damage` SQLite files.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kits.damage import numbers, record, segment_path

from metricsmw import MetricsMonitor
from metricsmw.alerts.outbox import as_alert_state, no_state
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.layout import DIRECTORY_OFFSET, HEADER_BYTES, Field
from metricsmw.engine.storage.minutes import HEADER, ROW, History, MemoryBytes
from metricsmw.engine.storage.reader import Reset
from metricsmw.engine.workers.notes import CorruptNoteError, parse_note
from metricsmw.engine.workers.resets import unpack_reset
from metricsmw.exporters.deltas import Sent
from metricsmw.snapshot import NUMERIC_FIELDS

few = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
doubles = st.floats() | st.sampled_from(
    [-1.0, 0.0, 0.5, 1.0, 2.0**31, 2.0**53, 1e300, -1e300, math.nan, math.inf, -math.inf]
)
NOW = 1000.0


# --- The last reset -------------------------------------------------------------------------------


def packed(at: float, *states: tuple[int, int, bytes], number: int | None = None) -> bytes:
    """The bytes of a reset file with these states (nonce, offset, state)."""
    data = struct.pack("<dQ", at, len(states) if number is None else number)
    for nonce, offset, state in states:
        data += struct.pack("<QQQ", nonce, offset, len(state)) + state
    return zlib.compress(data)


def test_a_reset_is_read_as_it_was_written() -> None:
    found = unpack_reset(packed(900.0, (7, 4096, b"\x01\x02"), (7, 8192, b"")), NOW)
    assert found == Reset(900.0, {(7, 4096): 0x0201, (7, 8192): 0})


IMPOSSIBLE = {
    "nothing": b"",
    "no compression": b"reset",
    "other content": zlib.compress(b"other"),
    "nothing inside": zlib.compress(b""),
    "a cut stream": packed(900.0, (1, 2, b"state"))[:-3],
    "something behind": packed(900.0) + b"more",
    "something inside behind": zlib.compress(struct.pack("<dQ", 900.0, 0) + b"more"),
    "before the boot": packed(-1.0),
    "in the future": packed(NOW + 60),
    "at no time": packed(math.nan),
    "at infinity": packed(math.inf),
    "at 1e300": packed(1e300),
    "more states than there are": packed(900.0, number=2**64 - 1),
    "a state beyond the end": zlib.compress(struct.pack("<dQQQQ", 900.0, 1, 1, 2, 2**63)),
    "a table twice": packed(900.0, (1, 2, b"a"), (1, 2, b"b")),
}


@pytest.mark.parametrize("data", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_reset_is_damaged(data: bytes) -> None:
    with pytest.raises(OSError, match="damaged"):
        unpack_reset(data, NOW)


def test_a_reset_that_unpacks_to_gigabytes_is_damaged() -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 22)) for _ in range(16)) + packer.flush()
    with pytest.raises(OSError, match="damaged"):
        unpack_reset(bomb, NOW)


@few
@given(st.binary(max_size=200), doubles, st.integers(0, 2**64 - 1), st.booleans())
def test_any_reset_is_read_or_damaged(inner: bytes, at: float, number: int, whole: bool) -> None:
    data = struct.pack("<dQ", at, number) + inner if whole else inner
    for bytes_ in (zlib.compress(data), inner):
        with suppress(OSError):
            found = unpack_reset(bytes_, NOW)
            assert 0 <= found.at <= NOW + 1


# --- The minute history ---------------------------------------------------------------------------


@few
@given(
    st.lists(doubles, min_size=5, max_size=5) | st.none(),
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, len(NUMERIC_FIELDS) + 3), doubles), max_size=6
    ),
)
def test_any_row_of_a_history_is_read_or_left_out(
    header: list[float] | None, changes: list[tuple[int, int, float]]
) -> None:
    data = MemoryBytes()
    history = History(data, 8)
    history.start(10.0)
    for minute in range(1, 6):
        history.append(
            minute * 60.0, 1.7e9 + 60 * minute, [float(minute)] * len(NUMERIC_FIELDS), minute
        )
    for row, column, value in changes:
        data.write(HEADER.size + row * ROW.size + column * 8, struct.pack("d", value))
    if header is not None:
        data.write(8, struct.pack("4d", *header[1:]))
    rows = history.rows(0.0)
    assert len(rows) <= 8
    json.dumps(rows, allow_nan=False)
    for row_ in rows:
        assert all(0 <= float(row_[name]) < 2**53 for name in NUMERIC_FIELDS)
    assert 0 <= history.damaged() <= 8
    history.gauge_samples.get(1, 1 << 40)


@pytest.mark.parametrize("header", [(5.0, 0.0, 1e9, 0.0), (5.0, 0.0, 500.0, 2.0**52)])
def test_a_history_of_another_time_begins_anew(
    clock: ManualClock, header: tuple[float, ...]
) -> None:
    """Its origin is yet to come, or its minutes have not been: no minute would be written."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        record(monitor, "any", 1)
        path = Path(segment_path(monitor)).with_name("history-60")
        with path.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("4d", *header))
        clock.advance(120)
        record(monitor, "any", 1)
        clock.advance(120)
        record(monitor, "any", 1)
        assert len(monitor.get_metrics_history()) >= 1
        assert monitor.get_health()["faults"] > 0


# --- Segments -------------------------------------------------------------------------------------


@pytest.fixture
def pair(clock: ManualClock) -> Iterator[tuple[MetricsMonitor, MetricsMonitor]]:
    with (
        MetricsMonitor(shared=True, clock=clock) as reader,
        MetricsMonitor(shared=True, clock=clock) as other,
    ):
        record(reader, "reader", 3)
        record(other, "other", 4)
        yield reader, other


HEADERS: dict[str, tuple[int, float]] = {
    "a process below 0": (Field.PID, -5.0),
    "process 0": (Field.PID, 0.0),
    "a process beyond all": (Field.PID, 2.0**40),
    "its master below 0": (Field.ROOT_PID, -1.0),
    "made before the boot": (Field.CREATED, -1e12),
    "made in the future": (Field.CREATED, 1e12),
    "1e300 requests in flight": (Field.IN_FLIGHT, 1e300),
    "1e300 failures": (Field.FAULTS, 1e300),
    "failures below 0": (Field.FAULTS, -3.0),
    "1e300 percent": (Field.CPU_PCT, 1e300),
    "memory below 0": (Field.MEMORY_BYTES, -1.0),
    "131,072 rows of routes": (DIRECTORY_OFFSET // 8 + 2, 131_072.0),
    "half a row": (DIRECTORY_OFFSET // 8 + 2, 4.5),
}


@pytest.mark.parametrize("name", HEADERS)
def test_an_impossible_header_is_left_out(
    pair: tuple[MetricsMonitor, MetricsMonitor], name: str
) -> None:
    reader, other = pair
    place, value = HEADERS[name]
    path = Path(segment_path(other))
    with path.open("r+b") as file:
        file.truncate(3 << 30)  # as large as it says, and sparse
        file.seek(place * 8)
        file.write(struct.pack("d", value))
    assert numbers(reader)[0] == 3
    health = reader.get_health()
    assert (health["status"], health["segments_left_out"]) == ("degraded", 1)
    record(other, "other", 1)
    record(reader, "reader", 1)
    assert numbers(reader)[1]["/reader"] == 4


@pytest.mark.parametrize("at", [1e12, 2.0**52, -1.0])
def test_usage_of_another_time_is_not_believed(
    pair: tuple[MetricsMonitor, MetricsMonitor], at: float
) -> None:
    reader, other = pair
    with Path(segment_path(other)).open("r+b") as file:
        file.seek(Field.SAMPLED * 8)
        file.write(struct.pack("d", at))
    reader.get_statistics()
    numbers(reader)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(1, len(Field) - 1)
            | st.integers(DIRECTORY_OFFSET // 8, DIRECTORY_OFFSET // 8 + 16)
            | st.integers(HEADER_BYTES // 8, HEADER_BYTES // 8 + 300),
            doubles,
        ),
        min_size=1,
        max_size=3,
    )
)
@example([(Field.FIRST_BLOCK, 8.0)])
@example([(Field.LAST_BLOCK, -3.0)])
def test_any_number_in_a_live_segment(changes: list[tuple[int, float]]) -> None:
    """Every answer is one, and both workers go on recording."""
    clock = ManualClock()
    with (
        MetricsMonitor(shared=True, clock=clock) as reader,
        MetricsMonitor(shared=True, clock=clock) as other,
    ):
        record(reader, "reader", 3)
        record(other, "other", 4)
        with Path(segment_path(other)).open("r+b") as file:
            for place, value in changes:
                file.seek(place * 8)
                file.write(struct.pack("d", value))
        for monitor in (reader, other):
            record(monitor, "later", 1)
            numbers(monitor)
            monitor.get_series()
            clock.advance(61)
        assert reader.total_requests >= 4
        Path(segment_path(other)).unlink(missing_ok=True)
        Path(segment_path(reader)).unlink(missing_ok=True)


# --- What jobs save -------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = st.sampled_from([*no_state(), "problem", "interval", "state"])


@few
@given(st.dictionaries(names, json_values))
def test_any_note_of_alerts_is_read_or_damaged(note: dict[str, Any]) -> None:
    with suppress(CorruptNoteError):
        as_alert_state(parse_note(json.dumps({**no_state(), **note})))


def test_a_note_with_an_unknown_state_is_damaged() -> None:
    with pytest.raises(CorruptNoteError):
        as_alert_state({**no_state(), "statuses": {"rule": {"state": "on fire"}}})


@few
@given(json_values | st.tuples(json_values, json_values, json_values))
def test_any_last_export_is_read_or_none(value: Any) -> None:
    Sent.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[1, {"a": NaN}, {}]',
        '[1, {"a": 1e999}, {}]',
        '[1, {"a": -5}, {}]',
        '[1, {}, {"a": [1000000000, [1], 1.0]}]',
        '[1, {}, {"a": [-1000000000, [1], 1.0]}]',
        '[1, {}, {"a": [1, [-1], 1.0]}]',
        f"[{'9' * 400}, {{}}, {{}}]",
        '["\\ud800", {}, {}]',
    ],
)
def test_an_impossible_last_export_is_none(text: str) -> None:
    assert Sent.from_json(text) is None
