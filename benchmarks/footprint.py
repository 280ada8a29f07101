"""The memory that one worker's monitor takes once its whole window was in use; prints JSON.

`footprint.py private|shared ROUTES`; for "shared" METRICSMW_DIR names an empty directory.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import psutil

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

MIB = 2**20
LATENCIES_MS = (0.5, 4.0, 30.0, 250.0, 1500.0)
STEP_SECONDS = 5  # a sixtieth of the default window


def own_bytes() -> int:
    """Memory that only this process holds, a mapped file's pages included."""
    own: int = psutil.Process().memory_full_info().uss
    return own


def fill(monitor: MetricsMonitor, clock: ManualClock, routes: int) -> None:
    """One request a step on each route, for longer than the window; of 0.5 ms to 1.5 s."""
    for step in range(70):
        monitor.record_request(12.5, user_id="user-17")
        for route in range(routes):
            latency = LATENCIES_MS[(step + route) % len(LATENCIES_MS)]
            monitor.record_request(latency, method="GET", route=f"/items/{route}", status=200)
        clock.advance(STEP_SECONDS)


def main(kind: str, routes: int) -> None:
    with MetricsMonitor(clock=(clock := ManualClock())) as warm:  # modules, caches of the stdlib
        fill(warm, clock, 1)
        warm.get_current_snapshot()
    gc.collect()
    before = own_bytes()
    clock = ManualClock()
    monitor = MetricsMonitor(shared=kind == "shared", clock=clock)
    fill(monitor, clock, routes)
    gc.collect()
    found = {"own": (own_bytes() - before) / MIB}
    if kind == "shared":
        files = [path.stat() for path in Path(os.environ["METRICSMW_DIR"]).rglob("*")]
        found["size"] = sum(file.st_size for file in files) / MIB
        found["blocks"] = sum(file.st_blocks * 512 for file in files) / MIB
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
