"""Times one reading of a server's numbers, by us and by the known multi-process client; JSON.

`generations.py WORKERS DEAD ROUNDS REQUESTS`, with METRICSMW_DIR and PROMETHEUS_MULTIPROC_DIR
naming empty directories. DEAD workers have lived before, one after the other, and were killed.
Each worker records its requests, to twenty routes, with both: here all of it with one call, there
one counter and one histogram, labelled by method, route and status as that client's exporters do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict

from timing import race_once

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

WINDOW = 300.0
STEPS = 60
ROUTES = 20
DEAD_REQUESTS = 20
SNAPSHOT, ROUTES_TOO, SCRAPE = "snapshot", "snapshot and routes", "scrape of prometheus_client"

Observe = Callable[[str, float], None]


def prometheus() -> tuple[Observe, Callable[[], object]] | None:
    """How that client records a request, and how it is scraped; None where it is missing."""
    try:
        from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
    except ImportError:
        return None
    labels = ("method", "route", "status")
    requests = Counter("requests", "Requests", labels, registry=None)
    latency = Histogram("latency_seconds", "Latency", labels, registry=None)

    def observe(route: str, seconds: float) -> None:
        requests.labels("GET", route, "200").inc()
        latency.labels("GET", route, "200").observe(seconds)

    def scrape() -> bytes:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)

    return observe, scrape


def work(requests: int, begin: float, end: float, observe: Observe | None) -> MetricsMonitor:
    """Record evenly over a part of the window, which is given in shares of it."""
    clock = ManualClock()
    clock.advance(begin * WINDOW)
    monitor = MetricsMonitor(shared=True, clock=clock)
    steps = max(1, round(STEPS * (end - begin)))
    for step in range(steps):
        for number in range(step * requests // steps, (step + 1) * requests // steps):
            latency_ms = 1.0 + (number * 37) % 1000
            route = f"/{number % ROUTES}/{{id}}"
            monitor.record_request(latency_ms, method="GET", route=route, status=200)
            if observe is not None:
                observe(route, latency_ms / 1000)
        clock.advance((end - begin) * WINDOW / steps)
    return monitor


def main(workers: int, dead: int, rounds: int, requests: int) -> None:
    client = prometheus()
    observe = client and client[0]
    for number in range(dead):
        if (child := os.fork()) == 0:
            work(DEAD_REQUESTS, number / dead, (number + 1) / dead, observe)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    ready, ready_in = os.pipe()
    release, release_in = os.pipe()
    for _ in range(workers - 1):
        if os.fork() == 0:
            os.close(release_in)
            monitor = work(requests, 0.0, 1.0, observe)
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
    monitor = work(requests, 0.0, 1.0, observe)

    def read_with_routes() -> object:
        return monitor.get_current_snapshot(), monitor.get_routes()

    snapshot = monitor.get_current_snapshot()
    total = workers * requests + dead * DEAD_REQUESTS
    if (snapshot.workers, snapshot.total_requests) != (workers, total):
        sys.exit(f"not all of {total} requests are in the snapshot: {snapshot}")
    batches = {SNAPSHOT: monitor.get_current_snapshot, ROUTES_TOO: read_with_routes}
    if client is not None:
        batches[SCRAPE] = client[1]
    for batch in batches.values():
        batch()  # opens files, fills caches
    timed = race_once(batches, rounds)
    costs = {name: asdict(timed.cost(name)) for name in batches}
    ratios = {}
    if client is not None:
        ratios = {name: asdict(timed.multiple(SCRAPE, name)) for name in (SNAPSHOT, ROUTES_TOO)}
    print(json.dumps({"costs": costs, "ratios": ratios}))
    os.close(release_in)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
