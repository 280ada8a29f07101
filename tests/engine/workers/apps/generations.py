"""Pairs of workers that record one request each and are killed; prints what is left of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.engine.workers.directories import base_directory
from metricsmw.engine.workers.processes import root_process

ROUTES = 7


def worker(number: int) -> int:
    """Fork a worker that records and waits; its process id."""
    begun, ready = os.pipe()
    child = os.fork()
    if child == 0:
        route = number % ROUTES
        monitor = get_metrics_monitor()
        monitor.record_request(1.0, user_id=f"user {route}", route=f"/{route}")
        os.write(ready, b".")
        signal.pause()
    os.read(begun, 1)
    os.close(begun)
    os.close(ready)
    return child


def size_of(directory: Path) -> tuple[int, int]:
    sizes = [path.stat().st_blocks * 512 for path in directory.iterdir()]
    return len(sizes), sum(sizes)


def cost_of(monitor: MetricsMonitor) -> tuple[int, int]:
    """How many reads of files a snapshot takes, and how many bytes."""
    sizes = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        sizes.append(len(data))
        return data

    os.pread = pread
    monitor.get_current_snapshot()
    monitor.get_routes()
    os.pread = real
    return len(sizes), sum(sizes)


def main() -> None:
    """Be their master, and read."""
    me = root_process()  # which all forks inherit
    directory = base_directory() / f"{me.pid}-{me.start}"
    monitor = get_metrics_monitor()
    monitor.get_current_snapshot()
    sizes, costs = [], []
    for number in range(0, int(sys.argv[1]), 2):
        for child in [worker(number), worker(number + 1)]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        sizes.append(size_of(directory))
        costs.append(cost_of(monitor))
    found = {
        "begin": sizes[ROUTES],
        "end": sizes[-1],
        "begin_cost": costs[ROUTES],
        "end_cost": costs[-1],
        "requests": monitor.total_requests,
        "routes": len(monitor.get_routes()),
        "users": monitor.get_active_users(),
        "workers": monitor.get_current_snapshot().workers,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
