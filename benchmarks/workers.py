"""Starts workers that record and stay, and times snapshots of them all; prints JSON.

`workers.py WORKERS REQUESTS ROUNDS`, with METRICSMW_DIR naming an empty directory.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from described import DescribedMonitor
from timing import calls, race

from metricsmw import get_metrics_monitor


def latencies(requests: int) -> list[float]:
    """Milliseconds from 1 to 1000, spread over the histogram as an app's are."""
    return [1.0 + (n * 37) % 1000 for n in range(requests)]


def work(requests: int, ready: int, release: int) -> None:
    """A worker: records, says so, and lives until the other end of `release` is closed."""
    monitor = get_metrics_monitor()
    for latency in latencies(requests):
        monitor.record_request(latency)
    os.write(ready, b".")
    os.read(release, 1)


def main(workers: int, requests: int, rounds: int) -> None:
    ready, ready_in = os.pipe()
    release, release_in = os.pipe()
    for _ in range(workers):
        if os.fork() == 0:
            os.close(release_in)
            work(requests, ready_in, release)
            os._exit(0)
    os.close(ready_in)
    waiting = workers
    while waiting:
        answers = os.read(ready, waiting)
        if not answers:
            sys.exit("a worker died")
        waiting -= len(answers)
    monitor, described = get_metrics_monitor(), DescribedMonitor()
    for latency in latencies(min(requests, 10_000)):
        described.record_request(latency)
    counted = monitor.get_current_snapshot().total_requests
    timed = race(
        {
            "ours": calls(monitor.get_current_snapshot),
            "described": calls(described.get_current_snapshot),
        },
        rounds,
        0.002,
    )
    print(
        json.dumps(
            {
                "requests": counted,
                "ours": asdict(timed.cost("ours")),
                "described": asdict(timed.cost("described")),
            }
        )
    )
    os.close(release_in)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
