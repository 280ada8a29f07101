"""Counts, rates and error rates: exact at any rate, and at every edge of the window."""

from __future__ import annotations

import math
from bisect import bisect_left
from operator import itemgetter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.reference import Event, assert_window, window_faults

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

WINDOWS = [10, 13, 60, 77, 300, 600, 3600]


@pytest.mark.parametrize(
    ("requests", "per_second"),
    [
        (100_000, 1),  # more than three hundred windows
        (200_000, 200),
        (1_000_000, 50_000),  # all in one
    ],
)
def test_however_many_requests_are_exact(requests: int, per_second: int) -> None:
    window, step, start = 300, 5.0, 1000.0
    random = Random(per_second)
    gap = 1 / per_second
    clock = ManualClock(start=start)
    events: list[Event] = []
    with MetricsMonitor(window, clock=clock) as monitor:
        for index in range(requests):
            clock.advance(gap)
            latency, is_error = random.expovariate(0.01) + 0.001, index % 7 == 3
            monitor.record_request(latency, is_error)
            events.append(Event(clock.monotonic(), latency, is_error))
            if index % (requests * 9 // 100) == 333:  # away from the border of a step
                now = clock.monotonic()
                cut = start + math.floor((now - start - window) / step) * step
                kept = events[bisect_left(events, cut, key=itemgetter(0)) :]
                covered = max(60.0, now - max(cut, start))
                snapshot = monitor.get_current_snapshot()
                assert window_faults(snapshot, kept, covered, covered) == []
                assert snapshot.total_requests == index + 1
                assert snapshot.total_errors == (index + 4) // 7
        clock.advance(window + step)
        snapshot = monitor.get_current_snapshot()
        assert snapshot.request_rate_rpm == snapshot.latency_p99_ms == 0.0
        assert snapshot.error_rate_pct == snapshot.latency_max_ms == 0.0
        assert (snapshot.total_requests, snapshot.total_errors) == (requests, (requests + 3) // 7)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[int, list[tuple[float, float, bool]]]:
    """A window, and what happens: wait so many seconds, then record a latency, an error or not."""
    window = draw(st.sampled_from(WINDOWS))
    step = window / 60
    gaps = st.one_of(
        st.just(0.0),
        st.floats(0, step),
        st.integers(1, 130).map(lambda steps: steps * step),
        st.floats(0, window * 1.1),
        st.sampled_from([float(window), window + step, window - step]),
        st.floats(window, 1e7),
    )
    event = st.tuples(gaps, st.floats(0.001, 3_600_000), st.booleans())
    return window, draw(st.lists(event, max_size=40))


@settings(max_examples=150)
@given(timeline=timelines(), start=st.floats(1, 1e6), look_before=st.booleans())
def test_the_window_is_the_one_promised(
    timeline: tuple[int, list[tuple[float, float, bool]]], start: float, look_before: bool
) -> None:
    window, steps = timeline
    clock = ManualClock(start=start)
    events: list[Event] = []
    with MetricsMonitor(window, clock=clock) as monitor:
        for gap, latency, is_error in steps:
            clock.advance(gap)
            if look_before:  # a read must not change what a later read says
                assert_window(
                    monitor.get_current_snapshot(),
                    events,
                    now=clock.monotonic(),
                    started=start,
                    window=window,
                )
            monitor.record_request(latency, is_error)
            events.append(Event(clock.monotonic(), latency, is_error))
            snapshot = monitor.get_current_snapshot()
            assert_window(snapshot, events, now=clock.monotonic(), started=start, window=window)
            assert snapshot.total_requests == len(events)
            assert snapshot.total_errors == sum(event.is_error for event in events)


@pytest.mark.parametrize("window", [60, 300, 600, 3600])
def test_a_request_stays_a_window_and_goes_within_a_step(window: int) -> None:
    clock = ManualClock(start=3600.0)
    with MetricsMonitor(window, clock=clock) as monitor:
        for into_the_step in (0.0, 0.25, 0.5, 0.75):
            step = window / 60
            clock.advance(into_the_step * step)
            monitor.record_request(5.0)
            clock.advance(window)
            assert monitor.get_request_rate_rpm() > 0
            clock.advance(step)
            assert monitor.get_request_rate_rpm() == 0.0
            clock.advance((1 - into_the_step) * step)


def test_the_rate_divides_by_the_time_covered() -> None:
    clock = ManualClock(start=1000.0)
    with MetricsMonitor(300, clock=clock) as monitor:
        clock.advance(1000)
        for _ in range(100):
            monitor.record_request(5.0)
        # Steps of 5 s: 2.5 s into one, the window reaches back 302.5 s.
        clock.advance(2.5)
        assert monitor.get_request_rate_rpm() == round(100 * 60 / 302.5, 2)
        clock.advance(2.5)
        assert monitor.get_request_rate_rpm() == 20.0


@pytest.mark.parametrize(
    ("window", "age", "covered"),
    [
        (300, 0, 60),
        (300, 1, 60),
        (300, 59.5, 60),
        (300, 90, 90),
        (300, 299, 299),
        (300, 300, 300),
        (10, 0, 10),
        (10, 9.5, 10),
        (13, 2, 13),
        (60, 30, 60),
        (3600, 1800, 1800),
    ],
)
def test_a_young_monitor_divides_by_its_age(window: int, age: float, covered: float) -> None:
    clock = ManualClock()
    with MetricsMonitor(window, clock=clock) as monitor:
        clock.advance(age)
        for _ in range(50):
            monitor.record_request(5.0)
        assert monitor.get_request_rate_rpm() == round(50 * 60 / covered, 2)


@pytest.mark.parametrize("idle", [0.5, 5, 59, 300, 305, 3600, 86_400, 31_536_000, 1e9])
def test_an_idle_gap_of_any_length(idle: float) -> None:
    clock = ManualClock()
    start = clock.monotonic()
    events: list[Event] = []
    with MetricsMonitor(300, clock=clock) as monitor:
        for burst in (3, 5, 2):
            for index in range(burst):
                is_error = index == 0
                monitor.record_request(10.0 * burst, is_error)
                events.append(Event(clock.monotonic(), 10.0 * burst, is_error))
            clock.advance(idle)
            assert_window(
                monitor.get_current_snapshot(),
                events,
                now=clock.monotonic(),
                started=start,
                window=300,
            )
        assert monitor.total_requests == 10
        assert monitor.total_errors == 3


@pytest.mark.parametrize("window", WINDOWS)
def test_records_and_reads_exactly_at_the_borders_of_steps(window: int) -> None:
    start = float(window)
    clock = ManualClock(start=start)
    events: list[Event] = []
    with MetricsMonitor(window, clock=clock) as monitor:
        for index in range(150):
            monitor.record_request(1.0 + index, index % 3 == 0)
            events.append(Event(clock.monotonic(), 1.0 + index, index % 3 == 0))
            clock.advance(window / 60)
            assert_window(
                monitor.get_current_snapshot(),
                events,
                now=clock.monotonic(),
                started=start,
                window=window,
            )


def test_the_error_rate_is_rounded_to_two_decimals(monitor: MetricsMonitor) -> None:
    assert monitor.get_error_rate_pct() == 0.0
    for is_error in (False, False, True):
        monitor.record_request(10.0, is_error)
    assert monitor.get_error_rate_pct() == 33.33
    monitor.record_request(10.0, is_error=True)
    monitor.record_request(10.0, is_error=True)
    monitor.record_request(10.0, is_error=True)
    assert monitor.get_error_rate_pct() == 66.67


def test_only_errors_are_all_errors(monitor: MetricsMonitor) -> None:
    for _ in range(7):
        monitor.record_request(10.0, is_error=True)
    assert monitor.get_error_rate_pct() == 100.0
    assert monitor.total_errors == monitor.total_requests == 7


@pytest.mark.parametrize(
    ("is_error", "status", "counted"),
    [
        (False, 200, False),
        (False, 399, False),
        (False, 400, True),
        (False, 404, True),
        (False, 599, True),
        (True, 200, True),
        (True, None, True),
        (False, None, False),
    ],
)
def test_a_status_of_400_and_more_is_an_error(
    monitor: MetricsMonitor, is_error: bool, status: int | None, counted: bool
) -> None:
    monitor.record_request(10.0, is_error, method="GET", route="/", status=status)
    assert monitor.total_errors == int(counted)


class _JumpingClock:
    """A clock whose wall time somebody sets back and forth."""

    def __init__(self) -> None:
        self.now, self.wall = 1000.0, 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, 1e9])
def test_a_wall_clock_jump_moves_only_timestamps(jump: float) -> None:
    clock = _JumpingClock()
    with MetricsMonitor(300, clock=clock) as monitor:
        monitor.record_request(100.0, is_error=True, user_id="ada", route="/", method="GET")
        before = monitor.get_current_snapshot()
        clock.wall += jump
        after = monitor.get_current_snapshot()
        assert after.timestamp != before.timestamp
        ours = ("memory_usage_pct", "memory_usage_mb", "cpu_usage_pct", "timestamp")
        same_before = {k: v for k, v in before.to_dict().items() if k not in ours}
        same_after = {k: v for k, v in after.to_dict().items() if k not in ours}
        assert same_after == same_before
        assert [row["requests"] for row in monitor.get_routes()] == [1]
        clock.now += 306
        assert monitor.get_request_rate_rpm() == 0.0
        assert monitor.get_active_users() == 0
