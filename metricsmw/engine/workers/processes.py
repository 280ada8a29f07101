"""Which server this process is a worker of: the root of its family of worker processes.

A process belongs to its parent where it is a fork of it (gunicorn, uWSGI), or where
multiprocessing started it (uvicorn, hypercorn, granian): its command line is then that module's
bootstrap, run by the same executable. The root is the topmost process reached so. Whoever merely
starts a program, a shell or a supervisor, is no root of it, whatever its own command line is.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

# psutil is imported where it is used: importing this package is to cost next to nothing.
if TYPE_CHECKING:
    import psutil


# Whose multiprocessing children serve; those of anybody else are taken for helpers.
SERVERS = ("uvicorn", "hypercorn", "granian")
ARBITER = "gunicorn.arbiter"
BOOTSTRAPS = ("from multiprocessing.", "--multiprocessing-fork")
TITLE = re.compile(r"(\S+:|uWSGI) ")  # "gunicorn: worker [app]", "uWSGI worker 1"


class Process(NamedTuple):
    """A process that pid reuse cannot confuse: its id, and when it started (in its own unit)."""

    pid: int
    start: int

    @property
    def is_running(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return _start(self.pid) == self.start


def _fields(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat, from the state on; none where there is no such file."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _start(pid: int) -> int | None:
    """The start of a running process, None where there is none.

    Clock ticks since boot from /proc, which no change of the wall clock moves; elsewhere
    psutil's creation time in milliseconds.
    """
    if fields := _fields(pid):
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    if _fields(os.getpid()):
        return None
    import psutil

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
    return Process(pid, _start(pid) or 0)


@cache
def root_process() -> Process:
    """The root of this process's server; this process itself where it has no master.

    Looked for once; a fork inherits what was found, for its server is the same.
    """
    import psutil

    root = psutil.Process()
    try:
        while (parent := root.parent()) is not None and _is_worker_of(root, parent):
            root = parent
    except psutil.Error:
        pass  # what cannot be looked at is no master of ours
    return Process(root.pid, _start(root.pid) or 0)


def _is_worker_of(child: psutil.Process, parent: psutil.Process) -> bool:
    own = child.cmdline()
    if any(word.startswith(BOOTSTRAPS) for word in own):
        return child.exe() == parent.exe()
    layouts = _layout(child.pid), _layout(parent.pid)
    if None not in layouts:
        return layouts[0] == layouts[1]
    masters = parent.cmdline()
    return own == masters or (_title(own) is not None and _title(own) == _title(masters))


def _layout(pid: int) -> tuple[bytes, bytes] | None:
    """Where a process's code and stack begin, where the system says so.

    A fork has them where its parent has; a program that is started gets random places.
    """
    fields = _fields(pid)
    if not fields or fields[25] == b"0":  # another system, or another user's process
        return None
    return fields[23], fields[25]


def _title(cmdline: list[str]) -> str | None:
    """What a command line that was rewritten as a title begins with."""
    title = TITLE.match(" ".join(cmdline))
    return title and title[0]


def is_worker() -> bool:
    """Whether a server has made this process to serve, as far as can be told before it does.

    A fork is one, and what multiprocessing starts where its target is a server's. Other processes
    that import the app are helpers of a program: they count once they record or read.
    """
    if root_process().pid == os.getpid():
        return False
    if uwsgi := sys.modules.get("uwsgi"):
        return bool(uwsgi.worker_id() > 0)  # mules and spoolers have none
    if (processes := sys.modules.get("multiprocessing.process")) is None:
        return True
    process = processes.current_process()
    if not hasattr(process, "_target"):  # its main process, or one that is being unpickled
        return not hasattr(process, "_inheriting")
    maker = getattr(process._target or type(process), "__module__", None) or ""
    return maker.partition(".")[0] in SERVERS


def is_forked_by_server() -> bool:
    """In a child that has just been forked, whether a server that loads apps first did that.

    uWSGI knows which of its forks are workers (`is_worker`); gunicorn's come from one function.
    """
    if "uwsgi" in sys.modules:
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "spawn_worker" and frame.f_globals.get("__name__") == ARBITER:
            return True
        frame = frame.f_back
    return False
