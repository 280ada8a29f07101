"""`ServerJob`: work that one worker does for its whole server, again and again.

One worker leads a job (`leader`): it does the work in a daemon thread of its own, or when `run` is
called. A failure is logged once, saved in the job's note and shown by every worker's `/health`.
Every worker has the thread, so that another one goes on when the leader ends.

A thread does not survive a fork: the child gets one of its own. Which processes do the work is
decided by each thread itself. A process that serves or records takes part. One that only imports
the app (a shell, a task queue's worker, the parent of a reloader, the master that preloads the app)
does not, unless the program asks for it by `start=True`. Even then it leaves the work to the
workers that it has forked, and waits `GRACE_SECONDS` first, as a master looks like any process
before it forks.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from metricsmw.engine.fork import on_fork
from metricsmw.engine.workers.leader import LeaderLock, led_jobs
from metricsmw.engine.workers.membership import ServerMember
from metricsmw.engine.workers.notes import CorruptNoteError

logger = logging.getLogger("metricsmw")

R_co = TypeVar("R_co", covariant=True)

OPERATIONAL = "operational"
# The key of the job's problem in its note; None: no problem.
PROBLEM = "problem"
# The time that a master has to load an app and fork its workers.
GRACE_SECONDS = 10.0
# How late a leader may be. SQLite waits up to five seconds for a locked database.
PATIENCE_SECONDS = 15.0
NO_THREAD = "no thread can be started"


class PeriodicTask:
    """A daemon thread that calls ``work`` every ``interval`` seconds, through forks.

    An exception of ``work`` is logged once and counted, and the next call is made all the same.

    Args:
        member: This process as a worker of the server.
        work: What to call.
        interval: Seconds between two calls, and before the first.
        name: The job's name, for the log.
        grace: Seconds that a process waits, where it neither serves nor records and the work was
            asked for by name.
    """

    def __init__(
        self,
        member: ServerMember,
        work: Callable[[], object],
        interval: float,
        name: str,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self.interval = interval
        self.member = member
        self.name = name
        self.can_start = True
        """Whether the thread could be started, the last time that this was tried."""
        self.last_call = 0.0
        """Monotonic time of the last call that ended well, or had nothing to do."""
        self._work = work
        self._grace = grace
        self._everywhere = False
        self._started = False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._has_forked = False
        self._lock = threading.Lock()

    def start(self, everywhere: bool) -> None:
        """Start, unless it runs. Warns of another of the same name, as only one can lead.

        Where no thread can be started, that is logged; `revive` tries again.

        Args:
            everywhere: Whether to work in a process, too, that neither serves nor records.
        """
        with self._lock:
            self._everywhere = self._everywhere or everywhere
            if self._started:
                return
            if any(
                (other.member, other.name) == (self.member, self.name) for other in list(_running)
            ):
                warnings.warn(
                    f"another {self.name!r} of this monitor runs in this process already: "
                    "this one does nothing until that one stops; tell them apart by name=…",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self._started = True
            _running.add(self)
            self._launch()

    def _launch(self) -> None:
        self._stopping = threading.Event()
        self.last_call = time.monotonic()
        thread = threading.Thread(
            target=self._run, args=(self._stopping,), name=f"metricsmw {self.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            if self.can_start:
                logger.error(
                    "metricsmw: %s is not done by this process, and will be tried again: %s",
                    self.name,
                    error,
                )
            self.can_start, self._thread = False, None
        else:
            self.can_start, self._thread = True, thread

    def revive(self) -> None:
        """Try again to start a thread that could not be started."""
        with self._lock:
            if self._started and not self.can_start:
                self._launch()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop; may be repeated.

        Args:
            timeout: Seconds to wait for a call in progress.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._started, self._everywhere, self.can_start = False, False, True
            self._stopping.set()
            _running.discard(self)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def is_due(self) -> bool:
        """Return whether this process is to work now."""
        if not self._started:
            return False
        return self.member.is_serving or (self._everywhere and self.member.is_open)

    def _run(self, stopping: threading.Event) -> None:
        started = time.monotonic()
        while not stopping.wait(self.interval):
            try:
                alone = not self._has_forked and not _is_uwsgi_master()
                waited = time.monotonic() - started >= self._grace
                may_open = self._everywhere and alone and waited and not self.member.is_closed
                if self.is_due() or may_open:
                    self._work()
                self.last_call = time.monotonic()
            except Exception:
                self.member.faults.report(self.name)

    def after_fork(self, child: bool) -> None:
        """Note the fork; in the child, start a thread."""
        self._has_forked = True
        if child:
            self._lock = threading.Lock()
            self._launch()


class ServerJob(Generic[R_co]):
    """One job of the server: who does it, when, and what `/health` shows of it.

    Args:
        member: This process as a worker of the server.
        name: The job's name in the whole server, which is also its component in `/health`.
        work: Does the job once; called by the leader only, by one thread at a time.
        otherwise: Returned by `run` where another worker leads, or ``work`` failed.
        interval: Seconds between two runs of the thread.
        title: The job's name in the log.
        expected: Exceptions of ``work`` that are logged once, saved as the job's problem and then
            tried again. Others are raised by `run`, and are faults of the thread.
        patience: By how many seconds more than ``interval`` a leader may be late, before `/health`
            says so and another worker takes the lead.
        grace: See `PeriodicTask`.
        renew: Called in a forked child, where locks that other threads held stay locked.
        find_damage: Returns the damage that this process found in the job's files, or None.

    Raises:
        ValueError: The name has other characters than `LeaderLock` takes.
    """

    def __init__(
        self,
        member: ServerMember,
        name: str,
        work: Callable[[], R_co],
        otherwise: R_co,
        *,
        interval: float,
        title: str | None = None,
        expected: tuple[type[Exception], ...] = (),
        patience: float = PATIENCE_SECONDS,
        grace: float = GRACE_SECONDS,
        renew: Callable[[], object] | None = None,
        find_damage: Callable[[], str | None] | None = None,
    ) -> None:
        self.leader = LeaderLock(member, name)
        self._member = member
        self._work = work
        self._otherwise = otherwise
        self._title = title or name
        self._expected = expected
        self._patience = patience
        self._renew = renew
        self._find_damage = find_damage
        self._is_failing = False
        self._lock = threading.Lock()
        self._task = PeriodicTask(member, self._run_in_time, interval, name, grace)
        _all.add(self)

    @property
    def name(self) -> str:
        """The job's name in the whole server."""
        return self.leader.name

    def start(self, everywhere: bool) -> None:
        """Do the job in a daemon thread; may be repeated.

        Args:
            everywhere: Whether to do so in a process, too, that neither serves nor records.
        """
        self._member.jobs.add(self)
        self._task.start(everywhere)

    def pause(self, timeout: float = 5.0) -> None:
        """Stop the thread, and keep the lead; may be repeated.

        Args:
            timeout: Seconds to wait for a run in progress.
        """
        self._task.stop(timeout)

    def stop(self) -> None:
        """Stop the thread and release the lead; may be repeated."""
        self.pause()
        self._member.jobs.remove(self)
        self.release()

    def release(self) -> None:
        """Release the lead, until the next run."""
        self.leader.release()

    def run(self) -> R_co:
        """Do the job now, if this worker leads or nobody does.

        Returns:
            What the work returned; see ``otherwise``.

        Raises:
            OSError: The server's directory cannot be used.
        """
        # A run that hangs in another thread is not waited for without end.
        if not self._lock.acquire(timeout=self._patience):
            return self._otherwise
        try:
            if not self.leader.acquire():
                return self._otherwise
            self._member.jobs.add(self)
            try:
                result = self._work()
            except self._expected as error:
                self._report(error)
                return self._otherwise
            if self._expected:
                self._report(None)
            return result
        finally:
            self._lock.release()

    def _run_in_time(self) -> None:
        """Write the next deadline, and do the job."""
        if self.leader.acquire():
            self.leader.promise(self._task.interval + self._patience)
            self.run()

    def _report(self, error: Exception | None) -> None:
        """Log a change once and save it in the note, without paths, as `/health` is public."""
        if error is not None and not self._is_failing:
            logger.error("metricsmw: %s fails, and will be tried again: %s", self._title, error)
        if error is None and self._is_failing:
            logger.warning("metricsmw: %s works again", self._title)
        self._is_failing = error is not None
        problem = None
        if error is not None:
            problem = f"failing: {getattr(error, 'strerror', None) or error}"
        try:
            is_saved = self.leader.read().get(PROBLEM, "") == problem
        except CorruptNoteError:
            is_saved = False
        if not is_saved:
            self.leader.write({PROBLEM: problem})

    def problem(self) -> str | None:
        """Return why this process cannot do the job; None: it can.

        Tries again to start a thread that could not be started.
        """
        self._task.revive()
        if not self._task.can_start:
            return f"failing: {NO_THREAD}"
        late = time.monotonic() - self._task.last_call - self._task.interval
        if self._task.is_due() and late > self._patience:
            return _lateness(late)
        return None

    def damage(self) -> str | None:
        """Return the damage that this process found in the job's files; None: none."""
        return None if self._find_damage is None else self._find_damage()

    def after_fork(self) -> None:
        """Release the parent's lead and make new locks, in a forked child."""
        self._lock = threading.Lock()
        self.leader.after_fork()
        if self._renew is not None:
            self._renew()


def job_health(
    member: ServerMember, monotonic: Callable[[], float] = time.monotonic
) -> Mapping[str, str]:
    """Return how the server's jobs do, by name: "operational", or what is wrong.

    A job that nobody leads is left out, but for one that this process is to do and cannot.

    Args:
        member: This process as a worker of the server.
        monotonic: The machine's monotonic clock.
    """
    found: dict[str, str] = {}
    for name, late, note in led_jobs(member, monotonic):
        if late > 0:
            found[name] = _lateness(late)
        elif isinstance(note, CorruptNoteError):
            found[name] = f"its note is damaged: {note}"
        else:
            problem = note.get(PROBLEM)
            found[name] = OPERATIONAL if problem is None else str(problem)[:200]
    for job in list(member.jobs.jobs):
        damage = job.damage()
        if damage is not None:
            found[job.name] = f"failing: {damage}"
        elif job.name not in found and (problem := job.problem()) is not None:
            found[job.name] = problem
    return found


def _lateness(seconds: float) -> str:
    return f"late by {seconds:.0f} s"


def _is_uwsgi_master() -> bool:
    """Return whether uWSGI forks its workers, past Python's hooks, from this process."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.masterpid() == os.getpid()


# Strong references: in a forked child the thread that held a task is gone.
_running: set[PeriodicTask] = set()
_all: weakref.WeakSet[ServerJob[object]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for job in list(_all):
        job.after_fork()
    for task in list(_running):
        task.after_fork(child=True)


def _after_fork_in_parent() -> None:
    for task in list(_running):
        task.after_fork(child=False)


on_fork(_after_fork_in_child)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent)
