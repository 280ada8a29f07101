"""This process's membership in its server: joining, leaving, a lost segment, a fork, another user.

A process joins a `Group` when it first records, reads or registers as a worker: the directory that
all workers of its server share, or private memory. Recorder and readers ask the membership for the
group each time, because it may have been replaced since.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.aside import do_aside
from metricsmw.engine.directory import Directory
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.storage.reader import NEVER, Reset
from metricsmw.engine.workers.group import Group, PrivateGroup
from metricsmw.engine.workers.joining import Remainder, take_along
from metricsmw.engine.workers.processes import is_worker
from metricsmw.engine.workers.registry import JobRegistry
from metricsmw.engine.workers.shared import CAN_SHARE, SharedGroup, is_ending

logger = logging.getLogger("metricsmw")

OFF = ("off", "0", "false", "no")

# Where there is none (Windows), a process has one user for its life.
_effective_user: Callable[[], int] = getattr(os, "geteuid", lambda: 0)


class ServerMember(Protocol):
    """This process as a worker of its server: a monitor, to the jobs that run beside it."""

    @property
    def shared_directory(self) -> Directory | None:
        """Return the directory of the server's workers; None where the monitor is private.

        Opens the member's segment.
        """

    @property
    def is_open(self) -> bool:
        """Whether this process takes part in the measuring: it has recorded or read."""

    @property
    def is_serving(self) -> bool:
        """Whether this process serves or records, and has not only imported the app, or read."""

    @property
    def is_closed(self) -> bool:
        """Whether the member was closed and not used since."""

    @property
    def faults(self) -> FaultLog:
        """The log to which a job reports exceptions."""

    @property
    def jobs(self) -> JobRegistry:
        """The member's jobs."""


class Membership:
    """The group that this process has joined, if any.

    Attributes:
        group: the group joined, None before and after.
        is_closed: whether the process has left by `close` and not joined again since.
        is_measured: whether an adapter measures in this process.
    """

    def __init__(
        self, settings: Settings, clock: Clock, faults: FaultLog, rejoined: Callable[[], None]
    ) -> None:
        """Join nothing yet.

        Args:
            settings: the monitor's settings; `shared` says whether there is a server to join.
            clock: the clock of the group's times.
            faults: gets the failures of the work that is done beside a record.
            rejoined: called when the process joins again after `close`.
        """
        self._settings = settings
        self._clock = clock
        self._faults = faults
        self._rejoined = rejoined
        self._born = clock.monotonic()  # since when a private group has numbers
        self._owner_uid = -1
        self._next_try = 0.0  # when a private worker may try to join again
        self._remainder: Remainder | None = None
        self.group: Group | None = None
        self.is_closed = self.is_measured = False
        self.seen_reset = 0.0
        """When the server was reset last, as far as this process has seen in a step."""

    def join(self) -> Group:
        """Return the group of this process, joined if need be.

        The recorder calls it with its lock held, so that two threads join once.

        Returns:
            The group. Where the server's directory cannot be used, it is a private one, and its
            `reason` says why.
        """
        if self.group is not None and self._owner_uid != _effective_user():
            self._leave()  # joined by a worker that has dropped its privileges since
        if self.group is None:
            self._owner_uid = _effective_user()
            self.group = self._open_group()
            if self.is_closed:
                self.is_closed = False
                self._rejoined()
        return self.group

    def _open_group(self) -> Group:
        if self._settings.shared is False:
            return PrivateGroup(self._settings, "asked for", self._born)
        if os.environ.get("METRICSMW_SHARED", "").lower() in OFF:
            return PrivateGroup(self._settings, "METRICSMW_SHARED is off", self._born)
        if is_ending():
            return PrivateGroup(self._settings, "the program ends", self._born)
        try:
            return SharedGroup(self._settings, self._clock.monotonic)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("metricsmw: this worker's numbers are its own only, for now: %s", error)
            self._next_try = self._clock.monotonic() + self._settings.step
            return PrivateGroup(self._settings, reason, self._born, failed=CAN_SHARE)

    def is_waiting(self, now: float) -> bool:
        """Return whether this worker is private because joining failed, and may try again now.

        It may try once a step.
        """
        group = self.group
        return group is not None and group.failed and now >= self._next_try

    def on_step(self, now: float) -> bool:
        """Renew the files in use, as the first record of a step is made. Never raises.

        A worker that is private because joining failed tries to join, and takes its counts along.
        The recorder calls this with its lock held.

        Args:
            now: monotonic seconds.

        Returns:
            Whether the group, and so the segment, was replaced.
        """
        group = self.group
        assert group is not None
        try:
            if self._remainder is not None:
                self._remainder.settle()
            do_aside(self._renew, now)
            if self.is_waiting(now) and isinstance(group, PrivateGroup):
                self._next_try = now + self._settings.step
                with suppress(OSError):
                    self.group, self._remainder = take_along(
                        group, self._settings, self._clock.monotonic
                    )
                    logger.warning("metricsmw: this worker's numbers are its server's again")
                    return True
        except Exception:
            self._faults.report("looking after the worker's segment")
        return False

    def _renew(self, now: float) -> None:
        group = self.group
        try:
            if group is not None:
                group.renew(now)
                self.seen_reset = group.reset.at
        except Exception:
            self._faults.report("looking after the worker's segment")

    def is_worker(self) -> bool:
        """Return whether a server has made this process to serve."""
        return self._settings.shared is not False and is_worker()

    def reset(self) -> Reset:
        """Return the server's last reset. Joins nothing."""
        group = self.group
        return group.reset if group is not None else NEVER

    def last_reset(self) -> float:
        """Return the monotonic time of the server's last reset; 0.0 where there was none."""
        return self.reset().at

    def close(self) -> None:
        """Leave the server: gauges are zeroed, counts stay for the other workers."""
        self._leave()
        self.is_closed = True

    def _leave(self) -> None:
        group, self.group = self.group, None
        self._remainder = None
        if group is not None:
            group.close()

    def abandon(self) -> None:
        """Give up a segment that was truncated, removed or overwritten; change nothing in it."""
        group, self.group = self.group, None
        self._remainder = None
        if group is not None:
            group.release()

    def after_fork(self) -> bool:
        """Release the parent's group, in a forked child.

        Returns:
            Whether the parent had joined one.
        """
        had_joined = self.group is not None
        self.abandon()
        self._born = self._clock.monotonic()
        return had_joined
