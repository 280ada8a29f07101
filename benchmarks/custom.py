"""Times records of the app's own numbers; prints JSON.

`custom.py ROUNDS`, with PROMETHEUS_MULTIPROC_DIR naming an empty directory: the known client, which
keeps its numbers in files there, is timed in the same mode.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from prometheus_client import Histogram
from timing import calls, empty_loop, race

from metricsmw import MetricsMonitor

LOOP = "empty loop"
RECORD = "record_request(latency_ms)"
INC = "counter: inc() of a kept series"
SET = "gauge: set(value) of a kept series"
OBSERVE = "histogram: observe(value) of a kept series"
LABELLED = "histogram: labels(…).observe(value)"
CLIENT = "prometheus_client, multi-process: labels(…).observe(value)"


def main(rounds: int) -> None:
    monitor = MetricsMonitor()
    counter = monitor.counter("orders", labels=["shop"]).labels("north")
    gauge = monitor.gauge("queue", labels=["shop"]).labels("north")
    histogram = monitor.histogram("payment", labels=["shop"])
    series = histogram.labels("north")
    known = Histogram("payment_seconds", "Payments.", ["shop"])
    timed = race(
        {
            LOOP: empty_loop,
            RECORD: calls(monitor.record_request, 12.5),
            INC: calls(counter.inc),
            SET: calls(gauge.set, 3.0),
            OBSERVE: calls(series.observe, 0.0125),
            LABELLED: calls(lambda: histogram.labels("north").observe(0.0125)),
            CLIENT: calls(lambda: known.labels("north").observe(0.0125)),
        },
        rounds,
        0.002,
    )
    ours = (INC, SET, OBSERVE)
    found = {
        "costs": {
            name: asdict(timed.added(name, LOOP)) for name in (RECORD, *ours, LABELLED, CLIENT)
        },
        "ratios": {name: asdict(timed.ratio(name, RECORD, LOOP)) for name in ours},
        "client": asdict(timed.ratio(CLIENT, LABELLED, LOOP)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
