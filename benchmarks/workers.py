"""Starts workers that record and stay, and times snapshots of them all; prints JSON.

`workers.py WORKERS REQUESTS ROUNDS`, with METRICSMW_DIR naming an empty directory. The process
that reads is one of the workers. Each records its requests evenly over the whole window, on a
clock moved by hand, so that a read meets a full ring of checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from described import DescribedMonitor
from timing import calls, race

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

STEPS = 60
STEP_SECONDS = 5  # of the default window


def latency_ms(number: int) -> float:
    """Milliseconds from 1 to 1000, spread over the histogram as an app's are."""
    return 1.0 + (number * 37) % 1000


def work(requests: int) -> MetricsMonitor:
    """Return a worker's monitor at the end of a window with that many requests."""
    clock = ManualClock()
    monitor = MetricsMonitor(shared=True, clock=clock)
    for step in range(STEPS):
        for number in range(step * requests // STEPS, (step + 1) * requests // STEPS):
            monitor.record_request(latency_ms(number))
        clock.advance(STEP_SECONDS)
    return monitor


def main(workers: int, requests: int, rounds: int) -> None:
    ready, ready_in = os.pipe()
    release, release_in = os.pipe()
    for _ in range(workers - 1):
        if os.fork() == 0:
            os.close(release_in)
            monitor = work(requests)
            os.write(ready_in, b".")
            os.read(release, 1)  # until the reader is gone
            os._exit(0)
    os.close(ready_in)
    waiting = workers - 1
    while waiting:
        answers = os.read(ready, waiting)
        if not answers:
            sys.exit("a worker died")
        waiting -= len(answers)
    monitor, described = work(requests), DescribedMonitor()
    for number in range(min(requests, 10_000)):
        described.record_request(latency_ms(number))
    snapshot = monitor.get_current_snapshot()
    if (snapshot.workers, snapshot.total_requests) != (workers, workers * requests):
        sys.exit(f"not all workers are in the snapshot: {snapshot}")
    timed = race(
        {
            "ours": calls(monitor.get_current_snapshot),
            "described": calls(described.get_current_snapshot),
        },
        rounds,
        0.002,
    )
    print(json.dumps({name: asdict(timed.cost(name)) for name in ("ours", "described")}))
    os.close(release_in)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
