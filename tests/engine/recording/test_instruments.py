"""The app's own numbers: what they count, what they refuse, and what they survive."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.crew import crew

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


def values(monitor: MetricsMonitor) -> dict[tuple[str, ...], Any]:
    """Value, or count, of each series by name and label values."""
    return {
        (str(row["name"]), *row["labels"].values()): row.get("value", row.get("count"))  # type: ignore[attr-defined]
        for row in monitor.get_custom()
    }


# --- what they count ------------------------------------------------------------------------------


def test_a_counter_adds_up(monitor: MetricsMonitor) -> None:
    orders = monitor.counter("orders", "Orders.", ["shop"])
    orders.labels("north").inc()
    orders.labels(shop="north").inc(2)
    orders.labels("south").inc(0.25)
    assert values(monitor) == {("orders", "north"): 3, ("orders", "south"): 0.25}


def test_without_labels_an_instrument_records_itself(monitor: MetricsMonitor) -> None:
    monitor.counter("a").inc()
    monitor.gauge("b").set(-2.5)
    monitor.gauge("b").inc(4)
    monitor.gauge("b").dec()
    monitor.histogram("c").observe(1)
    assert values(monitor) == {("a",): 1, ("b",): 0.5, ("c",): 1}


def test_a_histogram_knows_its_percentiles(monitor: MetricsMonitor) -> None:
    sizes = monitor.histogram("sizes", unit="bytes")
    for size in range(1, 1001):
        sizes.observe(size)
    (row,) = monitor.get_custom()
    assert row["count"] == 1000
    assert row["sum"] == 500_500
    assert row["p50"] == pytest.approx(500, rel=0.044)
    assert row["p99"] == pytest.approx(990, rel=0.044)


def test_only_seconds_have_a_ceiling(monitor: MetricsMonitor) -> None:
    for unit in ("bytes", "seconds"):
        monitor.histogram(f"a_{unit}", unit=unit).observe(1e9)
    in_bytes, in_seconds = monitor.get_custom()
    assert in_bytes["p50"] == in_bytes["max"] == pytest.approx(1e9, rel=0.044)
    assert in_seconds["p50"] == in_seconds["max"] == 3600


def test_time_is_counted_in_blocks_and_calls(monitor: MetricsMonitor, clock: ManualClock) -> None:
    pay = monitor.histogram("pay", unit="seconds")
    with pay.time():
        clock.advance(2)

    @pay.time()
    def paid(amount: int) -> int:
        clock.advance(4)
        return amount

    assert paid(7) == 7

    @pay.time()
    def fails() -> None:
        clock.advance(8)
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    (row,) = monitor.get_custom()
    assert (row["count"], row["sum"]) == (3, 14.0)


def test_what_goes_on_after_its_call_is_counted_to_its_end(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    pay = monitor.histogram("pay")

    @pay.time()
    async def waits() -> int:
        clock.advance(2)
        return 7

    @pay.time()
    def steps(ends: list[str]) -> Iterator[int]:
        try:
            clock.advance(4)
            yield 1
        except KeyError:
            clock.advance(8)
            ends.append("thrown")
            yield 2
        finally:
            ends.append("ended")

    @contextlib.asynccontextmanager
    @pay.time()
    async def opened(ends: list[str]) -> AsyncIterator[int]:
        try:
            clock.advance(16)
            yield 3
        except KeyError:
            clock.advance(32)
            ends.append("thrown")
            raise
        finally:
            ends.append("ended")

    async def use(ends: list[str]) -> None:
        assert await waits() == 7
        async with opened([]) as found:
            assert found == 3
        async with opened(ends):
            raise KeyError

    assert inspect.iscoroutinefunction(waits)
    assert inspect.isgeneratorfunction(steps)
    ends: list[str] = []
    with pytest.raises(KeyError):
        asyncio.run(use(ends))
    assert ends == ["thrown", "ended"]
    generator: Any = steps(ends)
    assert next(generator) == 1
    assert generator.throw(KeyError) == 2
    generator.close()
    assert ends == ["thrown", "ended"] * 2
    (row,) = monitor.get_custom()
    assert (row["count"], row["sum"]) == (4, 2 + 4 + 8 + 16 + 16 + 32)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.integers(0, 2**40), st.floats(0, 1e9)), max_size=30))
def test_sums_are_right_to_a_millionth(amounts: list[float]) -> None:
    with MetricsMonitor() as monitor:
        counter = monitor.counter("a")
        histogram = monitor.histogram("b", unit="seconds")
        for amount in amounts:
            counter.inc(amount)
            histogram.observe(amount)
        found = values(monitor)
        assert found["a",] == pytest.approx(math.fsum(amounts), abs=1e-6 * len(amounts), rel=1e-9)
        assert found["b",] == len(amounts)


def test_what_has_recorded_nothing_is_shown_as_0(monitor: MetricsMonitor) -> None:
    monitor.counter("a")
    monitor.histogram("b")
    monitor.gauge("c")  # which nobody knows before it is set
    assert values(monitor) == {("a",): 0, ("b",): 0}


def test_a_reset_begins_anew(monitor: MetricsMonitor) -> None:
    monitor.counter("a").inc(5)
    monitor.histogram("b").observe(1)
    monitor.gauge("c").set(3)
    monitor.reset_statistics()
    assert values(monitor) == {("a",): 0, ("b",): 0, ("c",): 3}
    monitor.counter("a").inc()
    assert values(monitor)["a",] == 1


def test_threads_lose_nothing(monitor: MetricsMonitor) -> None:
    series = monitor.counter("a", labels=["l"])
    histogram = monitor.histogram("b")

    def work() -> None:
        for number in range(5_000):
            series.labels(number % 3).inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = values(monitor)
    assert found.pop(("b",)) == 20_000
    assert sum(found.values()) == 20_000


# --- label sets are bounded -----------------------------------------------------------------------


def test_past_the_maximum_label_sets_share_a_series(monitor: MetricsMonitor) -> None:
    counter = monitor.counter("a", labels=["l"], max_series=3)
    for number in range(10):
        counter.labels(number).inc()
    found = values(monitor)
    assert len(found) == 4
    assert found["a", "<other>"] == 7


def test_many_series_find_room(monitor: MetricsMonitor) -> None:
    counter = monitor.counter("a", labels=["l"], max_series=1000)
    for number in range(1000):
        counter.labels(number).inc(number)
    assert values(monitor) == {("a", str(number)): number for number in range(1000)}


@pytest.mark.parametrize("value", ["x" * 10_000, "é" * 400, '"\n\\', "\0", "\udc80", "", "<other>"])
def test_any_label_value_is_kept_apart(monitor: MetricsMonitor, value: str) -> None:
    names = ["a" * 50, *"bcdefgh"]
    counter = monitor.counter("n" * 100, labels=names)
    counter.labels(*[value] * 8).inc(1)
    counter.labels(*[value] * 7, value + "x").inc(2)
    assert sorted(values(monitor).values()) == [1, 2]


# --- what they refuse -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.counter("9a"),
        lambda m: m.counter("a-b"),
        lambda m: m.counter(""),
        lambda m: m.counter("é"),
        lambda m: m.counter("metricsmw_x"),
        lambda m: m.gauge("a_total"),
        lambda m: m.histogram("a_bucket"),
        lambda m: m.counter("a", unit="Seconds"),
        lambda m: m.counter("a", labels=["b", "b"]),
        lambda m: m.counter("a", labels=["__b"]),
        lambda m: m.counter("a", labels=["le"]),
        lambda m: m.counter("a", labels=[str(n) for n in range(3)]),
        lambda m: m.counter("a", labels=[f"l{n}" for n in range(9)]),
        lambda m: m.counter("a", labels=["x" * 101]),
        lambda m: m.gauge("a", merge="mean"),
        lambda m: m.counter("a", max_series=0),
        lambda m: (m.counter("a"), m.gauge("a")),
        lambda m: (m.counter("a"), m.counter("a", labels=["b"])),
        lambda m: (m.histogram("a"), m.gauge("a_seconds")),
        lambda m: (m.gauge("a_b"), m.gauge("a__b")),
        lambda m: (m.histogram("a"), m.histogram("a", unit="bytes")),
        lambda m: (m.histogram("a", unit="ms"), m.gauge("a_milliseconds")),
        lambda m: m.gauge("a", unit="b__c"),
        lambda m: m.counter("_"),
        lambda m: m.counter("process_cpu_time", unit="seconds"),
        lambda m: m.gauge("target"),
        lambda m: m.counter("a", labels=["b"]).inc(),
        lambda m: m.counter("a", labels=["b"]).labels(),
        lambda m: m.counter("a", labels=["b"]).labels(c=1),
        lambda m: m.counter("a").inc(-1),
        lambda m: m.counter("a").inc(math.nan),
        lambda m: m.counter("a").inc(math.inf),
        lambda m: m.counter("a").inc(2e15),
        lambda m: m.gauge("a").set(math.nan),
        lambda m: m.gauge("a").inc(-math.inf),
        lambda m: m.histogram("a").observe(-1.0),
        lambda m: m.histogram("a").observe(math.nan),
    ],
)
def test_what_makes_no_sense_is_a_value_error(
    monitor: MetricsMonitor, make: Callable[[MetricsMonitor], object]
) -> None:
    with pytest.raises(ValueError, match=r"got|has|already"):
        make(monitor)
    assert not any(values(monitor).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.counter(b"a"),
        lambda m: m.counter("a", labels="b"),
        lambda m: m.counter("a", labels=[1]),
        lambda m: m.counter("a").inc("1"),
        lambda m: m.counter("a").inc(None),
        lambda m: m.gauge("a").set(True),
        lambda m: m.histogram("a").observe("1"),
    ],
)
def test_what_is_of_another_type_is_a_type_error(
    monitor: MetricsMonitor, make: Callable[[MetricsMonitor], object]
) -> None:
    with pytest.raises(TypeError, match="got"):
        make(monitor)


def test_a_sum_that_has_no_room_stays_at_the_most(monitor: MetricsMonitor) -> None:
    counter = monitor.counter("a")
    for _ in range(10):
        counter.inc(10**15)
    assert values(monitor)["a",] == 2**51
    assert monitor.get_health()["segments_left_out"] == 0


# --- what they survive ----------------------------------------------------------------------------


def count(monitor: MetricsMonitor, amount: int, length: float) -> int:
    monitor.counter("done", labels=["by"]).labels("all").inc(amount)
    monitor.gauge("length").set(length)
    monitor.gauge("most", merge="max").set(length)
    monitor.gauge("latest", merge="last").set(length)
    monitor.histogram("took").observe(length)
    return os.getpid()


def test_workers_add_up_and_the_dead_ones_counts_stay() -> None:
    with crew(3) as workers:
        for number, worker in enumerate(workers.workers, 1):
            worker.do(count, number, float(number))
        reader = workers.workers[0]
        found = reader.do(values)
        assert found == {
            ("done", "all"): 6,
            ("latest",): 3.0,
            ("length",): 6.0,
            ("most",): 3.0,
            ("took",): 3,
        }
        workers.workers[2].kill()
        assert reader.do(values) == found | {("latest",): 2.0, ("length",): 3.0, ("most",): 2.0}
        successor = workers.start()
        # It takes over the segment of the dead one, whose counts go on.
        successor.do(count, 10, 1.0)
        assert reader.do(values) == {
            ("done", "all"): 16,
            ("latest",): 1.0,
            ("length",): 4.0,
            ("most",): 2.0,
            ("took",): 4,
        }


def set_length(monitor: MetricsMonitor) -> None:
    monitor.gauge("length").set(7)


def test_a_successor_without_the_gauge_does_not_keep_it() -> None:
    with crew(2) as workers:
        reader, worker = workers.workers
        reader.do(MetricsMonitor.get_current_snapshot)
        worker.do(set_length)
        assert reader.do(values) == {("length",): 7}
        worker.kill()
        # It takes over the segment, and has no such gauge.
        workers.start().do(MetricsMonitor.record_request, 1.0)
        assert reader.do(values) == {}


def fork_and_count(monitor: MetricsMonitor) -> None:
    done = monitor.counter("done", labels=["by"]).labels("all")
    done.inc()
    pid = os.fork()
    if not pid:
        try:
            for _ in range(1000):
                done.inc()
        finally:
            os._exit(0)
    for _ in range(1000):
        done.inc()
    os.waitpid(pid, 0)


def test_a_forked_child_counts_in_a_segment_of_its_own() -> None:
    with crew(1) as workers:
        (worker,) = workers.workers
        worker.do(fork_and_count)
        assert worker.do(values) == {("done", "all"): 2001}


def test_after_a_close_they_count_anew(monitor: MetricsMonitor) -> None:
    counter = monitor.counter("a")
    counter.inc()
    monitor.close()
    counter.inc()
    assert values(monitor)["a",] == 1


def test_a_private_worker_takes_them_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """They are in its segment, which they look for only once a step."""
    obstacle = tmp_path / "d"
    obstacle.touch()
    monkeypatch.setenv("METRICSMW_DIR", str(obstacle))
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        jobs, depth, size = monitor.counter("jobs"), monitor.gauge("depth"), monitor.histogram("s")
        monitor.record_request(1.0)
        clock.advance(2)
        depth.set(5.0)
        jobs.inc(1)
        obstacle.unlink()
        clock.advance(4)
        monitor.record_request(1.0)
        assert monitor.opened().mode == "shared"
        jobs.inc(10)
        size.observe(1.0)
        with MetricsMonitor(shared=True, clock=clock) as other:
            assert values(other) == {("jobs",): 11, ("depth",): 5.0, ("s",): 1}
