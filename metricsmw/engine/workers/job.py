"""A daemon thread that does a piece of work again and again, in whichever process is a worker.

A thread does not survive a fork: the child gets one of its own. In a process that has forked, and
in a fork, the work is left undone until the process takes part in the measuring: the master that
preloads an app leaves it to its workers, and so does a helper process that a worker forks. As
nobody can tell such a master before it forks, a process that has measured nothing yet waits a
little.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from metricsmw.engine.fork import on_fork

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


# For a master that loads an app to fork.
GRACE_SECONDS = 10.0


class PeriodicTask:
    """Calls ``work`` every ``interval`` seconds, the first time after one of them, or after ten
    seconds where nothing has been measured or read yet; and not while the monitor is closed.

    What it raises is a fault of the monitor's: logged once, counted, and tried again. ``renew`` is
    called in a forked child, where locks that other threads held would stay locked for ever.
    ``name`` is that of its `LeaderLock`.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        work: Callable[[], object],
        interval: float,
        name: str,
        renew: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._work = work
        self._interval = interval
        self._name = name
        self._renew = renew
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._forked = False
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped."""
        return self._thread is not None

    def start(self) -> None:
        """Start, unless it runs. Warns of another of the same name, as only one can lead."""
        with self._lock:
            if self._thread is None:
                if any(
                    (other._monitor, other._name) == (self._monitor, self._name)
                    for other in list(_running)
                ):
                    warnings.warn(
                        f"another {self._name!r} of this monitor runs in this process already: "
                        "this one does nothing until that one stops; tell them apart by name=…",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                _running.add(self)
                self._launch()

    def _launch(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopping,), name=f"metricsmw {self._name}", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop; waits up to ``timeout`` seconds for work in progress."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping.set()
            _running.discard(self)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self, stopping: threading.Event) -> None:
        started = time.monotonic()
        while not stopping.wait(self._interval):
            try:
                alone = not self._forked and not _is_uwsgi_master()
                waited = time.monotonic() - started >= GRACE_SECONDS
                may_open = alone and waited and not self._monitor.is_closed
                if self._monitor.is_open or may_open:
                    self._work()
            except Exception:
                self._monitor.faults.report(self._name)

    def forked(self, child: bool) -> None:
        self._forked = True
        if child:
            self._lock = threading.Lock()
            self._renew()
            self._launch()


def _is_uwsgi_master() -> bool:
    """uWSGI forks its workers past Python's hooks, so that their master is not told."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.masterpid() == os.getpid()


# Held here, as in a forked child nothing else may hold it: the thread that did is gone.
_running: set[PeriodicTask] = set()


def _tell(child: bool) -> None:
    for background in list(_running):
        background.forked(child)


on_fork(lambda: _tell(True))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=lambda: _tell(False))
