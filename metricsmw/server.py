"""Which server this process is a worker of: the root of its family of worker processes.

Workers are forked or spawned by one master that runs the same program. A process belongs to its
parent where both run the same executable and either their command lines are the same (fork:
gunicorn, uWSGI), or its own is multiprocessing's bootstrap (spawn, forkserver: uvicorn,
hypercorn, granian), or both rewrote theirs as a title ("gunicorn: master [app]"). The root is the
topmost process reached so. A supervisor that merely starts programs is no root: their command
lines differ from its own.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import psutil

BOOTSTRAPS = ("from multiprocessing.", "--multiprocessing-fork")


class Process(NamedTuple):
    """A process that pid reuse cannot confuse: its id, and when it started (in its own unit)."""

    pid: int
    start: int

    @property
    def is_running(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return _stat(self.pid) == self.start


def _stat(pid: int) -> int | None:
    """The start of a running process, None where there is none.

    Clock ticks since boot from /proc, which no change of the wall clock moves; elsewhere
    psutil's creation time in milliseconds.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
    except (OSError, IndexError, ValueError):
        pass
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return int(process.create_time() * 1000)
    except psutil.Error:
        return None


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(pid, _stat(pid) or 0)


def root_process() -> Process:
    """The root of this process's server; this process itself where it has no master."""
    root = psutil.Process()
    try:
        while (parent := root.parent()) is not None and _is_worker_of(root, parent):
            root = parent
    except psutil.Error:
        pass  # what cannot be looked at is no master of ours
    return Process(root.pid, _stat(root.pid) or 0)


def _is_worker_of(child: psutil.Process, parent: psutil.Process) -> bool:
    if child.exe() != parent.exe():
        return False
    own, masters = child.cmdline(), parent.cmdline()
    if own == masters or any(word.startswith(BOOTSTRAPS) for word in own):
        return True
    return _title(own) is not None and _title(own) == _title(masters)


def _title(cmdline: list[str]) -> str | None:
    """The first word of a rewritten command line such as ``gunicorn: worker [app]``."""
    text = " ".join(cmdline).strip()
    word, colon, _ = text.partition(": ")
    return word if colon and " " not in word else None
