"""Times a record on one, two and four threads, and counts what is lost on eight.

    python3.13t benchmarks/threads.py          any Python; needs psutil

For builds without a GIL, where threads record at the same time: wall time a record, relative to
that of one thread, the best of five rounds. 0.5 on two threads of two free cores is perfect.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metricsmw import MetricsMonitor

EACH = 50_000
ROUNDS = 5
LOST_THREADS = 8


def run(monitor: MetricsMonitor, threads: int, each: int) -> float:
    """Record a request of a route `each` times on each thread; wall seconds a record."""
    begin, end = monitor.recorder.begin, monitor.recorder.end
    ready = threading.Barrier(threads + 1)

    def record() -> None:
        ready.wait()
        for _ in range(each):
            end(begin(), 200, "/items/{id}", "GET")

    started = [threading.Thread(target=record) for _ in range(threads)]
    for thread in started:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in started:
        thread.join()
    return (time.perf_counter() - start) / (threads * each)


def main() -> None:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, GIL {'on' if gil else 'off'}")
    monitor = MetricsMonitor()
    counts = (1, 2, 4)
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(ROUNDS):
        for threads in counts:
            best[threads] = min(best[threads], run(monitor, threads, EACH))
    for threads in counts:
        ratio = best[threads] / best[1]
        print(f"{threads} threads: {best[threads] * 1e6:.2f} us of wall time a record, {ratio:.2f}")
    before = monitor.total_requests
    run(monitor, LOST_THREADS, EACH)
    lost = before + LOST_THREADS * EACH - monitor.total_requests
    print(f"{LOST_THREADS} threads: {lost} of {LOST_THREADS * EACH} records lost")


if __name__ == "__main__":
    main()
