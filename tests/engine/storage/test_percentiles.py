"""Percentiles against the exact nearest-rank ones, over many shapes of latency."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.reference import GLOBAL_BOUND, ROUTE_BOUND, latencies_of, percentile_faults

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

SHORTEST_MS = 0.001
LONGEST_MS = 3_600_000.0

Shape = Callable[[Random], float]


def _held(value: float) -> float:
    return min(max(value, SHORTEST_MS), LONGEST_MS)


def _uniform(low: float, high: float) -> Shape:
    return lambda random: _held(random.uniform(low, high))


def _lognormal(median_ms: float, sigma: float) -> Shape:
    return lambda random: _held(random.lognormvariate(math.log(median_ms), sigma))


def _bimodal(fast_ms: float, slow_ms: float, share: float) -> Shape:
    return lambda random: _held(
        random.gauss(fast_ms, fast_ms / 10)
        if random.random() < share
        else random.gauss(slow_ms, slow_ms / 10)
    )


def _heavy_tail(alpha: float) -> Shape:
    return lambda random: _held(random.paretovariate(alpha))


latencies_ms = st.floats(SHORTEST_MS, LONGEST_MS)
shapes = st.one_of(
    st.builds(_uniform, latencies_ms, latencies_ms),
    st.builds(_lognormal, st.floats(0.01, 10_000), st.floats(0.1, 4)),
    st.builds(_bimodal, st.floats(0.01, 10), st.floats(50, 100_000), st.floats(0, 1)),
    st.builds(_heavy_tail, st.floats(0.2, 3)),
)


@st.composite
def drawn_samples(draw: st.DrawFn) -> list[float]:
    """1 to 2000 latencies of one shape."""
    shape = draw(shapes)
    random = Random(draw(st.integers(0, 2**32)))
    return [shape(random) for _ in range(draw(st.integers(1, 2000)))]


@st.composite
def boundary_samples(draw: st.DrawFn) -> list[float]:
    """Latencies on the borders 2**(k/32) s of the buckets, and one ulp beside them."""
    borders = draw(st.lists(st.integers(-630, 370), min_size=1, max_size=60))
    towards = draw(st.lists(st.sampled_from([0.0, None, math.inf]), min_size=1, max_size=60))
    values = []
    for index, k in enumerate(borders):
        value = 2 ** (k / 32) * 1000
        side = towards[index % len(towards)]
        values.append(value if side is None else math.nextafter(value, side))
    return values


samples = st.one_of(
    drawn_samples(),
    boundary_samples(),
    st.lists(latencies_ms, min_size=1, max_size=200),
    st.builds(lambda value, count: [value] * count, latencies_ms, st.integers(1, 300)),
)


@settings(max_examples=250)
@given(latencies=samples)
def test_percentiles_are_within_the_bound(latencies: list[float]) -> None:
    with MetricsMonitor(clock=ManualClock()) as monitor:
        for latency in latencies:
            monitor.record_request(latency)
        snapshot = monitor.get_current_snapshot()
        assert percentile_faults(latencies_of(snapshot), latencies, GLOBAL_BOUND) == []
        assert monitor.get_latency_percentiles() == latencies_of(snapshot)[:3]


@settings(max_examples=120)
@given(latencies=samples, others=st.lists(latencies_ms, max_size=20))
def test_percentiles_of_a_route_are_within_its_bound(
    latencies: list[float], others: list[float]
) -> None:
    with MetricsMonitor(clock=ManualClock()) as monitor:
        for latency in latencies:
            monitor.record_request(latency, method="GET", route="/measured", status=200)
        for latency in others:
            monitor.record_request(latency, method="GET", route="/other", status=200)
        (row,) = [row for row in monitor.get_routes() if row["route"] == "/measured"]
        reported = (
            row["latency_p50_ms"],
            row["latency_p95_ms"],
            row["latency_p99_ms"],
            row["latency_max_ms"],
        )
        assert row["requests"] == len(latencies)
        assert percentile_faults(reported, latencies, ROUTE_BOUND) == []


def test_every_bucket_border_and_its_neighbours() -> None:
    clock = ManualClock()
    with MetricsMonitor(10, clock=clock) as monitor:
        for k in range(-630, 371):
            border = 2 ** (k / 32) * 1000
            for value in (math.nextafter(border, 0), border, math.nextafter(border, math.inf)):
                clock.advance(20)
                monitor.record_request(value)
                reported = latencies_of(monitor.get_current_snapshot())
                assert percentile_faults(reported, [value], GLOBAL_BOUND) == []


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 99, 100, 101, 200, 1000])
def test_the_rank_is_the_nearest_rank(count: int) -> None:
    # Doubling latencies: where the rank is off, the value is off by half or by double.
    latencies = sorted(2.0 ** (1 + index * 20 // count) for index in range(count))
    with MetricsMonitor(clock=ManualClock()) as monitor:
        for latency in latencies:
            monitor.record_request(latency)
        reported = latencies_of(monitor.get_current_snapshot())
        assert percentile_faults(reported, latencies, GLOBAL_BOUND) == []


@pytest.mark.parametrize("percent", [50, 95, 99])
@pytest.mark.parametrize("count", [100, 200, 700, 1000, 2900, 5500, 5800, 11000])
def test_a_rank_that_is_a_whole_number_is_taken_exactly(percent: int, count: int) -> None:
    rank = count * percent // 100
    with MetricsMonitor(clock=ManualClock()) as monitor:
        for index in range(count):
            monitor.record_request(1.0 if index < rank else 1000.0)
        value = dict(zip((50, 95, 99), monitor.get_latency_percentiles(), strict=True))[percent]
        assert value == pytest.approx(1.0, rel=GLOBAL_BOUND, abs=0.005)


def test_an_empty_window_is_zero(monitor: MetricsMonitor, clock: ManualClock) -> None:
    nothing = (0.0, 0.0, 0.0, 0.0)
    assert latencies_of(monitor.get_current_snapshot()) == nothing
    monitor.record_request(12.0)
    assert latencies_of(monitor.get_current_snapshot()) != nothing
    clock.advance(monitor.window_seconds * 2)
    assert latencies_of(monitor.get_current_snapshot()) == nothing


@pytest.mark.parametrize("latency", [0, 0.0, -0.0, 5e-324, 1e-12, 1e-7, 0.0005])
def test_below_a_microsecond_is_counted_at_the_low_end(latency: float) -> None:
    with MetricsMonitor(clock=ManualClock()) as monitor:
        monitor.record_request(latency)
        monitor.record_request(latency)
        monitor.record_request(1000.0)
        p50, p95, p99 = monitor.get_latency_percentiles()
        assert p50 == 0.0
        assert p95 == p99 == pytest.approx(1000.0, rel=GLOBAL_BOUND)
        assert monitor.total_requests == 3


@pytest.mark.parametrize("latency", [3_600_001.0, 4_096_001.0, 7_200_000, 1e12, 1e300, 1.7e308])
def test_above_an_hour_is_counted_at_the_high_end(latency: float) -> None:
    with MetricsMonitor(clock=ManualClock()) as monitor:
        monitor.record_request(1.0)
        monitor.record_request(latency)
        monitor.record_request(latency)
        snapshot = monitor.get_current_snapshot()
        p50, p95, p99, highest = latencies_of(snapshot)
        assert LONGEST_MS * (1 - GLOBAL_BOUND) <= p50 <= p95 <= p99 <= highest
        assert LONGEST_MS <= highest <= latency
        assert snapshot.total_requests == 3


def test_the_ends_do_not_disturb_what_lies_between(monitor: MetricsMonitor) -> None:
    for _ in range(30):
        monitor.record_request(0.0)
    for _ in range(40):
        monitor.record_request(250.0)
    for _ in range(30):
        monitor.record_request(1e9)
    assert monitor.get_latency_percentiles()[0] == pytest.approx(250.0, rel=GLOBAL_BOUND)
    assert monitor.total_requests == 100


def test_the_maximum_is_exact_and_caps_the_percentiles(monitor: MetricsMonitor) -> None:
    for latency in (123.456, 123.454, 0.5):
        monitor.record_request(latency)
    snapshot = monitor.get_current_snapshot()
    assert snapshot.latency_max_ms == 123.46
    assert snapshot.latency_p99_ms <= 123.46


def test_the_maximum_leaves_with_its_request(clock: ManualClock) -> None:
    with MetricsMonitor(60, clock=clock) as monitor:
        monitor.record_request(9000.0)
        clock.advance(30)
        monitor.record_request(20.0)
        assert monitor.get_current_snapshot().latency_max_ms == 9000.0
        clock.advance(31.5)
        assert monitor.get_current_snapshot().latency_max_ms == 20.0
        clock.advance(30)
        assert monitor.get_current_snapshot().latency_max_ms == 0.0
