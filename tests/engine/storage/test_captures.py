"""Captured requests in a segment: read as they were written, and never half a one."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.threads import switching_often

from metricsmw.config import CAPTURE
from metricsmw.engine.reading.captures import slowest
from metricsmw.engine.storage.captures import (
    HEAD,
    HEADS,
    Capture,
    CaptureRing,
    read_captures,
    unpack,
)
from metricsmw.engine.storage.keys import Name, Times
from metricsmw.engine.storage.layout import RECORD_BYTES, Kind, chunk_bytes

HOSTILE = st.one_of(
    st.text(st.characters(), max_size=40),
    st.sampled_from(
        (
            "",
            "<script>alert(1)</script>",
            "\x1b[2J\x1b]0;title\x07",
            "\ud800 alone",
            "\u202eright to left",
            "a\0b\nc",
            "x" * 10_000,
            "€" * 10_000,
        )
    ),
)
TEXTS = st.one_of(st.none(), HOSTILE)
SECONDS = st.floats(0, 3600)
CAPTURES = st.builds(
    Capture,
    ended=st.floats(0, 1e9),
    time=st.floats(0, 1e10),
    seconds=SECONDS,
    first_byte=SECONDS,
    status=st.integers(0, 999),
    pid=st.integers(1, 2**31 - 1),
    in_flight=st.integers(-1, 2**31 - 1),
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    name=st.builds(Name, st.sampled_from(("GET", "_OTHER", "")), HOSTILE, st.just(Times.ALL)),
    error=TEXTS,
    request_id=TEXTS,
    user=TEXTS,
    path=TEXTS,
    query=TEXTS,
)
ROWS = 8


def memory() -> memoryview:
    """Memory of a chunk, which forks share."""
    return memoryview(mmap.mmap(-1, chunk_bytes(Kind.CAPTURES, ROWS, RECORD_BYTES)))


def reader(view: memoryview) -> Callable[[], list[Capture]]:
    """Return what reads the whole records."""

    def read(offset: int, size: int) -> bytes:
        return bytes(view[offset : offset + size])

    return lambda: list(read_captures(read, 0, ROWS, 0.0))


@given(CAPTURES)
def test_it_is_read_as_it_was_written_but_for_what_is_too_long(capture: Capture) -> None:
    view = memory()
    written, read = CaptureRing(view, ROWS), reader(view)
    assert len(capture.pack()) <= RECORD_BYTES
    written.write(3, capture)
    (found,) = read()
    assert found[:9] == capture[:9]
    name = Name.unpack(capture.name.pack())
    assert found.name == name
    for field in ("error", "request_id", "user", "path", "query"):
        told, text = getattr(found, field), getattr(capture, field)
        assert (told is None) == (text is None)
        if text is not None:
            whole = text.encode("utf-8", "backslashreplace").decode()
            assert whole.endswith(told) if field == "error" else whole.startswith(told)
            # A name of 500 bytes leaves little to path and query.
            assert told == whole or len(whole.encode()) > 90 or len(capture.name.route) > 90
    json.dumps(slowest([found], CAPTURE, 1e6, 1.7e9), allow_nan=False).encode()


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), st.data())
def test_any_bytes_are_a_request_that_can_be_shown_or_none(raw: bytes, data: st.DataObject) -> None:
    if data.draw(st.booleans()):  # some bytes of a good one changed
        good = bytearray(data.draw(CAPTURES).pack().ljust(RECORD_BYTES, b"\0"))
        for place in data.draw(st.lists(st.integers(0, HEAD.size + 8), max_size=3)):
            good[place] ^= raw[place]
        raw = bytes(good)
    (numbers,) = HEADS.iter_unpack(raw)
    found = unpack(numbers, raw)
    if found is not None:
        json.dumps(slowest([found], CAPTURE, 1e6, 1.7e9), allow_nan=False).encode()


def test_nothing_of_a_longer_one_is_left() -> None:
    view = memory()
    written = CaptureRing(view, ROWS)
    written.write(0, alike(7)._replace(path="/secret" * 20))
    written.write(0, alike(8))
    assert b"secret" not in bytes(view)
    written.clear()
    assert not any(view)


def test_sequences_that_no_worker_has_written_end_with_the_ring() -> None:
    view = memory()
    view[:8] = b"\xff" * 8
    written, read = CaptureRing(view, ROWS), reader(view)
    assert written.read() == {}
    written.write(0, alike(1))
    assert read() == [alike(1)]


def alike(number: int) -> Capture:
    """A request of which every part tells the number."""
    text = f"{number}:" * (number % 10 + 1)
    return Capture(
        ended=1.0 + number,
        time=1.0 + number,
        seconds=number / 1e6,
        first_byte=number / 1e6,
        status=number % 1000,
        pid=number + 1,
        in_flight=number,
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        name=Name("GET", f"/{number}"),
        error=text,
        request_id=str(number),
        path=text,
    )


def number_of(capture: Capture) -> int:
    assert capture == alike(capture.in_flight)
    return capture.in_flight


def test_readers_never_see_half_a_one() -> None:
    view = memory()
    written, read = CaptureRing(view, ROWS), reader(view)
    done = threading.Event()
    failed: list[BaseException] = []

    def watch() -> None:
        last = 0
        try:
            while not done.is_set():
                found = [number_of(capture) for capture in read()]
                last, before = max(found, default=last), last
                assert last >= before
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=watch) for _ in range(7)]
    with switching_often():
        for thread in threads:
            thread.start()
        for number in range(1, 1500):
            written.write(number % ROWS, alike(number))
        done.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert sorted(map(number_of, read())) == list(range(1500 - ROWS, 1500))


def test_a_record_that_is_replaced_while_it_is_copied_is_left_out() -> None:
    view = memory()
    written = CaptureRing(view, ROWS)
    for row in range(ROWS):
        written.write(row, alike(1000 + row))
    records = 0

    def read(offset: int, size: int) -> bytes:
        nonlocal records
        if size != ROWS * 8:
            records += 1
            middle = offset + 3 * RECORD_BYTES + HEAD.size + 10
            first = bytes(view[offset:middle])
            written.write(3, alike(2003))
            return first + bytes(view[middle : offset + size])
        return bytes(view[offset : offset + size])

    found = sorted(number_of(one) for one in read_captures(read, 0, ROWS, 0.0))
    assert records == 1
    assert found == [1000, 1001, 1002, 1004, 1005, 1006, 1007]


class Unfinished(Capture):
    """One that ends its worker while it is written."""

    def pack(self) -> bytes:
        return bytes(RECORD_BYTES + 1)


def test_a_record_that_was_begun_is_none() -> None:
    view = memory()
    written, read = CaptureRing(view, ROWS), reader(view)
    written.write(3, alike(1))
    with pytest.raises(ValueError, match="structure"):
        written.write(3, Unfinished(*alike(2)))
    assert read() == []
    assert CaptureRing(view, ROWS).read() == {}


def test_another_process_never_sees_half_a_one() -> None:
    view = memory()
    written, read = CaptureRing(view, ROWS), reader(view)
    started = memoryview(mmap.mmap(-1, 8)).cast("q")
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=write_for_ever, args=(written, started))
    process.start()
    try:
        while started[0] < 20_000:
            for capture in read():
                number_of(capture)
    finally:
        process.kill()
        process.join()


def write_for_ever(written: CaptureRing, started: memoryview[int]) -> None:
    number = 0
    while True:
        number += 1
        written.write(number % ROWS, alike(number))
        started[0] = number


def test_what_a_killed_worker_leaves_is_whole_and_gone_on_with() -> None:
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        view = memory()
        written, read = CaptureRing(view, ROWS), reader(view)
        started = memoryview(mmap.mmap(-1, 8)).cast("q")
        process = fork.Process(target=write_for_ever, args=(written, started))
        process.start()
        while started[0] < 100:
            list(map(number_of, read()))
            time.sleep(0)
        process.kill()
        process.join()
        left = list(map(number_of, read()))
        # At most the one that was being written is not there.
        assert len(left) >= ROWS - 1
        assert min(left) > max(left) - ROWS - 1
        adopted = CaptureRing(view, ROWS)
        assert sorted(map(number_of, adopted.read().values())) == sorted(left)
        adopted.write(0, alike(5_000_000))
        assert 5_000_000 in map(number_of, read())
