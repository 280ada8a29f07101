"""Which server this process is a worker of: the root of its family of worker processes.

A process belongs to its parent where it is a fork of it (gunicorn, uWSGI), or where
multiprocessing started it (uvicorn, hypercorn, granian): its command line is then that module's
bootstrap, run by the same executable. A release of Python may change that text, so what the module
says in the calling process is a second witness (`_Words`). The root is the topmost process reached
so. A shell or a supervisor that merely starts a program is no root of it, whatever its own command
line is. Nor is the parent of a daemon, which has begun a session of its own.

The root names the server. It is looked up as the first monitor is made, and forks inherit it: so
all processes of a server have the same root, even if that has ended meanwhile. Which process keeps
the server alive is looked up again whenever a segment is opened (`find_root`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from metricsmw.engine.workers.surroundings import HERE, ProcessStatus, Surroundings, unique_start

# Whose multiprocessing children serve; those of anybody else are taken for helpers.
SERVERS = ("uvicorn", "hypercorn", "granian")
ARBITER = "gunicorn.arbiter"
BOOTSTRAP = re.compile(r"(import sys; )?from multiprocessing\.")
MAINS = (("multiprocessing.spawn", "spawn_main"), ("multiprocessing.forkserver", "main"))
TITLE = re.compile(r"(\S+:|uWSGI) ")  # "gunicorn: worker [app]", "uWSGI worker 1"

UNSEEN = "who started this worker is not shown here, set METRICSMW_DIR to share its numbers"


class Process(NamedTuple):
    """A process that pid reuse cannot confuse: its id, and when it started (in its own unit).

    A start of 0 is not known.
    """

    pid: int
    start: int

    def is_running(self, here: Surroundings = HERE) -> bool:
        """Return whether it may still run; a zombie does not."""
        status = here.status(self.pid)
        if status is not None:
            return status.runs and self.start in (0, status.start)
        if self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # it is another user's, which /proc hides
        return True


class Root(NamedTuple):
    """The root of a family.

    Attributes:
        process: The root.
        parent: The parent of the calling process, where that is of the family; else itself.
        problem: Why it may be the wrong one; empty where it is not.
    """

    process: Process
    parent: Process
    problem: str = ""


def this_process(here: Surroundings = HERE) -> Process:
    """Return the calling process."""
    return _process(os.getpid(), here.status(os.getpid()))


def _process(pid: int, status: ProcessStatus | None) -> Process:
    return Process(pid, status.start if status is not None else unique_start(pid))


def find_root(here: Surroundings = HERE) -> Root:
    """Return the root of the calling process's family, as it is shown now."""
    pid = os.getpid()
    status = here.status(pid)
    if status is None:
        return _root_by_server()
    line = [_process(pid, status)]
    words = _Words()
    while True:
        parent = os.getppid() if pid == os.getpid() else status.parent
        if parent <= 0:
            break
        is_told = words.name(parent, status)
        if not (is_told or _may_be_worker(pid, status, here)):
            break
        above = here.status(parent)
        if above is None:
            # Hidden, as it is another user's. A daemon's new parent is of another session.
            if not status.is_fork or _session(parent) == status.session:
                line.append(_process(parent, None))
            break
        if not (is_told or _is_worker_of(pid, status, parent, above, here)):
            break
        line.append(_process(parent, above))
        pid, status = parent, above
    return Root(line[-1], line[min(1, len(line) - 1)])


class _Words:
    """What multiprocessing says in the calling process of who started it, or what it is a fork of.

    Once a child runs its target the module names the parent. Before, as the app is imported, only
    its bootstrap is on the stack: of the process at the end of the line of forks.
    """

    def __init__(self) -> None:
        processes = sys.modules.get("multiprocessing.process")
        told = processes.parent_process() if processes is not None else None
        self._parent = told.pid if told is not None else 0
        self._on_stack = any(
            frame.f_code.co_name == name and frame.f_globals.get("__name__") == module
            for frame in _stack()
            for module, name in MAINS
        )

    def name(self, parent: int, status: ProcessStatus) -> bool:
        """Return whether a parent is named, of the process on the way up that has this status."""
        if self._on_stack and status.is_fork is False:
            self._on_stack = False
            return True
        return parent == self._parent


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _root_by_server() -> Root:
    """Return the root as the server that runs here tells it, where the system does not."""
    me, parent = _process(os.getpid(), None), _process(os.getppid(), None)
    if uwsgi := sys.modules.get("uwsgi"):
        master = int(uwsgi.masterpid())
        return Root(_process(master, None), parent) if master else Root(me, me)
    processes = sys.modules.get("multiprocessing.process")
    above = processes.parent_process() if processes is not None else None
    if (above is not None and above.pid == parent.pid) or is_forked_by_server():
        return Root(parent, parent)
    return Root(me, me, UNSEEN)


def _may_be_worker(pid: int, status: ProcessStatus, here: Surroundings) -> bool:
    return status.is_fork is not False or _is_bootstrap(here.command(pid))


def _is_bootstrap(command: list[str]) -> bool:
    """Whether multiprocessing starts a child by it."""
    if "--multiprocessing-fork" in command:
        return True
    code = command.index("-c") + 1 if "-c" in command else len(command)
    return any(BOOTSTRAP.match(word) for word in command[code : code + 1])


def _is_worker_of(
    pid: int, status: ProcessStatus, parent: int, above: ProcessStatus, here: Surroundings
) -> bool:
    own = here.command(pid)
    if _is_bootstrap(own) and not status.is_fork:
        return here.executable(pid) == here.executable(parent)
    if status.session != above.session:
        return False
    if status.layout is not None and above.layout is not None:
        return status.layout == above.layout
    masters = here.command(parent)
    if own == masters or (_title(own) is not None and _title(own) == _title(masters)):
        return True
    # The kernel's word that it was forked, and a name that it has not changed since.
    return bool(status.is_fork) and status.name == above.name


def _title(command: list[str]) -> str | None:
    """Return how a command line begins that was rewritten as a title."""
    title = TITLE.match(" ".join(command))
    return title and title[0]


_root: Root | None = None


def server_root() -> Root:
    """Return the root that names this process's server; a fork has that of its parent.

    This process itself where it has no master.
    """
    global _root
    if _root is None:
        _root = find_root()
    return _root


def root_process() -> Process:
    """Return the process that names this process's server."""
    return server_root().process


def site() -> str:
    """Return what tells this server from others of the same processes; empty where nothing does.

    Apache's mod_wsgi serves several sites by forks of one process, and by interpreters in one.
    """
    module = sys.modules.get("mod_wsgi")
    if module is None:
        return ""
    names = (getattr(module, name, "") for name in ("process_group", "application_group"))
    return "|".join(map(str, names))


def is_worker() -> bool:
    """Return whether a server has made this process to serve, as far as can be told before it does.

    A fork is one, and what multiprocessing starts where its target is a server's. Other processes
    that import the app are helpers of a program: they count once they record or read.
    """
    if os.getpid() in (root_process().pid, find_root().process.pid):
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
    """Return whether a server that loads apps first has just forked this process.

    uWSGI knows which of its forks are workers (`is_worker`); gunicorn's come from one function.
    """
    if "uwsgi" in sys.modules:
        return True
    return any(
        frame.f_code.co_name == "spawn_worker" and frame.f_globals.get("__name__") == ARBITER
        for frame in _stack()
    )


# As a monitor is made. On other systems psutil would be loaded for it, before anything is recorded.
if sys.platform == "linux":
    server_root()
