"""Many threads record at once, at the fastest switching Python knows: nothing may be lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random

import pytest
from kits.reference import GLOBAL_BOUND
from kits.threads import switching_often

import metricsmw.engine.recording.recorder
from metricsmw import MetricsMonitor, MetricsSnapshot
from metricsmw.clock import ManualClock

THREADS = 8
FAST, MIDDLE, SLOW, SLOWEST = 2.0, 30.0, 400.0, 5000.0

# 200 requests. The shares end exactly on the percentiles' ranks: one lost FAST request, and p50
# is MIDDLE; one lost MIDDLE one, and p95 is SLOW.
PATTERN = [
    *[(FAST, False, "GET", "/fast", 200)] * 100,
    *[(MIDDLE, False, "POST", "/middle", 302)] * 90,
    *[(SLOW, False, "GET", "/slow", 200)] * 8,
    *[(SLOWEST, True, "GET", "/slow", 503)] * 2,
]
Random(7).shuffle(PATTERN)


@pytest.fixture(autouse=True)
def fastest_switching() -> Iterator[None]:
    """Threads are switched every microsecond, as far as the interpreter manages."""
    with switching_often():
        yield


def run_together(*jobs: Callable[[], None]) -> None:
    """Run all jobs at once in threads of their own; raise the first fault of any."""
    barrier = threading.Barrier(len(jobs))
    faults: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        barrier.wait()
        try:
            job()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def recorder_of(monitor: MetricsMonitor, rounds: int) -> Callable[[], None]:
    """A job that records the pattern so many times."""

    def job() -> None:
        for _ in range(rounds):
            for latency, is_error, method, route, status in PATTERN:
                monitor.record_request(latency, is_error, method=method, route=route, status=status)

    return job


def assert_exact(monitor: MetricsMonitor, patterns: int) -> None:
    """The monitor's totals and routes are those of so many patterns."""
    assert monitor.total_requests == patterns * 200
    assert monitor.total_errors == patterns * 2
    rows = {(row["method"], row["route"]): row for row in monitor.get_routes()}
    assert {key: row["requests"] for key, row in rows.items()} == {
        ("GET", "/fast"): patterns * 100,
        ("POST", "/middle"): patterns * 90,
        ("GET", "/slow"): patterns * 10,
    }
    statuses = {
        key: {name: count for name, count in row["statuses"].items() if count}
        for key, row in rows.items()
    }
    assert statuses == {
        ("GET", "/fast"): {"2xx": patterns * 100},
        ("POST", "/middle"): {"3xx": patterns * 90},
        ("GET", "/slow"): {"2xx": patterns * 8, "5xx": patterns * 2},
    }
    assert rows["GET", "/slow"]["error_rate_pct"] == 20.0


def test_eight_threads_lose_nothing(monitor: MetricsMonitor) -> None:
    rounds = 250
    run_together(*[recorder_of(monitor, rounds)] * THREADS)
    assert_exact(monitor, THREADS * rounds)
    # The clock stood still, so the rate covers one minute: it is the histogram's own count.
    assert monitor.get_request_rate_rpm() == THREADS * rounds * 200
    assert monitor.get_error_rate_pct() == 1.0
    expected = pytest.approx((FAST, MIDDLE, SLOW), rel=GLOBAL_BOUND)
    assert monitor.get_latency_percentiles() == expected


def test_nothing_is_lost_while_the_window_moves(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    rounds, moves = 200, 100
    record = recorder_of(monitor, rounds // moves)

    def record_and_move() -> None:
        for _ in range(moves):
            record()
            clock.advance(2.5)

    run_together(record_and_move, *[recorder_of(monitor, rounds)] * 3)
    assert clock.monotonic() == 1000.0 + moves * 2.5 < 1000.0 + monitor.window_seconds
    assert_exact(monitor, 4 * rounds)
    assert monitor.get_request_rate_rpm() == round(4 * rounds * 200 * 60 / (moves * 2.5), 2)
    assert monitor.get_error_rate_pct() == 1.0
    expected = pytest.approx((FAST, MIDDLE, SLOW), rel=GLOBAL_BOUND)
    assert monitor.get_latency_percentiles() == expected


def test_readers_see_only_what_can_be(monitor: MetricsMonitor, clock: ManualClock) -> None:
    rounds = 100
    record = recorder_of(monitor, 1)
    writing = threading.Event()
    writing.set()
    seen: list[list[MetricsSnapshot]] = [[], []]
    seen_routes: list[int] = []

    def record_and_move() -> None:
        for _ in range(rounds):
            record()
            clock.advance(0.5)
        writing.clear()

    def read(into: list[MetricsSnapshot]) -> Callable[[], None]:
        def job() -> None:
            while True:
                last_one = not writing.is_set()
                into.append(monitor.get_current_snapshot())
                seen_routes.append(sum(row["requests"] for row in monitor.get_routes()))
                if last_one:
                    return

        return job

    run_together(
        record_and_move,
        *[recorder_of(monitor, rounds)] * 5,
        *[read(snapshots) for snapshots in seen],
    )
    possible = (0.0, FAST, MIDDLE, SLOW, SLOWEST)
    for snapshots in seen:
        assert snapshots
        for earlier, later in pairwise(snapshots):
            assert earlier.total_requests <= later.total_requests
            assert earlier.total_errors <= later.total_errors
        for one in snapshots:
            assert one.total_errors <= one.total_requests <= 6 * rounds * 200
            assert 0.0 <= one.error_rate_pct <= 100.0
            # The clock has not gone further than the minute that a young monitor divides by.
            assert one.request_rate_rpm <= 6 * rounds * 200
            percentiles = (one.latency_p50_ms, one.latency_p95_ms, one.latency_p99_ms)
            assert list(percentiles) == sorted(percentiles)
            for value in percentiles:
                assert any(value == pytest.approx(x, rel=GLOBAL_BOUND) for x in possible)
    assert max(seen_routes) <= 6 * rounds * 200
    assert_exact(monitor, 6 * rounds)


def test_builds_without_a_gil_take_a_lock(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr(metricsmw.engine.recording.recorder, "NEEDS_LOCK", True)
    with MetricsMonitor(clock=clock) as monitor:
        run_together(*[recorder_of(monitor, 20)] * THREADS)
        assert_exact(monitor, THREADS * 20)
        monitor.recorder.end(monitor.recorder.begin(), 200, "/", "GET")
        monitor.reset_statistics()
        assert monitor.total_requests == 0


def test_a_minute_gets_one_snapshot_however_many_ask(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    minutes = 40
    monitor.record_request(10.0)
    next_minute = threading.Barrier(THREADS, action=lambda: clock.advance(60))

    def job() -> None:
        for _ in range(minutes):
            next_minute.wait()
            monitor.get_metrics_history()

    run_together(*[job] * THREADS)
    stamps = [entry["timestamp"] for entry in monitor.get_metrics_history()]
    assert len(stamps) == len(set(stamps)) == minutes


def test_snapshots_saved_at_once_are_all_kept(monitor: MetricsMonitor) -> None:
    def job() -> None:
        for _ in range(7):
            monitor.save_snapshot_to_history()

    run_together(*[job] * THREADS)
    assert len(monitor.get_metrics_history()) == THREADS * 7


def test_users_and_gauges_of_many_threads(monitor: MetricsMonitor) -> None:
    def job_of(number: int) -> Callable[[], None]:
        def job() -> None:
            for index in range(2000):
                monitor.increment_websocket_connections()
                monitor.record_user_activity(f"shared-{index % 50}")
                monitor.record_user_activity(f"own-{number}-{index % 100}")
                if index % 4:
                    monitor.decrement_websocket_connections()

        return job

    run_together(*[job_of(number) for number in range(THREADS)])
    assert monitor.get_websocket_connections() == THREADS * 500
    assert monitor.get_active_users() == 50 + THREADS * 100
    assert len(monitor.get_active_user_ids()) == 50 + THREADS * 100


def test_requests_in_flight_of_many_threads(monitor: MetricsMonitor) -> None:
    recorder = monitor.recorder

    def job() -> None:
        for index in range(4000):
            start = recorder.begin()
            if index % 4 == 0:
                recorder.abandon(200, "/gone", "GET")
            elif index % 4 == 1:
                recorder.cancel()
            elif index % 4 == 2:
                recorder.end(start, 200, "/done", "GET")

    run_together(*[job] * THREADS)
    assert monitor.get_current_snapshot().requests_in_flight == THREADS * 1000
    assert monitor.total_requests == THREADS * 2000
    assert monitor.total_errors == 0


def test_resets_among_records_leave_no_rest(monitor: MetricsMonitor) -> None:
    def reset() -> None:
        for _ in range(50):
            monitor.reset_statistics()
            snapshot = monitor.get_current_snapshot()
            assert snapshot.total_errors <= snapshot.total_requests <= 4 * 100 * 200

    run_together(reset, *[recorder_of(monitor, 100)] * 4)
    monitor.reset_statistics()
    assert monitor.total_requests == monitor.total_errors == 0
    assert monitor.get_request_rate_rpm() == 0.0
    assert monitor.get_routes() == []
    run_together(*[recorder_of(monitor, 1)] * 4)
    assert_exact(monitor, 4)
