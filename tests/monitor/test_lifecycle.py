"""A monitor's life: made, shared as one a process, closed, and nothing left behind."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.workers import membership
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.shared import SharedGroup


def test_close_may_be_called_again(clock: ManualClock) -> None:
    monitor = MetricsMonitor(clock=clock)
    monitor.record_request(1.0)
    monitor.close()
    monitor.close()


def test_a_closed_monitor_that_is_used_again_starts_again(clock: ManualClock) -> None:
    monitor = MetricsMonitor(clock=clock)
    monitor.record_request(1.0, user_id="ada")
    monitor.close()
    monitor.record_request(2.0)
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.active_users) == (1, 0)
    assert snapshot.latency_max_ms == 2.0
    monitor.close()


def test_a_monitor_that_recorded_nothing_may_be_closed() -> None:
    monitor = MetricsMonitor()
    monitor.close()
    monitor.close()


def test_it_is_a_context_manager(clock: ManualClock) -> None:
    with MetricsMonitor(clock=clock) as monitor:
        assert isinstance(monitor, MetricsMonitor)
        monitor.record_request(1.0)
        assert monitor.total_requests == 1
    monitor.close()


def test_the_context_passes_exceptions_on(clock: ManualClock) -> None:
    with pytest.raises(KeyError, match="mine"), MetricsMonitor(clock=clock):
        raise KeyError("mine")


def test_monitors_do_not_mix(clock: ManualClock) -> None:
    with MetricsMonitor(clock=clock) as one, MetricsMonitor(60, clock=clock) as other:
        one.record_request(1.0, user_id="ada", method="GET", route="/", status=200)
        other.record_request(2.0, is_error=True)
        other.record_request(2.0, is_error=True)
        assert (one.total_requests, one.total_errors) == (1, 0)
        assert (other.total_requests, other.total_errors) == (2, 2)
        assert other.get_active_users() == 0
        one.reset_statistics()
        assert other.total_requests == 2
        assert (one.window_seconds, other.window_seconds) == (300, 60)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "forgotten"])
def test_what_it_held_is_released(close: bool) -> None:
    def use() -> None:
        clock = ManualClock()
        monitor = MetricsMonitor(10, clock=clock)
        for _ in range(70):  # every page of the ring is touched
            monitor.record_request(1.0, user_id="ada", method="GET", route="/", status=200)
            clock.advance(0.2)
        monitor.get_current_snapshot()
        if close:
            monitor.close()

    process = psutil.Process()
    for _ in range(10):
        use()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(150):
        use()
    gc.collect()
    # One monitor holds more than half a megabyte: kept, they would be 75 MB and more.
    assert process.memory_info().rss - before < 30 * 2**20


def test_memory_does_not_grow_with_requests() -> None:
    clock = ManualClock()
    process = psutil.Process()
    with MetricsMonitor(10, clock=clock) as monitor:

        def record(count: int) -> None:
            for index in range(count):
                monitor.record_request(
                    index % 977 + 0.5, method="GET", route=f"/{index % 50}", status=200
                )
                clock.advance(0.0007)

        record(30_000)
        monitor.get_current_snapshot()
        gc.collect()
        before = process.memory_info().rss
        record(100_000)
        monitor.get_current_snapshot()
        gc.collect()
        assert process.memory_info().rss - before < 2 * 2**20  # twenty bytes a request


@pytest.mark.parametrize("shared", ["auto", "off"])
def test_there_is_one_for_the_process(run_python: Callable[..., str], shared: str) -> None:
    source = """
import json
from metricsmw import get_metrics_monitor
monitor = get_metrics_monitor(window_seconds=120)
monitor.record_request(5.0)
again = get_metrics_monitor()
print(json.dumps([monitor is again, monitor is get_metrics_monitor(window_seconds=120),
                  again.total_requests, again.window_seconds]))
monitor.close()
"""
    environment = {"METRICSMW_SHARED": "off"} if shared == "off" else {}
    assert json.loads(run_python(source, **environment)) == [True, True, 1, 120]


def test_its_window_is_five_minutes_by_default(run_python: Callable[..., str]) -> None:
    source = """
from metricsmw import get_metrics_monitor
print(get_metrics_monitor().window_seconds, get_metrics_monitor() is get_metrics_monitor())
"""
    assert run_python(source) == "300 True\n"


def test_another_window_warns_and_changes_nothing(run_python: Callable[..., str]) -> None:
    source = """
import json, warnings
from metricsmw import get_metrics_monitor
monitor = get_metrics_monitor(window_seconds=120)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    get_metrics_monitor()
    get_metrics_monitor(window_seconds=120)
    quiet = len(caught)
    same = get_metrics_monitor(window_seconds=60) is monitor
print(json.dumps([quiet, same, monitor.window_seconds,
                  [(w.category.__name__, str(w.message), w.filename) for w in caught]]))
"""
    quiet, same, window, warned = json.loads(run_python(source))
    assert (quiet, same, window) == (0, True, 120)
    ((category, message, filename),) = warned
    assert category == "RuntimeWarning"
    assert "60" in message
    assert "120" in message
    assert filename == "<string>", "the warning should point at the caller"


def test_bad_settings_of_the_first_call_are_refused(run_python: Callable[..., str]) -> None:
    source = """
from metricsmw import get_metrics_monitor
try:
    get_metrics_monitor(window_seconds=5)
except ValueError as error:
    print("window_seconds" in str(error), get_metrics_monitor(window_seconds=30).window_seconds)
"""
    assert run_python(source) == "True 30\n"


def test_many_threads_get_the_same_one(run_python: Callable[..., str]) -> None:
    source = """
import sys, threading
from metricsmw import get_metrics_monitor
sys.setswitchinterval(1e-6)
barrier, got = threading.Barrier(32), []

def get():
    barrier.wait()
    monitor = get_metrics_monitor()
    monitor.record_request(1.0)
    got.append(monitor)

threads = [threading.Thread(target=get) for _ in range(32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(got), len(set(map(id, got))), got[0].total_requests)
"""
    assert run_python(source) == "32 1 32\n"


def test_it_ends_with_its_process_in_silence(run_python: Callable[..., str]) -> None:
    source = """
from metricsmw import get_metrics_monitor
monitor = get_metrics_monitor()
monitor.record_request(1.0, user_id="ada", method="GET", route="/", status=200)
print(monitor.total_requests)
"""
    assert run_python(source, PYTHONWARNINGS="error") == "1\n"


def test_making_and_closing_warns_of_nothing(clock: ManualClock) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with MetricsMonitor(clock=clock) as monitor:
            monitor.record_request(1.0)
        del monitor
        gc.collect()


def test_two_threads_open_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wraps an app while another records already: the second waits for the first."""
    with MetricsMonitor(shared=True) as monitor:
        opened = 0
        both = threading.Barrier(2)

        def open_group(*args: Any) -> Group:
            nonlocal opened
            opened += 1
            with suppress(threading.BrokenBarrierError):
                both.wait(0.2)
            return SharedGroup(*args)

        monkeypatch.setattr(membership, "SharedGroup", open_group)
        monkeypatch.setattr(monitor.membership, "is_worker", lambda: True)
        threads = [
            threading.Thread(target=monitor.recorder.register_worker),
            threading.Thread(target=monitor.record_request, args=(1.0,)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert opened == 1
        assert monitor.total_requests == 1
