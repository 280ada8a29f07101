"""Which captured requests stay where there is no room for all of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metricsmw.clock import ManualClock
from metricsmw.config import Settings
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.recording import captures
from metricsmw.engine.recording.captures import Captures, Evidence
from metricsmw.engine.storage.captures import Capture, CaptureRing
from metricsmw.engine.storage.keys import Name, Times
from metricsmw.engine.storage.layout import Field, Kind, Owner
from metricsmw.engine.storage.memory import AnonymousMemory
from metricsmw.engine.storage.segment import Segment

SETTINGS = Settings(window_seconds=60)
KEPT = 66.0  # the longest time that the routes' window covers
REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 20, allow_nan=False),  # since the one before
        st.floats(0.001, 10),
        st.sampled_from((Name("GET", "/a"), Name("GET", "/b"), Name("POST", "/a"))),
        st.sampled_from((200, 404, 500)),
    ),
    max_size=60,
)


class Worker:
    """A segment's captured requests, with a reset that others may make."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.clock = ManualClock()
        self.reset_at = 0.0
        self.segment = Segment(AnonymousMemory(), window_seconds=60, now=1000.0, owner=Owner(1, 1))
        self.faults = FaultLog()
        self.settings = settings
        self.open()

    def open(self) -> None:
        self.captures = Captures(
            self.segment, self.settings, self.clock, self.faults, lambda: self.reset_at
        )

    def add(self, name: Name, seconds: float, status: int = 200, request: Any = None) -> None:
        now = self.clock.now
        found = self.captures.ask(seconds, now, "ann", request, None)
        if found is not None:
            self.captures.add(name, seconds, now, status, "", found)

    def kept(self) -> list[Capture]:
        chunks = [chunk for chunk in self.segment.chunks if chunk.kind is Kind.CAPTURES]
        assert len(chunks) <= 1
        rings = [CaptureRing(chunk.view, chunk.rows) for chunk in chunks]
        return [one for ring in rings for one in ring.read().values()]


def could_be_the_slowest(made: list[tuple[float, float, Name, int]]) -> int:
    """How many requests of the window are not outdone by a later one of their route and class."""
    now = made[-1][0]
    slowest: dict[tuple[Name, int], float] = defaultdict(float)
    count = 0
    for ended, seconds, name, status in reversed(made):
        if ended >= now - KEPT and seconds > slowest[name, status // 100]:
            slowest[name, status // 100] = seconds
            count += 1
    return count


@given(REQUESTS, st.integers(1, 20))
def test_the_slowest_of_a_route_stays_and_what_has_room(
    requests: list[tuple[float, float, Name, int]], rows: int
) -> None:
    most, captures.CAPTURE_ROWS = captures.CAPTURE_ROWS, rows
    try:
        worker = Worker()
        made: list[tuple[float, float, Name, int]] = []
        for number, (pause, seconds, name, status) in enumerate(requests):
            worker.clock.advance(pause)
            if number == len(requests) // 2:
                worker.open()  # adopted by another worker
            now = worker.clock.now
            worker.add(name, seconds, status)
            made.append((now, seconds, name, status))
    finally:
        captures.CAPTURE_ROWS = most
    now = worker.clock.now
    kept = [(one.ended, one.seconds, one.name, one.status) for one in worker.kept()]
    window = [one for one in made if one[0] >= now - KEPT]
    inside = [one for one in kept if one[0] >= now - KEPT]
    assert all(one in made for one in kept)
    assert len(inside) == len(set(inside)) or len(window) > len(set(window))
    # At no time were there more than so many in a window: nothing had to go.
    if all(sum(t - KEPT <= one[0] <= t for one in made) <= rows for t, *_ in made):
        assert sorted(inside) == sorted(window)
    groups: dict[tuple[Name, int], list[float]] = defaultdict(list)
    for _, seconds, name, status in window:
        groups[name, status // 100].append(seconds)
    if all(could_be_the_slowest(made[: n + 1]) <= rows for n in range(len(made))):
        for (name, number), all_ in groups.items():
            of_route = [one for one in inside if (one[2], one[3] // 100) == (name, number)]
            assert max(one[1] for one in of_route) == max(all_)


def test_a_full_ring_gives_up_the_fastest_of_the_route_that_has_most() -> None:
    worker = Worker()
    busy, quiet = Name("GET", "/busy"), Name("GET", "/quiet", Times.NOT_PLAIN)
    worker.add(quiet, 0.001)
    for number in range(1000):
        worker.add(busy, 1.0 + number % 500)
    kept = worker.kept()
    assert len(kept) == 256
    assert [one.seconds for one in kept if one.name == quiet.of_all()] == [0.001]
    assert min(one.seconds for one in kept if one.name == busy) == 373.0


def test_what_a_reset_has_hidden_makes_room_first() -> None:
    worker = Worker()
    for _ in range(256):
        worker.add(Name("GET", "/"), 9.0)
    worker.clock.advance(1)
    worker.reset_at = worker.clock.now
    worker.add(Name("GET", "/"), 0.1)
    assert sorted(one.seconds for one in worker.kept())[:2] == [0.1, 9.0]
    worker.captures.clear()
    assert worker.kept() == []


class Told:
    """A request of which everything is known, and which tells only what it is asked for."""

    def evidence(self, carrier: object, wanted: tuple[str, ...]) -> Evidence:
        told = {name: f"the {name}" for name in wanted}
        return Evidence(990.0, 995.0, 3, request_id="id", **told)  # type: ignore[arg-type]


def test_times_are_those_of_the_request() -> None:
    worker = Worker(Settings(window_seconds=60, capture=("path",)))
    worker.add(Name("GET", "/"), 10.0, request=Told())
    (one,) = worker.kept()
    assert (one.ended, one.time, one.seconds) == (1000.0, 1_700_000_000.0 - 10.0, 10.0)
    assert (one.first_byte, one.in_flight, one.request_id) == (5.0, 3, "id")
    assert (one.path, one.query, one.user) == ("the path", None, None)


def test_a_request_that_cannot_tell_is_a_fault_and_no_more() -> None:
    class Broken:
        def evidence(self, carrier: object, wanted: tuple[str, ...]) -> Evidence:
            raise RuntimeError("broken")

    worker = Worker()
    worker.add(Name("GET", "/"), 1.0, request=Broken())
    assert worker.kept() == []
    worker.add(Name("GET", "/"), 1.0)
    assert len(worker.kept()) == 1


def test_at_most_four_slow_ones_a_second() -> None:
    captures = Worker().captures
    taken = []
    for number in range(100):
        now = 1000.0 + number / 20
        if captures.may_take(now):
            captures.take(now)
            taken.append(int(now))
    assert [taken.count(second) for second in range(1000, 1005)] == [4] * 5


def test_without_room_none_is_kept_and_it_is_said_once() -> None:
    class Full(AnonymousMemory):
        def check_growth(self, size: int) -> None:
            raise OSError("no room")

    worker = Worker()
    worker.segment = Segment(Full(), window_seconds=60, now=1000.0, owner=Owner(1, 1))
    worker.open()
    for _ in range(3):
        worker.add(Name("GET", "/"), 1.0)
    assert worker.kept() == []
    assert worker.segment.header[Field.FAULTS] == 1.0
