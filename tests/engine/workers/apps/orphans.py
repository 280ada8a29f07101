"""A worker that records in threads forks children, and is killed: is it counted as dead?

Prints what its parent reads while the worker lives, and when only the worker's children do.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings

from metricsmw import get_metrics_monitor

warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point here
CHILDREN = 40
FIELDS = ("workers", "requests_in_flight")


def read() -> dict[str, object]:
    snapshot = get_metrics_monitor().get_current_snapshot().to_dict()
    return {name: snapshot[name] for name in FIELDS}


def worker(ready: int) -> None:
    """Leave a request in flight, fork, say so, and wait for the end."""
    monitor = get_metrics_monitor()
    monitor.record_request(1.0)
    monitor.recorder.begin()

    def busy() -> None:
        while True:
            monitor.record_request(1.0, route="/busy")

    for _ in range(3):
        threading.Thread(target=busy, daemon=True).start()
    for _ in range(CHILDREN):
        if os.fork() == 0:
            os.write(ready, b".")
            time.sleep(30)
            os._exit(0)
    signal.pause()


def main() -> None:
    """Be the parent."""
    get_metrics_monitor().record_request(1.0)
    begun, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        worker(ready)
    for _ in range(CHILDREN):
        os.read(begun, 1)  # that child's fork is over
    before = read()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps([before, read()]), flush=True)
    os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
