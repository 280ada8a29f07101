"""The window as a time series: each step has what was recorded in it, and nothing else."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.histogram import SCALE
from metricsmw.engine.storage.minutes import (
    GAUGE_ROW,
    GAUGE_ROWS,
    GaugeSample,
    GaugeSamples,
    MemoryBytes,
)

STEP = 5.0  # of a window of 300 s
ACCURACY = 2 ** (1 / 2 ** (SCALE + 1)) - 1


def at_step_start(clock: ManualClock) -> None:
    clock.advance(STEP - clock.now % STEP)


def test_none_before_the_first_step_has_ended(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(1.0)
    assert monitor.get_series()["series"] == []
    clock.advance(STEP)
    assert [row["requests"] for row in monitor.get_series()["series"]] == [1]


def test_steps_are_dense_and_labelled_by_their_end(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    monitor.record_request(1.0)
    clock.advance(8 * STEP + 1.0)
    told = monitor.get_series()
    rows = told["series"]
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[0]["step"] + 8))
    times = [datetime.fromisoformat(row["timestamp"]) for row in rows]
    assert {b - a for a, b in pairwise(times)} == {timedelta(seconds=STEP)}
    now = datetime.fromtimestamp(clock.wall, times[0].tzinfo)
    assert now - times[-1] == timedelta(seconds=1)
    assert datetime.fromisoformat(told["started"]) == now - timedelta(seconds=8 * STEP + 1)
    assert told["reset"] is None
    assert told["step_seconds"] == STEP
    assert [row["requests"] for row in rows] == [1] + [0] * 7


def test_what_a_step_says(monitor: MetricsMonitor, clock: ManualClock) -> None:
    at_step_start(clock)
    for number in range(1, 101):
        monitor.record_request(float(number), is_error=number <= 25)
    clock.advance(STEP)
    told_at_once = monitor.get_series()["series"][-1]
    clock.advance(STEP)
    *_, busy, idle = monitor.get_series()["series"]
    assert busy == told_at_once
    assert (busy["requests"], busy["errors"]) == (100, 25)
    assert busy["request_rate_rpm"] == 1200.0
    assert busy["error_rate_pct"] == 25.0
    for field, exact in (("latency_p50_ms", 50), ("latency_p95_ms", 95), ("latency_p99_ms", 99)):
        assert busy[field] == pytest.approx(exact, rel=ACCURACY + 0.001)  # type: ignore[literal-required]
    assert (idle["requests"], idle["errors"], idle["request_rate_rpm"]) == (0, 0, 0.0)
    assert idle["latency_p50_ms"] is idle["latency_p95_ms"] is idle["latency_p99_ms"] is None


@given(
    st.lists(st.tuples(st.floats(0.0, 40.0), st.booleans()), max_size=60),
    st.sampled_from([10, 77, 300]),
)
def test_each_request_is_in_the_step_of_its_moment(
    requests: list[tuple[float, bool]], window: int
) -> None:
    clock = ManualClock(start=1000.0)
    step = window / 60
    expected: dict[int, list[bool]] = {}
    with MetricsMonitor(window, clock=clock) as monitor:
        for pause, is_error in requests:
            clock.advance(pause * window / 300)
            monitor.record_request(5.0, is_error=is_error)
            expected.setdefault(int(clock.now // step) + 1, []).append(is_error)
        clock.advance(step)
        rows = {row["step"]: row for row in monitor.get_series()["series"]}
        last = int(clock.now // step)
        assert max(rows) == last
        for number in range(last - 59, last + 1):
            if number not in rows:
                assert number not in expected
                continue
            assert rows[number]["requests"] == len(expected.get(number, []))
            assert rows[number]["errors"] == sum(expected.get(number, []))


@pytest.mark.parametrize("seconds", [1, 4, 5, 60, 299, 300, 10_000])
def test_seconds_are_held_to_whole_steps_of_the_window(
    monitor: MetricsMonitor, clock: ManualClock, seconds: int
) -> None:
    monitor.record_request(1.0)
    clock.advance(1000)
    told = monitor.get_series(seconds)
    assert told["seconds"] == min(seconds, 300)
    assert len(told["series"]) == round(min(seconds, 300) / STEP)


@pytest.mark.parametrize(
    ("seconds", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_seconds(monitor: MetricsMonitor, seconds: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"seconds must be a whole number >= 1"):
        monitor.get_series(seconds)


def test_a_reset_takes_all_before_it_away(monitor: MetricsMonitor, clock: ManualClock) -> None:
    at_step_start(clock)
    monitor.record_request(1.0, route="/a", method="GET")
    clock.advance(2 * STEP + 1)
    monitor.record_request(1.0, route="/a", method="GET")
    monitor.reset_statistics()
    monitor.record_request(1.0, route="/a", method="GET")
    clock.advance(1.0)
    monitor.record_request(1.0, route="/a", method="GET")
    clock.advance(60.0)
    told = monitor.get_series()
    assert sum(row["requests"] for row in told["series"]) == 2
    assert told["series"][0]["requests"] == 2  # the reset's own step
    assert told["reset"] is not None
    assert datetime.fromisoformat(told["reset"]) - datetime.fromisoformat(
        told["started"]
    ) == timedelta(seconds=clock.now - 61 - 1000)
    assert sum(row["requests"] for row in monitor.get_route_series("GET", "/a")["series"]) == 2


def test_a_route_by_tenths_of_the_window(monitor: MetricsMonitor, clock: ManualClock) -> None:
    clock.advance(30 - clock.now % 30)
    monitor.record_request(8.0, route="/a", method="GET", status=200)
    monitor.record_request(8.0, route="/a", method="POST", status=200)
    monitor.record_request(8.0, route="/b", method="GET", status=500)
    clock.advance(30)
    monitor.record_request(16.0, route="/a", method="GET", status=404)
    clock.advance(30)
    told = monitor.get_route_series("GET", "/a")
    assert (told["step_seconds"], told["method"], told["route"]) == (30.0, "GET", "/a")
    first, second = told["series"][-2:]
    assert (first["requests"], first["errors"]) == (1, 0)
    assert (second["requests"], second["errors"]) == (1, 1)
    assert second["latency_p50_ms"] == pytest.approx(16, rel=0.023)
    unknown = monitor.get_route_series("GET", "/nowhere")["series"]
    assert [row["requests"] for row in unknown] == [0] * len(told["series"])


def test_a_route_as_the_table_names_it(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(1.0, route="/" + "long" * 1000, method="GET")
    monitor.record_request(1.0, method="BREW")
    clock.advance(60)
    for row in monitor.get_routes():
        told = monitor.get_route_series(row["method"], row["route"])["series"]
        assert sum(step["requests"] for step in told) == 1


def test_what_was_seen_in_a_step(monitor: MetricsMonitor, clock: ManualClock) -> None:
    at_step_start(clock)
    monitor.get_current_snapshot()
    monitor.recorder.begin()
    seen = monitor.get_current_snapshot()
    assert seen.requests_in_flight == 1
    clock.advance(2 * STEP)
    looked, unseen = monitor.get_series()["series"][-2:]
    assert looked["requests_in_flight"] == 1
    assert looked["memory_usage_mb"] == seen.memory_usage_mb
    assert looked["cpu_usage_pct"] == seen.cpu_usage_pct
    assert unseen["requests_in_flight"] is unseen["cpu_usage_pct"] is None
    assert unseen["memory_usage_mb"] is None


def test_samples_of_steps_whose_place_was_taken_are_gone() -> None:
    data = MemoryBytes()
    data.reserve(GAUGE_ROW.size * GAUGE_ROWS + 8)
    samples = GaugeSamples(data, 8)
    assert samples.get(0, 10**6) == {}
    samples.put(3, GaugeSample(1, 2.0, 3.0))
    samples.put(3 + GAUGE_ROWS, GaugeSample(4, 5.0, 6.0))
    samples.put(3, GaugeSample(7, 8.0, 9.0))  # late
    assert samples.get(0, 10**6) == {3 + GAUGE_ROWS: GaugeSample(4, 5.0, 6.0)}
    assert samples.get(3 + GAUGE_ROWS + 1, 10**6) == {}
    data.write(8 + 3 * GAUGE_ROW.size, GAUGE_ROW.pack(3 + GAUGE_ROWS, 1, 1, 1, 3))  # being written
    assert samples.get(0, 10**6) == {}


def test_reading_while_others_record() -> None:
    """Steps may not lose or invent requests while checkpoints are taken."""
    with MetricsMonitor(10) as monitor:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                monitor.record_request(1.0)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            told: dict[int, int] = {}
            last = -1
            while len(told) < 6:
                rows = monitor.get_series()["series"]
                for row in rows:
                    # What was told stays, but for a request on the border of a step.
                    before = told.setdefault(row["step"], row["requests"])
                    assert abs(before - row["requests"]) <= len(threads)
                assert all(row["step"] > 0 for row in rows)
                if rows:
                    assert rows[-1]["step"] >= last
                    last = rows[-1]["step"]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert sum(told.values()) <= monitor.total_requests
