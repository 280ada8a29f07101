"""Workers that a preloading master forks as root, and that then become nobody.

Prints what each of them reads once all have recorded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.synchronize import Barrier

from metricsmw import get_metrics_monitor

NOBODY = 65534
WORKERS = 2


def worker(barrier: Barrier, results: multiprocessing.SimpleQueue[dict[str, object]]) -> None:
    """Drop the privileges, record, and read once all have recorded."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    monitor = get_metrics_monitor()
    recorder = monitor.recorder
    for _ in range(3):
        recorder.end(recorder.begin(), 200, "/", "GET")
    barrier.wait()
    snapshot, health = monitor.get_current_snapshot(), monitor.get_health()
    found = {"requests": snapshot.total_requests, "in_flight": snapshot.requests_in_flight}
    results.put({**found, "workers": snapshot.workers, "mode": health["mode"]})
    barrier.wait()


def main() -> None:
    """Be the master."""
    get_metrics_monitor().recorder.register_worker()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(WORKERS + 1, timeout=20), context.SimpleQueue()
    workers = [context.Process(target=worker, args=(barrier, results)) for _ in range(WORKERS)]
    for process in workers:
        process.start()
    barrier.wait()
    found = [results.get() for _ in workers]
    barrier.wait()
    for process in workers:
        process.join()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
