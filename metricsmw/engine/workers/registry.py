"""`JobRegistry`: a monitor's jobs, and a private monitor's leaders and notes in memory.

The jobs of a server keep their locks and notes as files in the server's directory. A private
monitor has no directory; its leaders, notes and deadlines are kept here instead.
"""

from __future__ import annotations

import weakref
from typing import Protocol

from metricsmw.engine.fork import on_fork


class RegisteredJob(Protocol):
    """A job of this process that has been started or has led."""

    @property
    def name(self) -> str:
        """The name that the job has in the whole server."""

    def problem(self) -> str | None:
        """Return why this process cannot do the job; None: it can."""

    def damage(self) -> str | None:
        """Return the damage that this process found in the job's files; None: none."""

    def release(self) -> None:
        """Release the job, so that another worker may lead it."""


class JobRegistry:
    """The jobs of one monitor in this process.

    Attributes:
        jobs: those that have been started or have led, and were not stopped since.
        leaders: the leader of each job of a private monitor, by the job's name.
        notes: the JSON text that each of those jobs saved last.
        deadlines: the monotonic time by which each of those jobs is to have run again.
    """

    def __init__(self) -> None:
        self.jobs: list[RegisteredJob] = []
        self.leaders: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
        self.notes: dict[str, str] = {}
        self.deadlines: dict[str, float] = {}
        _all.add(self)

    def add(self, job: RegisteredJob) -> None:
        """Add a job, unless it is there."""
        if job not in self.jobs:
            self.jobs.append(job)

    def remove(self, job: RegisteredJob) -> None:
        """Remove a job, if it is there."""
        if job in self.jobs:
            self.jobs.remove(job)

    def release(self) -> None:
        """Release all jobs, as the monitor is closed."""
        for job in list(self.jobs):
            job.release()

    def clear(self) -> None:
        """Drop the leaders, notes and deadlines of the parent, in a forked child."""
        self.leaders.clear()
        self.notes.clear()
        self.deadlines.clear()


_all: weakref.WeakSet[JobRegistry] = weakref.WeakSet()


def _after_fork() -> None:
    for registry in list(_all):
        registry.clear()


on_fork(_after_fork)
