"""Errors by kind: against a plain model of the whole server, and read while they are written."""

from __future__ import annotations

import gc
import json
import os
import random
import struct
import tempfile
import threading
import time
import weakref
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from kits.crew import SharedClock, crew, shared_numbers
from kits.threads import switching_often

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.errors import MOST_KINDS
from metricsmw.engine.storage.errors import MAX_ROUTES
from metricsmw.engine.storage.layout import Kind

KINDS = [type(f"Kind{number}Error", (Exception,), {}) for number in range(4)]
ROUTES = [None, "/a", "/b/{id}"]
WORKER = st.integers(0, 2)
DONE = shared_numbers(1)  # how many errors a worker that fails for ever has counted


def fail(monitor: MetricsMonitor, kind: type[Exception], route: str | None = "/a") -> None:
    """A request to the route that ends by such an exception."""
    try:
        raise kind("secret")
    except Exception as error:
        monitor.recorder.errors.raised(error, 500, route, "GET")


class Seen:
    """What the model knows of a kind."""

    def __init__(self, now: float) -> None:
        self.first = now
        self.times: list[float] = []
        self.routes: set[str] = set()


class Model(RuleBasedStateMachine):
    """Rules do the same to the workers and to the model; any worker tells what it knows."""

    @initialize(start=st.sampled_from([0.0, 59.5, 1000.0, 123_456.25]))
    def begin(self, start: float) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="metricsmw-test-")
        os.environ["METRICSMW_DIR"] = self.folder.name
        self.clock = ManualClock(start=start + 0.125)
        self.workers: list[MetricsMonitor] = []
        self.seen: dict[str, Seen] = {}

    def worker(self, number: int) -> MetricsMonitor:
        return self.workers[number % len(self.workers)]

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def start(self) -> None:
        monitor = MetricsMonitor(shared=True, clock=self.clock)
        monitor.recorder.open()
        self.workers.append(monitor)

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, killed=st.booleans())
    def end(self, number: int, killed: bool) -> None:
        """Its segment stays; the next worker takes it over, errors and all."""
        monitor = self.worker(number)
        if killed:
            monitor.recorder.release()
            monitor.membership.abandon()
        else:
            monitor.close()
        self.workers.remove(monitor)

    @precondition(lambda self: self.workers)
    @rule(
        number=WORKER,
        kind=st.sampled_from(KINDS),
        route=st.sampled_from(ROUTES),
        times=st.integers(1, 5),
    )
    def fail(self, number: int, kind: type[Exception], route: str | None, times: int) -> None:
        for _ in range(times):
            fail(self.worker(number), kind, route)
            self.note(f"{kind.__module__}.{kind.__qualname__}", route)

    @precondition(lambda self: self.workers)
    @rule(
        number=WORKER, status=st.sampled_from([500, 503, 404, 200]), route=st.sampled_from(ROUTES)
    )
    def answer(self, number: int, status: int, route: str | None) -> None:
        """Without an exception: only a status from 500 on is one, of each route by itself."""
        recorder = self.worker(number).recorder
        recorder.end(recorder.begin(), status, route, "GET")
        if status >= 500:
            self.note(f"HTTP {status}", route, by_route=True)

    def note(self, name: str, route: str | None, by_route: bool = False) -> None:
        said = f"GET {route or '<unmatched>'}"
        key = f"{name} {said}" if by_route else name
        seen = self.seen.setdefault(key, Seen(self.clock.now))
        seen.times.append(self.clock.now)
        seen.routes.add(said)

    @rule(seconds=st.sampled_from([0.125, 1, 59, 60, 61, 299, 1800, 3599, 3600, 9000]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.workers)
    @rule(number=WORKER)
    def reset(self, number: int) -> None:
        self.clock.advance(0.125)
        self.worker(number).reset_statistics()
        self.clock.advance(0.125)
        self.seen.clear()

    @invariant()
    def agree(self) -> None:
        if not getattr(self, "workers", None):
            return
        now, wall = self.clock.now, self.clock.wall
        for monitor in self.workers:
            rows = {
                f"{row['type']} {row['routes'][0]}" if row["where"] is None else row["type"]: row
                for row in monitor.get_errors()
            }
            assert rows.keys() == self.seen.keys()
            minute = int(now // 60)
            for name, seen in self.seen.items():
                row = rows[name]
                ago = [minute - int(at // 60) for at in seen.times]
                assert row["count"] == len(seen.times)
                assert row["bars"] == [ago.count(59 - place) for place in range(60)]
                assert set(row["routes"]) == seen.routes
                assert row["new"] == (now - seen.first <= 300)
                for field, at in (("first_seen", seen.first), ("last_seen", seen.times[-1])):
                    told = datetime.fromisoformat(str(row[field])).timestamp()  # type: ignore[literal-required]
                    assert told == pytest.approx(wall - (now - at), abs=0.01)
            lasts = [row["last_seen"] for row in monitor.get_errors()]
            assert lasts == sorted(lasts, reverse=True)

    def teardown(self) -> None:
        for monitor in getattr(self, "workers", ()):
            monitor.close()
        if hasattr(self, "folder"):
            del os.environ["METRICSMW_DIR"]
            self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=12, stateful_step_count=20)


def test_nothing_is_taken_before_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    with MetricsMonitor(shared=True) as monitor:
        recorder = monitor.recorder
        for status in (200, 404, 301):
            recorder.end(recorder.begin(), status, "/a", "GET")
        assert recorder.segment is not None
        assert Kind.ERRORS not in [chunk.kind for chunk in recorder.segment.chunks]
        fail(monitor, KeyError)
        assert [chunk.kind for chunk in recorder.segment.chunks].count(Kind.ERRORS) == 1


def test_a_worker_that_joins_late_takes_its_errors_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)  # in which any other user could rename what is in it
    monkeypatch.setenv("METRICSMW_DIR", str(folder / "metrics"))
    clock = ManualClock()
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        fail(monitor, KeyError)
        assert monitor.get_health()["mode"] == "private"
        folder.chmod(0o700)
        clock.advance(10)
        for kind in (KeyError, ValueError):
            fail(monitor, kind)
        assert monitor.get_health()["mode"] == "shared"
        found = {row["type"]: row["count"] for row in monitor.get_errors()}
        assert found == {"KeyError": 2, "ValueError": 1}


def test_further_kinds_share_one_and_a_reset_makes_room() -> None:
    clock = ManualClock()
    monitor = MetricsMonitor(clock=clock)
    kinds = [type(f"E{number}", (Exception,), {}) for number in range(100)]
    for kind in kinds:
        clock.advance(1)
        for _ in range(2):
            fail(monitor, kind)
    rows = monitor.get_errors(1000)
    assert len(rows) == MOST_KINDS + 1
    (other,) = [row for row in rows if row["type"] == "<other>"]
    assert other["count"] == 2 * (100 - MOST_KINDS)
    assert other["new"] is False
    assert sum(row["count"] for row in rows) == 200
    clock.advance(1)
    monitor.reset_statistics()
    clock.advance(1)
    assert monitor.get_errors() == []
    fail(monitor, kinds[99])
    (row,) = monitor.get_errors()
    assert (row["type"].rpartition(".")[2], row["count"]) == ("E99", 1)
    kinds_of_chunks = [chunk.kind for chunk in monitor.recorder.open().chunks]
    assert kinds_of_chunks.count(Kind.ERRORS) == 4


def test_routes_of_a_kind_are_bounded() -> None:
    monitor = MetricsMonitor()
    for number in range(MAX_ROUTES + 3):
        fail(monitor, KeyError, f"/{number}" * 50)
    (row,) = monitor.get_errors()
    assert len(row["routes"]) == MAX_ROUTES + 1
    assert row["routes"][-1] == "<other>"
    assert len({*row["routes"]}) == MAX_ROUTES + 1


LONG = st.text(st.sampled_from("/aé…\udc80\x1b"), min_size=100, max_size=600)


@settings(max_examples=20)
@given(st.lists(LONG, min_size=1, max_size=8, unique=True))
def test_a_route_has_one_name_everywhere(routes: list[str]) -> None:
    with MetricsMonitor() as monitor:
        recorder, errors = monitor.recorder, monitor.recorder.errors
        for route in routes:
            recorder.fail(
                recorder.begin(), 500, route, "GET", errors.raised(KeyError(), 500, route, "GET")
            )
        names = {f"{row['method']} {row['route']}" for row in monitor.get_routes()}
        assert {f"{row['method']} {row['route']}" for row in monitor.get_slowest()} == names
        (row,) = monitor.get_errors()
        told = {*row["routes"]}
        is_cut = "<other>" in told  # as there was no room for all
        told.discard("<other>")
        assert told <= names
        assert told
        assert is_cut == (told != names)


def test_orders_and_limits() -> None:
    clock = ManualClock()
    monitor = MetricsMonitor(clock=clock)
    for times, kind in ((3, KeyError), (1, ValueError), (2, TypeError)):
        clock.advance(1)
        for _ in range(times):
            fail(monitor, kind)
    assert [row["type"] for row in monitor.get_errors()] == ["TypeError", "ValueError", "KeyError"]
    by_count = monitor.get_errors(2, sort="count")
    assert [row["type"] for row in by_count] == ["KeyError", "TypeError"]
    for bad in ({"limit": 0}, {"sort": "type"}, {"new_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            monitor.get_errors(**bad)  # type: ignore[arg-type]


def test_messages_only_by_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without it neither keeps any, nor tells those of others."""
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    with (
        MetricsMonitor(shared=True, capture=("message",)) as told,
        MetricsMonitor(shared=True) as monitor,
    ):
        fail(monitor, ValueError)
        assert [row["message"] for row in told.get_errors()] == [None]
        fail(told, KeyError)
        assert [row["message"] for row in told.get_errors()] == ["'secret'", None]
        assert [row["message"] for row in monitor.get_errors()] == [None, None]
    with pytest.raises(ValueError, match=r"capture may have .*message"):
        MetricsMonitor(capture=("body",))
    with pytest.raises(TypeError, match="capture must be"):
        MetricsMonitor(capture="message")  # type: ignore[arg-type]


def test_a_failure_inside_is_a_fault_and_no_more() -> None:
    monitor = MetricsMonitor()

    class Nameless(type):
        def __getattribute__(cls, name: str) -> object:
            if name == "__qualname__":
                raise RuntimeError("no name")
            return super().__getattribute__(name)

    class NamelessError(Exception, metaclass=Nameless):
        pass

    fail(monitor, NamelessError)
    recorder = monitor.recorder
    recorder.end(recorder.begin(), 200, "/a", "GET")
    assert monitor.get_health()["faults"] == 1
    assert monitor.get_errors() == []


numbers = st.floats() | st.integers(-5, 2**60).map(float)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    doubles=st.lists(st.tuples(st.integers(0, 132), numbers), max_size=3),
    texts=st.lists(st.tuples(st.integers(1056, 4096), st.binary(max_size=300)), max_size=2),
)
def test_whatever_is_in_a_file_each_answer_is_one(
    monkeypatch: pytest.MonkeyPatch,
    doubles: list[tuple[int, float]],
    texts: list[tuple[int, bytes]],
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="metricsmw-test-") as folder,
        monkeypatch.context() as patch,
    ):
        patch.setenv("METRICSMW_DIR", folder)
        damage(doubles, texts)


def damage(doubles: list[tuple[int, float]], texts: list[tuple[int, bytes]]) -> None:
    """Two workers, the chunk of one of which is written into; they go on."""
    with MetricsMonitor(shared=True) as reader, MetricsMonitor(shared=True) as other:
        fail(reader, KeyError)
        fail(other, ValueError)
        segment = other.recorder.open()
        (chunk,) = [chunk for chunk in segment.chunks if chunk.kind is Kind.ERRORS]
        for place, number in doubles:
            chunk.view[place * 8 : place * 8 + 8] = struct.pack("d", number)
        for place, data in texts:
            chunk.view[place : place + len(data)] = data
        for monitor in (reader, other):
            json.dumps(monitor.get_errors(), allow_nan=False).encode()
            fail(monitor, KeyError)
            rows = monitor.get_errors()
            assert "KeyError" in [row["type"] for row in rows]
            assert all(row["count"] > 0 for row in rows)
            monitor.get_statistics()


# --- read while they are written -----------------------------------------------------------------


def check(monitor: MetricsMonitor) -> int:
    """Whatever a reader finds is a whole row; return how many errors there are."""
    total = 0
    for row in monitor.get_errors(1000):
        assert row["count"] == sum(row["bars"]) > 0
        assert row["first_seen"] <= row["last_seen"]
        name = row["type"].rpartition(".")[2]
        assert name in [kind.__name__ for kind in KINDS]
        assert row["routes"] == [f"GET /{name}"]
        assert row["where"] is not None
        assert row["where"]["function"] == "fail"
        total += row["count"]
    return total


def test_a_segment_that_is_left_is_not_held(clock: ManualClock) -> None:
    monitor = MetricsMonitor(clock=clock)
    segment = weakref.ref(monitor.recorder.open())
    fail(monitor, KINDS[0])
    monitor.close()
    gc.collect()
    assert segment() is None
    fail(monitor, KINDS[1])  # it opens another one
    assert [row["count"] for row in monitor.get_errors()] == [1]
    monitor.close()


def test_threads_read_and_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of them, that are switched all the time: no half of a row, and no count is lost."""
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    each, problems = 300, []

    def write(number: int) -> None:
        kind = KINDS[number]
        for _ in range(each):
            fail(monitor, kind, f"/{kind.__name__}")

    def read() -> None:
        try:
            before = 0
            while before < 4 * each and writers_live():
                now = check(monitor)
                assert now >= before
                before = now
        except AssertionError as error:
            problems.append(error)

    def writers_live() -> bool:
        return any(thread.is_alive() for thread in writers)

    with MetricsMonitor(shared=True) as monitor, switching_often():
        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        readers = [threading.Thread(target=read) for _ in range(4)]
        for thread in (*writers, *readers):
            thread.start()
        for thread in (*writers, *readers):
            thread.join()
        assert problems == []
        assert check(monitor) == 4 * each


def fail_for_ever(monitor: MetricsMonitor) -> None:
    while True:
        for kind in KINDS:
            fail(monitor, kind, f"/{kind.__name__}")
            DONE[0] += 1.0


def test_a_worker_that_is_killed_as_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had counted stays, also once another worker has taken its segment over."""
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    choose = random.Random(7)
    DONE[0] = 0.0
    with crew(0, SharedClock()) as workers:
        reader = workers.start()
        for _ in range(5):
            worker = workers.start()
            worker.begin(fail_for_ever)
            seen, limit = DONE[0], time.monotonic() + 30
            while DONE[0] < seen + 40 + choose.random() * 20:
                assert time.monotonic() < limit
                reader.do(check)
            worker.kill()
            # One may be counted, and not yet noted as done; and one of each life before.
            total = reader.do(check)
            assert DONE[0] <= total <= DONE[0] + 1
            DONE[0] = total
