"""The shape of latency: each request is in the cell of its time and its latency."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.heatmap import joined
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.storage.histogram import index, upper_bound

REQUEST = st.tuples(
    st.floats(0.001, 3_000_000), st.sampled_from(["/a", "/b"]), st.sampled_from([200, 404])
)
WAIT = st.sampled_from([0.4, 4.0, 29.0, 61.0, 280.0])
STARTED = 5000.0


def cell(milliseconds: float, scale: int) -> int:
    """The bucket of a scale that a latency is in, by those that are stored."""
    return -(-index(max(milliseconds / 1000, 2.0**-24)) // (1 << 5 - scale))


def cells_of(reading: Reading, *route: str) -> dict[tuple[int, int], int]:
    steps = reading.heatmap(*route)["steps"]
    return {(step["step"], bucket): count for step in steps for bucket, count in step["cells"]}


@settings(max_examples=20)
@given(st.lists(st.one_of(REQUEST, WAIT), max_size=30))
def test_against_a_list(events: list[Any]) -> None:
    clock = ManualClock()
    clock.advance(STARTED - clock.monotonic())
    asked: list[tuple[float, float, str]] = []
    with MetricsMonitor(clock=clock) as monitor:
        monitor.read()
        for event in events:
            if isinstance(event, float):
                clock.advance(event)
            else:
                latency, route, status = event
                monitor.record_request(latency, method="GET", route=route, status=status)
                asked.append((clock.monotonic(), latency, route))
        now = clock.monotonic()
        reading = monitor.read()
        for of, length, scale in (((), 5.0, 5), (("GET", "/a"), 30.0, 4)):
            last = math.floor(now / length)
            counted = [one for one in asked if not of or one[2] == of[1]]
            first = last - round(300 / length)
            in_window = [ms for at, ms, _ in counted if math.floor(at / length) >= first]
            expected = Counter(
                (math.floor(at / length) + 1, cell(ms, 2))
                for at, ms, _ in counted
                if first < math.floor(at / length) + 1 <= last
            )
            assert cells_of(reading, *of) == expected
            told = reading.heatmap(*of)["distribution"]
            assert told["scale"] == scale
            assert dict(told["buckets"]) == Counter(cell(ms, scale) for ms in in_window)
            assert told["requests"] == len(in_window)
        for row in reading.routes:
            told = reading.heatmap(row["method"], row["route"])["distribution"]
            for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_max_ms"):
                assert told[name] == row[name]  # type: ignore[literal-required]


@pytest.mark.parametrize("to", [2, 3, 4])
def test_a_coarse_bucket_is_a_union_of_fine_ones(to: int) -> None:
    fine = range(-319, 1)
    for bucket, count in joined([(one, 1) for one in fine], 5, to):
        low, high = upper_bound(bucket - 1, to), upper_bound(bucket, to)
        assert count == sum(low * 1.0001 < upper_bound(one) < high * 1.0001 for one in fine)
        assert count == 1 << 5 - to


def test_what_is_told(monitor: MetricsMonitor, clock: ManualClock) -> None:
    idle = monitor.get_heatmap()
    assert idle["distribution"] == {
        "scale": 5,
        "buckets": [],
        "requests": 0,
        "latency_p50_ms": None,
        "latency_p95_ms": None,
        "latency_p99_ms": None,
        "latency_max_ms": None,
    }
    monitor.record_request(100.0, method="GET", route="/a")
    clock.advance(30)
    told, series = monitor.get_heatmap(seconds=60), monitor.get_series(60)
    assert [step["step"] for step in told["steps"]] == [row["step"] for row in series["series"]]
    same = ("seconds", "step_seconds", "started", "reset")
    assert [told[name] for name in same] == [series[name] for name in same]  # type: ignore[literal-required]
    assert (told["method"], told["route"], told["scale"]) == (None, None, 2)
    for step, row in zip(told["steps"], series["series"], strict=True):
        assert step["timestamp"] == row["timestamp"]
        assert sum(count for _, count in step["cells"]) == row["requests"]
    monitor.reset_statistics()
    clock.advance(30)
    after = monitor.get_heatmap()
    assert not any(step["cells"] for step in after["steps"])
    assert after["distribution"]["requests"] == 0


def test_a_route_that_is_not_there(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(1.0)
    clock.advance(60)
    told = monitor.get_heatmap("GET", "/nope\udcff")
    assert told["steps"]
    assert not any(step["cells"] for step in told["steps"])
    assert told["distribution"]["buckets"] == []


def test_bad_questions(monitor: MetricsMonitor) -> None:
    with pytest.raises(ValueError, match="needs both method and route"):
        monitor.get_heatmap("GET")
    with pytest.raises(ValueError, match="needs both method and route"):
        monitor.get_heatmap(route="/a")
    with pytest.raises(ValueError, match="seconds"):
        monitor.get_heatmap(seconds=0)
