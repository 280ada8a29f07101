"""docs/layout.md says where the bytes of a segment are, and so does the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metricsmw.engine.reading.counts import CLASSES
from metricsmw.engine.storage import layout
from metricsmw.engine.storage.captures import HEAD
from metricsmw.engine.storage.histogram import ROUTE_BUCKETS
from metricsmw.engine.storage.layout import (
    ANSWER_SHAPE,
    ROUTE_SHAPE,
    SERVER_SHAPE,
    Field,
    Kind,
    Lane,
    RouteLane,
)

PAGE = (Path(__file__).parents[3] / "docs" / "layout.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the table under that line."""
    _, _, rest = PAGE.partition(heading + "\n|---")
    assert rest, heading
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_number_of_the_layout() -> None:
    assert f"This is layout {layout.LAYOUT:.0f}." in PAGE
    assert layout.LAYOUT == 4


def test_the_header() -> None:
    rows = table("| offset | field | what |")
    assert {name: int(offset) for offset, name, _ in rows} == {
        field.name: field * 8 for field in Field
    }
    assert f"From offset {layout.DIRECTORY_OFFSET} on is the directory" in PAGE
    assert f"up to {layout.MAX_CHUNKS} entries of {layout.DIRECTORY_ENTRY * 8} bytes" in PAGE


def test_the_chunks() -> None:
    rows = table("| kind | number | what |")
    assert {name: int(number) for name, number, _ in rows} == {kind.name: kind for kind in Kind}
    assert f"They begin at offset {layout.FIXED_BYTES}," in PAGE


def test_the_servers_table() -> None:
    ((_, offset, *numbers),) = table(
        "| table | offset | rows | lanes | checkpoints | bytes of a name |"
    )
    shape = SERVER_SHAPE
    assert int(offset) == layout.SERVER_OFFSET
    assert list(map(int, numbers)) == [shape.rows, shape.lanes, shape.slots, shape.name_bytes]
    lanes = [int(lane) for lane, _ in table("| lane of the server's row | what |")]
    counted = [Lane.CLASSES + number for number in CLASSES]
    assert lanes == [Lane.ERRORS, Lane.ABANDONED, Lane.SERVER_ERRORS, *counted]
    assert max(lanes) < layout.SERVER_LANES


@pytest.mark.parametrize(("column", "shape"), [(1, ROUTE_SHAPE), (2, ANSWER_SHAPE)])
def test_the_sparse_tables(column: int, shape: layout.BlockShape) -> None:
    rows = table("| part | offset in a table of routes | in a table of answers |")
    said = {re.split(r"[:,]", row[0])[0]: row[column] for row in rows}
    found = {
        "labels": 0,
        "times": shape.since,
        "in use": shape.in_use,
        "peaks": shape.peaks,
        "facts": shape.facts,
        "names": shape.names,
        "current state": shape.current,
        "checkpoints": shape.checkpoint(0),
        "base": shape.base,
        "size": shape.size,
    }
    assert list(said) == list(found)
    assert all(int(said[name]) == offset for name, offset in found.items() if said[name])


def test_the_blocks() -> None:
    assert f"**A state** is {layout.BLOCKS} blocks of {layout.BLOCK_BYTES} bytes" in PAGE
    assert f"has {layout.BLOCK_LANES} lanes of each of the {layout.TABLE_ROWS} rows" in PAGE
    assert f"Block\n{layout.COUNTER_BLOCK} has the counters" in PAGE
    rows = table("| lane of the counter block | what |")
    firsts = [int(row[0].split(" ")[0]) for row in rows]
    lanes = "ERRORS", "ABANDONED", "STREAMS", "SERVER_ERRORS", "REST", "ANSWERS"
    assert firsts == [RouteLane[name] - ROUTE_BUCKETS for name in lanes]
    assert rows[-1][0] == f"{firsts[-1]} to {firsts[-1] + layout.MAX_ANSWERS - 1}"


def test_captured_requests() -> None:
    rows = table("| offset in a record | bytes | what |")
    assert [(int(offset), size) for offset, size, _ in rows] == [
        (0, "8"), (8, "8"), (16, "8"), (24, "8"),
        (32, "4"), (36, "4"), (40, "4"), (44, "4"),
        (48, "16"), (64, "8"), (HEAD.size, ""),
    ]  # fmt: skip
    assert HEAD.format == "=4d4i16s8s"
    assert f"a record of {layout.RECORD_BYTES} bytes" in PAGE
    assert f"has {layout.CAPTURE_ROWS} rows" in PAGE
