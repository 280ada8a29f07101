"""Builds that can run without a GIL count exactly, whatever the GIL does meanwhile.

`kits.get_pythons` gets a real one; where it has not been asked to, that test is skipped.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kits.get_pythons import free_threaded

import metricsmw

THREADS = 8
EACH = 5_000

COUNT = f"""
import json, sys, threading
from metricsmw import MetricsMonitor

monitor = MetricsMonitor()
counter, recorder = monitor.counter("orders"), monitor.recorder
barrier = threading.Barrier({THREADS})

def work():
    barrier.wait()
    for number in range({EACH}):
        monitor.record_request(12.5)
        recorder.end(recorder.begin(), 404 if number % 10 == 0 else 200, "/a", "GET")
        counter.inc()

threads = [threading.Thread(target=work) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
snapshot = monitor.get_current_snapshot()
print(json.dumps({{
    "gil": sys._is_gil_enabled(),
    "requests": snapshot.total_requests,
    "errors": snapshot.total_errors,
    "in_flight": snapshot.requests_in_flight,
    "of_route": monitor.get_routes()[0]["requests"],
    "orders": monitor.get_custom()[0]["value"],
}}))
"""


@pytest.mark.skipif(
    not free_threaded().is_file(),
    reason="no free-threaded Python: python tests/kits/get_pythons.py free-threaded",
)
def test_no_count_is_lost_without_a_gil(tmp_path: Path) -> None:
    # The package alone: this Python's psutil beside it is none for that build.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "metricsmw").symlink_to(Path(metricsmw.__file__).parent)
    done = subprocess.run(
        [free_threaded(), "-X", "gil=0", "-c", COUNT],
        env={
            "PYTHONPATH": str(tmp_path / "path"),
            "METRICSMW_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "gil": False,
        "requests": 2 * THREADS * EACH,
        "errors": THREADS * EACH // 10,
        "in_flight": 0,
        "of_route": THREADS * EACH,
        "orders": THREADS * EACH,
    }


@pytest.mark.parametrize("gil", ["True", "False"])
def test_the_build_decides_and_not_the_gil_of_the_moment(
    gil: str, run_python: Callable[..., str]
) -> None:
    """A thread that imports an extension turns the GIL on for as long as that takes."""
    source = f"""
import sys
sys.version = "3.14.0 free-threading build (main)"
sys._is_gil_enabled = lambda: {gil}
from metricsmw import MetricsMonitor
monitor = MetricsMonitor()
print(monitor.recorder.end.__name__, monitor.counter("a").inc.__name__)
"""
    assert run_python(source) == "locked inc\n"


def test_a_build_with_a_gil_takes_no_lock(run_python: Callable[..., str]) -> None:
    source = """
from metricsmw import MetricsMonitor
print(MetricsMonitor().recorder.end.__name__)
"""
    assert run_python(source) == "end\n"
