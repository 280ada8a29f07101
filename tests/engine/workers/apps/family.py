"""A script that records, and so do its multiprocessing children; prints what each of them reads."""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier

from metricsmw import get_metrics_monitor

CHILDREN = 3


def read() -> dict[str, int]:
    snapshot = get_metrics_monitor().get_current_snapshot()
    return {"requests": snapshot.total_requests, "workers": snapshot.workers}


def child(barrier: Barrier, results: multiprocessing.SimpleQueue[dict[str, int]]) -> None:
    """Record, and read once all have."""
    for _ in range(10):
        get_metrics_monitor().record_request(1.0)
    barrier.wait()
    results.put(read())
    barrier.wait()


def main() -> None:
    """Be the parent, with children of the start method that the first argument names."""
    context = multiprocessing.get_context(sys.argv[1])
    for _ in range(5):
        get_metrics_monitor().record_request(1.0)
    barrier, results = context.Barrier(CHILDREN + 1, timeout=20), context.SimpleQueue()
    children = [context.Process(target=child, args=(barrier, results)) for _ in range(CHILDREN)]
    for process in children:
        process.start()
    barrier.wait()
    own = read()
    found = [results.get() for _ in children]
    barrier.wait()
    for process in children:
        process.join()
    print(json.dumps([own, found]))


if __name__ == "__main__":
    main()
