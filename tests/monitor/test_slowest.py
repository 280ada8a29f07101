"""Captured requests, against a plain model: what must be captured is, and nothing else."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.crew import SharedClock, crew

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording import routes
from metricsmw.engine.recording.slowness import percentile_99

WINDOW, STEP, ROUTE_STEP = 60, 1.0, 6.0
THRESHOLD = 2.0
MOST_A_SECOND = 4
ROUTES = ("/a", "/b")
# Seconds; many alike, so that a 99th percentile is not the maximum, and a few that are slow.
LATENCIES = st.one_of(st.sampled_from((0.01, 0.011, 0.5, 1.9, 3.0)), st.floats(0.001, 5))
RUNS = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.1, 0.9, 7.0, 40.0)),  # since the run before
        st.integers(1, 120),  # so many alike
        LATENCIES,
        st.sampled_from(ROUTES),
        st.sampled_from((200, 404, 500)),
    ),
    max_size=12,
)
RESETS = st.integers(0, 12)


def bucket_end(seconds: float) -> float:
    return math.pow(2.0, math.ceil(math.ceil(math.log2(seconds) * 32) / 2) / 16)


@dataclass
class Row:
    """The plain answers of a route, or all others of it."""

    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    step: int = -1
    step_max: float = 0.0
    slow_from: float = 0.0

    def percentile_99(self, step: int, since: int) -> float:
        """The end of its bucket, over the steps of the window; infinite where nothing is known."""
        ends = sorted(
            bucket_end(seconds)
            for number, all_ in self.latencies.items()
            if max(step - 10, since) <= number
            for seconds in all_
        )
        return ends[-(-len(ends) * 99 // 100) - 1] if ends else math.inf


class Model:
    """Lists, sorting and comparisons."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bool], Row] = defaultdict(Row)
        self.captured: list[tuple[float, float, str, int]] = []
        self.taken: dict[int, int] = defaultdict(int)
        self.step = -1  # that of the last request; -1: there was none
        self.since = 0  # the first step that has nothing from before a reset
        self.plain: dict[str, int] = {}

    def record(self, now: float, seconds: float, route: str, status: int) -> None:
        plain = self.plain.setdefault(route, status if status == 200 else 200)
        row = self.rows[route, status == plain]
        step = self.step = int(now // ROUTE_STEP)
        if step != row.step:
            row.step, row.step_max, row.slow_from = step, 0.0, 0.0
        if not row.slow_from:
            row.slow_from = min(row.percentile_99(step, self.since), THRESHOLD)
        is_captured = seconds > row.step_max
        if not is_captured and seconds > row.slow_from and self.taken[int(now)] < MOST_A_SECOND:
            self.taken[int(now)] += 1
            is_captured = True
        if is_captured:
            self.captured.append((now, seconds, route, status))
            row.slow_from = min(row.percentile_99(step, self.since), THRESHOLD)
        row.step_max = max(row.step_max, seconds)
        row.latencies[step].append(seconds)

    def reset(self, now: float) -> None:
        self.captured.clear()
        if self.step < 0:  # the reset has opened the segment
            self.step = int(now // ROUTE_STEP)
        self.since = self.step + 1
        for row in self.rows.values():
            row.step_max = row.slow_from = 0.0

    def window(self, now: float) -> list[tuple[float, str, int]]:
        start = (now // ROUTE_STEP - 10) * ROUTE_STEP
        found = [one for one in self.captured if one[0] >= start]
        found.sort(key=lambda one: (-one[1], -one[0]))
        return [(round(seconds * 1000, 2), route, status) for _, seconds, route, status in found]


@given(RUNS, RESETS)
def test_what_must_be_captured_is_and_nothing_else(
    runs: list[tuple[float, int, float, str, int]], reset_at: int
) -> None:
    clock = ManualClock(start=6000.0)
    model = Model()
    with MetricsMonitor(WINDOW, clock=clock, capture_threshold_seconds=THRESHOLD) as monitor:
        for number, (pause, times, seconds, route, status) in enumerate(runs):
            clock.advance(pause)
            if number == reset_at:
                monitor.reset_statistics()
                model.reset(clock.now)
            for _ in range(times):
                monitor.record_request(seconds * 1000, method="GET", route=route, status=status)
                model.record(clock.now, seconds * 1000 * 0.001, route, status)
        told = monitor.get_slowest(limit=1000)
        found = [(row["latency_ms"], row["route"], row["status"]) for row in told]
        due = model.window(clock.now)
        assert len(due) < 256
        assert sorted(found) == sorted(due)
        assert [row[0] for row in found] == [row[0] for row in due]


def test_the_percentile_is_worked_out_once_for_a_capture_at_most(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []

    def counted(*where: Any) -> float:
        found.append(percentile_99(*where))
        return found[-1]

    monkeypatch.setattr(routes, "percentile_99", counted)
    with MetricsMonitor(window_seconds=WINDOW, clock=clock) as monitor:
        for seconds, times in ((0.1, 1), (0.1, 0), (0.5, 1), (0.2, 1), (0.01, 0)):
            found.clear()
            monitor.record_request(1000 * seconds, method="GET", route="/a", status=200)
            assert len(found) == times, seconds
        clock.advance(ROUTE_STEP)  # the first one of the next step is captured, too
        found.clear()
        monitor.record_request(10.0, method="GET", route="/a", status=200)
        assert len(found) == 1
        assert len(monitor.get_slowest()) == 4


def test_the_slowest_of_each_route_is_there_however_busy_another_is(
    clock: ManualClock,
) -> None:
    with MetricsMonitor(60, clock=clock) as monitor:
        for number in range(200):
            monitor.record_request(number + 1.0, method="GET", route=f"/{number}", status=200)
        for number in range(2000):
            clock.advance(0.01)
            monitor.record_request(1000 + number, method="GET", route="/busy", status=200)
        for number in range(199):
            (row,) = monitor.get_slowest(f"/{number}")
            assert row["latency_ms"] == number + 1.0
        assert monitor.get_slowest(limit=1)[0]["latency_ms"] == 2999.0
        assert len(monitor.get_slowest(limit=1000)) == 256
        clock.advance(67)
        assert monitor.get_slowest() == []


def test_what_it_says_and_what_can_be_asked_for(clock: ManualClock) -> None:
    with MetricsMonitor(60, clock=clock) as monitor:
        assert monitor.get_slowest() == []
        monitor.record_request(2.5, method="GET", route="/a", status=200, user_id="ann")
        monitor.record_request(1.5, method="POST", route="/a", status=503)
        monitor.record_request(0.5, method="GET", route="/b")
        monitor.record_request(9.5)  # of no route
        first, second, third = monitor.get_slowest()
        assert first == {
            "timestamp": "2023-11-14T22:13:19.997500+00:00",
            "ended": "2023-11-14T22:13:20.000000+00:00",
            "method": "GET",
            "route": "/a",
            "status": 200,
            "latency_ms": 2.5,
            "latency_ttfb_ms": 2.5,
            "pid": first["pid"],
            "requests_in_flight": None,
            "trace_id": None,
            "span_id": None,
            "request_id": None,
            "error": None,
            "path": None,
            "query": None,
            "user": None,
        }
        assert (second["status"], third["status"]) == (503, None)
        assert monitor.get_slowest(route="/a", method="POST") == [second]
        assert monitor.get_slowest(method="GET", limit=1) == [first]
        for limit, error in ((0, ValueError), (1001, ValueError), ("1", TypeError)):
            with pytest.raises(error, match="limit must be a whole number from 1 to 1000"):
                monitor.get_slowest(limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capture", "error", "said"),
    [
        ("path", TypeError, "capture must be a tuple of any of \"path\", .*got 'path'"),
        (None, TypeError, "got None"),
        (("path", "body"), ValueError, "capture may have \"path\", .*got 'body'"),
        ((1,), ValueError, "got 1"),
    ],
)
def test_what_may_be_told_is_checked(
    capture: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        MetricsMonitor(capture=capture)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 3601])
def test_the_threshold_is_checked(seconds: float) -> None:
    with pytest.raises(ValueError, match="capture_threshold_seconds must be a number of seconds"):
        MetricsMonitor(capture_threshold_seconds=seconds)


def test_a_user_is_told_of_only_where_that_is_allowed(clock: ManualClock) -> None:
    for capture, user in (((), None), (["user"], "ann")):
        with MetricsMonitor(60, clock=clock, capture=capture) as monitor:  # type: ignore[arg-type]
            monitor.record_request(5, "ann", "ann", method="GET", route="/", status=200)
            assert monitor.get_slowest()[0]["user"] == user


def test_a_reset_by_another_worker_lets_slowest_ones_begin_anew(clock: ManualClock) -> None:
    def record(seconds: float) -> None:
        one.record_request(1000 * seconds, method="GET", route="/", status=200)

    with (
        MetricsMonitor(60, clock=clock, shared=True) as one,
        MetricsMonitor(60, clock=clock, shared=True) as other,
    ):
        record(0.9)
        assert len(other.get_slowest()) == 1
        clock.advance(0.1)
        other.reset_statistics()
        assert other.get_slowest() == one.get_slowest() == []
        clock.advance(1)  # in the next step it sees that
        record(0.2)
        assert {row["latency_ms"] for row in other.get_slowest()} == {200.0}


def capture(monitor: MetricsMonitor, seconds: float) -> int:
    """In a worker: capture a request; how many there are of the server."""
    monitor.record_request(1000 * seconds, method="GET", route="/", status=200)
    return len(monitor.get_slowest())


def test_they_survive_a_kill_and_go_on_in_the_next_worker() -> None:
    clock = SharedClock()
    with crew(2, clock, window_seconds=60) as workers:
        first, second = workers.workers
        assert (first.do(capture, 0.1), second.do(capture, 0.2)) == (1, 2)
        first.kill()
        assert second.do(capture, 0.15) == 2
        third = workers.start()  # in the segment of the first
        assert third.do(capture, 0.3) == 3
        found = third.do(MetricsMonitor.get_slowest)
        assert [row["latency_ms"] for row in found] == [300.0, 200.0, 100.0]
        assert [row["pid"] for row in found] == [third.pid, second.pid, first.pid]
        clock.advance(0.1)
        second.do(MetricsMonitor.reset_statistics)
        assert third.do(MetricsMonitor.get_slowest) == []
        assert second.do(capture, 0.01) == 1
