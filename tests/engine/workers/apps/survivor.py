"""A master ends and its worker lives on; then that ends too. Meanwhile other servers start.

Prints whether the directory of the first server is there after each of these starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil

from metricsmw import get_metrics_monitor
from metricsmw.engine.workers.directories import base_directory
from metricsmw.engine.workers.processes import root_process


def be_master() -> None:
    """Leave a worker behind, which says who it is and where."""
    me = root_process()  # which the fork inherits
    if os.fork() == 0:
        get_metrics_monitor().record_request(1.0)
        print(json.dumps([os.getpid(), f"{me.pid}-{me.start}"]), flush=True)
        signal.pause()


def start(what: str) -> str:
    """Run this script as another program; the first line that it prints."""
    command = [sys.executable, __file__, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
    return line


def ended(process: psutil.Process) -> bool:
    """Whether it has, buried or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def main() -> None:
    """Be one of them, or who starts them."""
    if sys.argv[1:] == ["master"]:
        be_master()
        return
    if sys.argv[1:] == ["other"]:
        get_metrics_monitor().record_request(1.0)
        return
    pid, name = json.loads(start("master"))
    worker = psutil.Process(pid)
    directory = base_directory() / name
    start("other")
    found = {"worker lives": directory.exists()}
    worker.kill()
    while not ended(worker):
        time.sleep(0.01)
    start("other")
    found["worker is dead"] = directory.exists()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
