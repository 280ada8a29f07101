"""Leader election for one job of the server, and the job's saved state.

`LeaderLock` is a worker's part in a job, known by the job's name. One worker leads: it holds the
flock of ``once-<name>.lock`` in the server's directory until it stops or dies, and then another
may lead. Only the leader writes ``once-<name>.json``, always as a whole, so that the next leader
goes on where this one stood; every worker may read it. A private monitor leads by itself, in
memory.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from metricsmw.engine.fork import on_fork

try:
    import fcntl
except ImportError:  # Windows, where every monitor is private
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

State = dict[str, object]

NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
FILE = re.compile(r"once-([a-z][a-z0-9_]*)\.json")
# The key of a state under which its work tells `/health` what is wrong; None: nothing.
PROBLEM = "problem"


class _Memory:
    """What a private monitor has instead of a directory."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.leaders: weakref.WeakValueDictionary[str, LeaderLock] = weakref.WeakValueDictionary()


_memories: weakref.WeakKeyDictionary[MetricsMonitor, _Memory] = weakref.WeakKeyDictionary()
_all: weakref.WeakSet[LeaderLock] = weakref.WeakSet()


class LeaderLock:
    """This worker's part in the work ``name`` (letters in lower case, digits, underscores).

    Raises `ValueError` for another name.
    """

    def __init__(self, monitor: MetricsMonitor, name: str) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"name must be up to 41 letters in lower case, digits and underscores, got {name!r}"
            )
        self._monitor = monitor
        self._name = name
        self._fd = -1
        self._place: Path | None = None
        self._lock = threading.Lock()
        _all.add(self)

    def acquire(self) -> bool:
        """Whether this worker leads; it does from now on where nobody else did.

        Raises OSError where the server's directory cannot be used.
        """
        directory = self._monitor.directory
        with self._lock:
            if self._holds(directory):
                return True
            self._let_go()
            if directory is None:
                return _memory(self._monitor).leaders.setdefault(self._name, self) is self
            path = directory / f"once-{self._name}.lock"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            self._fd, self._place = fd, directory
            return True

    @property
    def is_leader(self) -> bool:
        """Whether this worker leads already."""
        if not self._monitor.is_open:  # to ask it for its directory would open it
            return False
        directory = self._monitor.directory
        with self._lock:
            return self._holds(directory)

    def _holds(self, directory: Path | None) -> bool:
        if directory is None:
            return _memory(self._monitor).leaders.get(self._name) is self
        return self._fd >= 0 and self._place == directory and os.fstat(self._fd).st_nlink > 0

    def release(self) -> None:
        """Lead no more; another worker may."""
        with self._lock:
            self._let_go()

    def end(self) -> None:
        """Lead no more, and take back what was told `/health`: without a leader it is not so."""
        if self.is_leader:
            with suppress(OSError):
                self.write({})
        self.release()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        leaders = _memory(self._monitor).leaders
        if leaders.get(self._name) is self:
            del leaders[self._name]

    def read(self) -> State:
        """What the leader noted last; empty where there is nothing, or nothing whole."""
        directory = self._monitor.directory
        if directory is None:
            return _decode(_memory(self._monitor).states.get(self._name, ""))
        return _read(directory / f"once-{self._name}.json")

    def write(self, state: Mapping[str, object]) -> None:
        """Note it, for all workers and for the next leader. Only the leader may.

        Raises OSError where there is no room; what was noted before is then untouched.
        """
        import json  # here, as importing the package is to cost next to nothing

        text = json.dumps(state)
        directory = self._monitor.directory
        if directory is None:
            _memory(self._monitor).states[self._name] = text
            return
        draft = directory / f"new-once-{self._name}"
        try:
            descriptor = os.open(
                draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600
            )
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(draft, directory / f"once-{self._name}.json")
        except OSError:
            with suppress(OSError):
                draft.unlink()
            raise

    def forget(self) -> None:
        """In a forked child: the lead stays with the parent."""
        self._lock = threading.Lock()
        # Closed, not unlocked: the lock is the parent's as long as the parent has it open.
        self._let_go()


def let_go(monitor: MetricsMonitor) -> None:
    """Lead nothing more for a monitor that is closed."""
    for once in list(_all):
        if once._monitor is monitor:
            once.release()


def states(monitor: MetricsMonitor) -> dict[str, State]:
    """What is noted about all such work of the monitor's server, by name."""
    directory = monitor.directory
    if directory is None:
        return {name: _decode(text) for name, text in sorted(_memory(monitor).states.items())}
    found = {}
    with suppress(OSError):
        for name in sorted(os.listdir(directory)):
            if match := FILE.fullmatch(name):
                found[match[1]] = _read(directory / name)
    return found


def problems(monitor: MetricsMonitor) -> dict[str, str | None]:
    """For each work that tells it, what is wrong, or None."""
    return {
        name: None if state[PROBLEM] is None else str(state[PROBLEM])
        for name, state in states(monitor).items()
        if PROBLEM in state
    }


def _memory(monitor: MetricsMonitor) -> _Memory:
    return _memories.setdefault(monitor, _Memory())


def _read(path: Path) -> State:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, encoding="utf-8") as file:
            return _decode(file.read())
    except (OSError, UnicodeDecodeError):
        return {}


def _decode(text: str) -> State:
    import json

    try:
        state = json.loads(text)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def _after_fork() -> None:
    _memories.clear()
    for once in list(_all):
        once.forget()


on_fork(_after_fork)
