"""`LeaderLock` and notes: one leads, whoever hangs is replaced, and no file can hold up anybody."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw.clock import ManualClock
from metricsmw.engine.directory import open_directory
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.workers.job import job_health
from metricsmw.engine.workers.leader import LeaderLock
from metricsmw.engine.workers.notes import CorruptNoteError, parse_note
from metricsmw.engine.workers.registry import JobRegistry


class Member:
    """A worker of a server, or a private monitor."""

    is_open, is_closed, is_serving = True, False, True

    def __init__(self, directory: Path | None) -> None:
        self.shared_directory = None if directory is None else open_directory(directory)
        self.faults = FaultLog()
        self.jobs = JobRegistry()


Enter = Callable[[], LeaderLock]


@pytest.fixture
def enter(tmp_path: Path, clock: ManualClock) -> Enter:
    """Makes a further worker's part in the same job."""
    return lambda: LeaderLock(Member(tmp_path), "work", clock.monotonic)


def health(directory: Path, clock: ManualClock) -> dict[str, str]:
    return dict(job_health(Member(directory), clock.monotonic))


def test_one_leads_until_it_stops(enter: Enter) -> None:
    one, two = enter(), enter()
    assert one.acquire()
    assert one.acquire()
    assert not two.acquire()
    assert one.write({"n": 1})
    assert not two.write({"n": 2})
    assert two.read() == {"n": 1}
    one.release()
    assert two.acquire()
    assert two.write({"n": 2})
    assert one.read() == {"n": 2}
    assert (one.terms, two.terms) == (1, 1)


def test_who_is_late_is_replaced_and_sees_it(
    enter: Enter, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = enter(), enter(), enter()
    assert one.acquire()
    one.promise(30)
    assert one.write({"told": 1})
    clock.advance(30)
    assert not two.acquire()
    assert health(tmp_path, clock) == {"work": "operational"}
    clock.advance(12)
    assert health(tmp_path, clock) == {"work": "late by 12 s"}
    assert one.is_leader  # as long as nobody minds
    assert two.acquire()
    (message,) = caplog.messages
    assert message == "metricsmw: the worker that leads work hangs; this one takes over"
    assert not three.acquire()
    assert two.write({"told": 2})
    # It comes back: from wherever it hung, it neither leads nor writes.
    assert not one.is_leader
    assert not one.write({"told": 1})
    assert not one.acquire()
    one.promise(30)
    assert two.read() == {"told": 2}
    assert two.is_leader
    assert health(tmp_path, clock) == {"work": "operational"}
    two.promise(30)
    clock.advance(31)
    assert one.acquire()
    assert not two.is_leader


def test_of_many_that_take_over_at_once_one_leads(enter: Enter, clock: ManualClock) -> None:
    for _ in range(20):
        hung = enter()
        assert hung.acquire()
        hung.promise(1)
        clock.advance(2)
        others = [enter() for _ in range(6)]
        begin = threading.Barrier(len(others))

        def take(one: LeaderLock, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for _ in range(3):
                one.acquire()

        threads = [threading.Thread(target=take, args=(one,)) for one in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.is_leader for one in [hung, *others]) == 1
        assert not hung.is_leader
        for one in others:
            one.release()


def test_who_promised_nothing_is_never_late(enter: Enter, clock: ManualClock) -> None:
    one, two = enter(), enter()
    assert one.acquire()
    one.promise(1)
    one.release()
    assert two.acquire()  # by hand: what the leader before promised is not its promise
    clock.advance(1e6)
    assert not one.acquire()


@pytest.mark.parametrize("written", ["", "soon", "nan", "-5", "1e300", "\0" * 64])
def test_a_deadline_that_no_leader_wrote_is_none(
    enter: Enter, clock: ManualClock, tmp_path: Path, written: str
) -> None:
    one, two = enter(), enter()
    assert one.acquire()
    (tmp_path / "once-work.lock").write_text(written)
    clock.advance(1e6)
    assert not two.acquire()
    assert health(tmp_path, clock) == {"work": "operational"}


def test_what_nobody_leads_says_nothing(enter: Enter, clock: ManualClock, tmp_path: Path) -> None:
    one = enter()
    assert one.acquire()
    one.promise(1)
    assert one.write({"problem": "failing: disk full"})
    assert health(tmp_path, clock) == {"work": "failing: disk full"}
    one.release()
    clock.advance(60)
    assert health(tmp_path, clock) == {}


def test_a_private_monitor_is_late_too(clock: ManualClock) -> None:
    member = Member(None)
    one = LeaderLock(member, "work", clock.monotonic)
    assert one.acquire()
    one.promise(30)
    clock.advance(35)
    assert job_health(member, clock.monotonic) == {"work": "late by 5 s"}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_text('{"problem": "planted"}')
    path.symlink_to(target)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [pipe, link, folder])
def test_what_is_no_file_of_ours_is_never_waited_for(
    enter: Enter, clock: ManualClock, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    one = enter()
    assert one.acquire()
    plant(tmp_path / "once-work.json")
    with pytest.raises(CorruptNoteError):
        one.read()
    assert health(tmp_path, clock)["work"].startswith("its note is damaged: it cannot be read")
    plant(tmp_path / "once-other.lock")
    other = LeaderLock(Member(tmp_path), "other", clock.monotonic)
    with pytest.raises(OSError, match=r"regular file|symbolic links|directory"):
        other.acquire()
    assert list(health(tmp_path, clock)) == ["work"]


@pytest.mark.parametrize("plant", [pipe, link])
def test_a_leader_puts_its_note_in_their_place(
    enter: Enter, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    one = enter()
    assert one.acquire()
    plant(tmp_path / "once-work.json")
    planted = os.listdir(tmp_path)
    assert one.write({"n": 1})
    assert one.read() == {"n": 1}
    assert set(os.listdir(tmp_path)) == {"once-work.json", "once-work.lock", *planted}


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": -Infinity}',
        b'{"a": %s}' % (b"9" * 400),
        b'{"a": %s}' % (b"9" * 5000),
        b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}",
        b"[" * 100_000,
        b'{"a": "' + b"x" * (5 << 20) + b'"}',
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_note(text: bytes) -> None:
    with pytest.raises(CorruptNoteError):
        parse_note(text)


plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text()
plain |= st.floats(allow_nan=False, allow_infinity=False)
notes = st.dictionaries(
    st.text(),
    st.recursive(
        plain, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=9
    ),
)


@given(notes)
def test_a_note_is_read_as_it_was_written(note: dict[str, Any]) -> None:
    assert parse_note(json.dumps(note).encode()) == note


@given(st.binary(max_size=200) | notes.map(lambda note: json.dumps(note).encode()[1:]))
def test_anything_else_is_damage_and_nothing_worse(text: bytes) -> None:
    with suppress(CorruptNoteError):
        assert isinstance(parse_note(text), dict)
