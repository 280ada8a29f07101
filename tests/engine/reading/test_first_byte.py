"""Time to first byte: streams by their first byte, all else by the last; by route and in all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.reference import ROUTE_BOUND, nearest_rank

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.routes import MAX_STREAMS

PERCENTS = (50, 95, 99)
SECONDS = st.floats(1e-6, 100.0)


def request(
    monitor: MetricsMonitor,
    clock: ManualClock,
    seconds: float,
    first: float | None = None,
    route: str = "/",
    method: str = "GET",
) -> float:
    """One request of that latency, its first byte after `first`; the latter as it was measured."""
    recorder = monitor.recorder
    start = recorder.begin()
    if first is None:
        clock.advance(seconds)
        return recorder.end(start, 200, route, method) - start
    clock.advance(first)
    at = recorder.clock()
    clock.advance(seconds)
    end = recorder.end(start, 200, route, method)
    recorder.streamed(start, at, end, route, method)
    return at - start


def ttfb(values: object) -> list[object]:
    assert isinstance(values, dict)
    return [values[f"latency_ttfb_p{percent}_ms"] for percent in PERCENTS]


def near(firsts: list[float]) -> list[object]:
    """The exact nearest-rank percentiles in ms, within the bound; rounded to 2 decimals."""
    return [
        pytest.approx(nearest_rank(sorted(firsts), p) * 1000, rel=ROUTE_BOUND, abs=0.0051)
        for p in PERCENTS
    ]


@given(st.lists(st.tuples(st.sampled_from(["/a", "/b"]), SECONDS, st.none() | SECONDS), min_size=1))
def test_percentiles_are_those_of_first_bytes(
    requests: list[tuple[str, float, float | None]],
) -> None:
    clock = ManualClock(start=1000.0, wall=1_700_000_000.0)
    with MetricsMonitor(3600, clock=clock) as monitor:
        firsts: dict[str, list[float]] = {}
        window = 0.0
        for route, seconds, first in requests:
            window += seconds + (first or 0.0)
            if window > 3000:
                break
            firsts.setdefault(route, []).append(request(monitor, clock, seconds, first, route))
        for row in monitor.get_routes():
            assert ttfb(row) == near(firsts[row["route"]])
        every = [value for values in firsts.values() for value in values]
        assert ttfb(monitor.get_statistics()["current"]) == near(every)


def test_streams_have_no_rows_of_their_own_in_the_table(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    for _ in range(3):
        request(monitor, clock, 0.2, 0.1, "/events")
    (row,) = monitor.get_routes()
    assert (row["method"], row["route"], row["requests"]) == ("GET", "/events", 3)
    assert row["latency_p50_ms"] == pytest.approx(300, rel=ROUTE_BOUND)
    assert ttfb(row) == near([0.1] * 3)


def test_without_requests(monitor: MetricsMonitor) -> None:
    assert ttfb(monitor.get_statistics()["current"]) == [0.0] * 3


def test_it_leaves_the_window(clock: ManualClock) -> None:
    with MetricsMonitor(60, clock=clock) as monitor:
        request(monitor, clock, 1.0, 0.001, "/events")
        clock.advance(90)
        request(monitor, clock, 1.0, 0.5, "/events")
        (row,) = monitor.get_routes()
        assert row["requests"] == 1
        assert ttfb(row) == near([0.5])


def test_a_reset_forgets_it(monitor: MetricsMonitor, clock: ManualClock) -> None:
    request(monitor, clock, 1.0, 0.001, "/events")
    monitor.reset_statistics()
    assert ttfb(monitor.get_statistics()["current"]) == [0.0] * 3
    request(monitor, clock, 1.0, 0.5, "/events")
    assert ttfb(monitor.get_statistics()["current"]) == near([0.5])


def test_too_many_streaming_routes(monitor: MetricsMonitor, clock: ManualClock) -> None:
    """Those without rows of their own say that they do not know; the sum is right all the same."""
    firsts = []
    for number in range(MAX_STREAMS + 4):
        first = 0.01 * (number + 1)
        firsts += [request(monitor, clock, 1.0, first, f"/{number}") for _ in range(2)]
    request(monitor, clock, 0.003, None, "/plain")
    firsts.append(0.003)
    rows = {row["route"]: row for row in monitor.get_routes()}
    assert len(rows) == MAX_STREAMS + 5
    for number in range(MAX_STREAMS):
        assert ttfb(rows[f"/{number}"]) == near([0.01 * (number + 1)] * 2)
    for number in range(MAX_STREAMS, MAX_STREAMS + 4):
        assert ttfb(rows[f"/{number}"]) == [None] * 3
    assert ttfb(rows["/plain"]) == near([0.003])
    assert ttfb(monitor.get_statistics()["current"]) == near(firsts)


def test_streams_of_other_routes_and_methods(clock: ManualClock) -> None:
    with MetricsMonitor(max_routes=1, clock=clock) as monitor:
        request(monitor, clock, 0.004, None, "/own")
        request(monitor, clock, 1.0, 0.1, "/more")
        request(monitor, clock, 1.0, 0.3, "/even/more")
        request(monitor, clock, 1.0, 0.2, "/own", "BREW")
        rows = {(row["method"], row["route"]): row for row in monitor.get_routes()}
        assert ttfb(rows["GET", "/own"]) == near([0.004])
        assert ttfb(rows["GET", "<other>"]) == near([0.1, 0.3])
        assert ttfb(rows["_OTHER", "<other>"]) == near([0.2])


def test_workers_together_beyond_the_maximum(clock: ManualClock) -> None:
    """Rows that the reader adds to <other> take their streams with them."""
    with MetricsMonitor(max_routes=2, clock=clock) as monitor:
        for _ in range(2):
            request(monitor, clock, 0.001, None, "/busy")
        request(monitor, clock, 1.0, 0.1, "/idle")
        reading = monitor.read().server
        rows = {row["route"]: row for row in reading.routes(1)}
        assert set(rows) == {"/busy", "<other>"}
        assert ttfb(rows["<other>"]) == near([0.1])


def test_steps_that_end_a_tenth_have_those_of_the_tenth(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    clock.advance(30 - clock.now % 30)  # a tenth of the window begins
    for _ in range(20):
        request(monitor, clock, 0.01)
    for _ in range(30):
        request(monitor, clock, 0.5, first=0.1, route="/stream")
    clock.advance(30 - clock.now % 30)
    series = monitor.get_series(30)["series"]
    assert [step["streams"] for step in series] == [None] * 5 + [30]
    assert ttfb(series[-1]) == near([0.01] * 20 + [0.1] * 30)
    assert all(ttfb(step) == [None] * 3 for step in series[:-1])
    assert monitor.get_current_snapshot().latency_p99_ms == pytest.approx(600, rel=0.011)
    # A step that is asked for by itself, as listeners of a stream do.
    assert monitor.get_series(5)["series"] == series[-1:]
    for route, firsts, streams in (("/", [0.01] * 20, 0), ("/stream", [0.1] * 30, 30)):
        step = monitor.get_route_series("GET", route)["series"][-1]
        assert (ttfb(step), step["streams"]) == (near(firsts), streams)
    clock.advance(30)
    last = monitor.get_series()["series"][-1]
    assert (ttfb(last), last["streams"]) == ([None] * 3, 0)
    monitor.reset_statistics()
    clock.advance(30)
    assert [step["streams"] for step in monitor.get_series()["series"]][-1] == 0


def test_those_of_a_route_that_are_not_told_are_not_known(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    clock.advance(30 - clock.now % 30)
    for number in range(MAX_STREAMS + 1):
        request(monitor, clock, 0.5, first=0.1, route=f"/{number}")
    clock.advance(30 - clock.now % 30)
    step = monitor.get_route_series("GET", f"/{MAX_STREAMS}")["series"][-1]
    assert (ttfb(step), step["streams"]) == ([None] * 3, None)
    last = monitor.get_series()["series"][-1]
    assert (ttfb(last), last["streams"]) == (near([0.1]), MAX_STREAMS + 1)
