"""A script that records, and so do its multiprocessing children; prints what each of them reads.

family.py forkserver            the start method
family.py forkserver COMMAND    its fork server is started by another command: {} is the module
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from multiprocessing import util
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


def start_by(command: str) -> None:
    """Have Python start fork servers by another command, as another of its releases may do."""
    start = util.spawnv_passfds  # type: ignore[attr-defined]

    def start_otherwise(path: str, args: Sequence[str | bytes], fds: Sequence[int]) -> int:
        beginning = re.compile("(import sys; )?from multiprocessing.forkserver import main; ")
        assert any(beginning.match(os.fsdecode(word)) for word in args) or "forkserver" not in str(
            args
        )
        words = [beginning.sub(command, os.fsdecode(word)) for word in args]
        pid: int = start(path, words, fds)
        return pid

    util.spawnv_passfds = start_otherwise  # type: ignore[attr-defined]


def main() -> None:
    """Be the parent, with children of the start method that the first argument names."""
    context = multiprocessing.get_context(sys.argv[1])
    if len(sys.argv) > 2:
        start_by(sys.argv[2])
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
