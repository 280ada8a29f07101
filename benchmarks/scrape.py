"""Starts workers that record by route and stay, and times scrapes of them all; prints JSON.

`scrape.py WORKERS ROUTES REQUESTS ROUNDS DEAD`, with METRICSMW_DIR and PROMETHEUS_MULTIPROC_DIR
naming empty directories. Each worker has every route, REQUESTS a route; the known client counts the
same latencies in a histogram with its default buckets and the labels method and route. Then DEAD
more workers record every route once, by our way only, and are killed; the scrape is timed again,
beside the known client's, which has grown by nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from timing import calls, race

from metricsmw import MetricsMonitor
from metricsmw.exporters import protobuf, text
from metricsmw.exporters.negotiation import answer
from metricsmw.exporters.server import exposition

ROUTES = "get_routes()"
PROTOBUF = "scrape, protobuf with native histograms"
GZIP = "scrape, protobuf, gzip"
TEXT = "scrape, text"
AFTER = "scrape, protobuf with native histograms, after"
CLIENT = "prometheus_client, multi-process"
ACCEPT = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)


def work(routes: int, requests: int) -> MetricsMonitor:
    """Record in this worker, by both ways."""
    chance = random.Random(os.getpid())
    monitor = MetricsMonitor(shared=True, max_routes=routes)
    known = Histogram("duration_seconds", "Duration.", ["method", "route"])
    for route in range(routes):
        template = f"/section/{route}/items/{{id}}"
        for _ in range(requests):
            seconds = chance.lognormvariate(-4, 1)
            monitor.record_request(seconds * 1000, method="GET", route=template, status=200)
            known.labels("GET", template).observe(seconds)
    return monitor


def die(monitor: MetricsMonitor, routes: int) -> None:
    """Have a worker record every route, and be killed; return once it is gone."""
    if (child := os.fork()) == 0:
        for route in range(routes):
            template = f"/section/{route}/items/{{id}}"
            monitor.record_request(20.0, method="GET", route=template, status=200)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def client() -> bytes:
    """Return the known client's answer to a scrape."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)


def main(workers: int, routes: int, requests: int, rounds: int, dead: int) -> None:
    ready, ready_in = os.pipe()
    release, release_in = os.pipe()
    for _ in range(workers - 1):
        if os.fork() == 0:
            os.close(release_in)
            monitor = work(routes, requests)
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
    monitor = work(routes, requests)
    if len(monitor.get_routes()) != routes or monitor.total_requests != workers * routes * requests:
        sys.exit("not all workers are in the reading")
    ways: dict[str, Callable[[], object]] = {
        ROUTES: monitor.get_routes,
        PROTOBUF: lambda: protobuf.write(exposition(monitor)),
        GZIP: lambda: answer(exposition(monitor), ACCEPT, "gzip"),
        TEXT: lambda: text.write(exposition(monitor)),
        CLIENT: client,
    }
    timed = race({name: calls(way) for name, way in ways.items()}, rounds, 0.002)
    bodies = {
        PROTOBUF: protobuf.write(exposition(monitor)),
        TEXT: text.write(exposition(monitor)),
        CLIENT: client(),
    }
    for _ in range(dead):
        die(monitor, routes)
    if monitor.total_requests != (workers * requests + dead) * routes:
        sys.exit("not all dead workers are in the reading")
    after = race({AFTER: calls(ways[PROTOBUF]), CLIENT: calls(client)}, rounds, 0.002)
    # The known client has the same to do as before, which tells what the machine does meanwhile.
    growth = after.multiple(AFTER, CLIENT).scaled(1 / timed.multiple(PROTOBUF, CLIENT).value)
    found = {
        "costs": {name: asdict(timed.cost(name)) for name in ways}
        | {f"{AFTER} {dead} dead workers": asdict(after.cost(AFTER))},
        "ratio": asdict(timed.multiple(PROTOBUF, ROUTES)),
        "beside": asdict(timed.multiple(PROTOBUF, CLIENT)),
        "growth": asdict(growth),
        "bytes": {name: (len(body), len(gzip.compress(body, 4))) for name, body in bodies.items()},
    }
    print(json.dumps(found))
    os.close(release_in)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
