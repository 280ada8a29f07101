"""Starts itself twice, with the same command line; each records, and says what it reads.

Prints [total requests, workers] of each, once both have recorded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from metricsmw import get_metrics_monitor

NUMBER = "NUMBER_OF_THIS_ONE"


def main() -> None:
    """Be the starter, or one of the started."""
    if number := os.environ.get(NUMBER):
        monitor = get_metrics_monitor()
        for _ in range(int(number)):
            monitor.record_request(1.0)
        print("ready", flush=True)
        sys.stdin.readline()
        snapshot = monitor.get_current_snapshot()
        print(json.dumps([snapshot.total_requests, snapshot.workers]), flush=True)
        return
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, NUMBER: number},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in ("1", "2")
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    print(json.dumps([json.loads(process.communicate("go\n")[0]) for process in started]))


if __name__ == "__main__":
    main()
