"""The minute history, written by the first worker that records or reads in a new minute.

No thread runs in the background. The first record or read past the end of a minute takes the
server's lock, unless another worker has it, and writes a snapshot of each minute that is missing:
the window as it was at the end of that minute, and what was counted in the minute itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.reading.counts import CLASSES, Counts
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.reading.snapshots import Snapshots
from metricsmw.engine.storage.minutes import Cumulative, History
from metricsmw.engine.storage.reader import Period
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.membership import Membership
from metricsmw.snapshot import NUMERIC_FIELDS, MetricsSnapshot, SnapshotDict

MINUTE = 60.0


class MinuteHistory:
    """Writes the snapshots of minutes for the server that this process is a member of."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        membership: Membership,
        server: ServerReader,
        snapshots: Snapshots,
        faults: FaultLog,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._membership = membership
        self._server = server
        self._snapshots = snapshots
        self._faults = faults

    def catch_up(self, now: float) -> float:
        """Write the minutes that are over at monotonic ``now``, unless another worker does.

        Returns:
            When there is more to do, as monotonic time. Where it fails, which is reported, that is
            a minute later.
        """
        try:
            group = self._membership.group
            return now + MINUTE if group is None else self._catch_up(group, now)
        except Exception:
            self._faults.report("the minute history")
            return now + MINUTE

    def _catch_up(self, group: Group, now: float) -> float:
        history = group.history
        origin = history.origin
        if not _is_possible(history, now):
            with group.exclusive(wait=False) as held:
                if held and not _is_possible(history, now):
                    history.start(now)
                    raise OSError("the minute history was damaged; it begins anew")
            return now + MINUTE
        minutes = int((now - origin) // MINUTE)
        if history.minutes < minutes:
            with group.exclusive(wait=False) as held:
                if held and history.origin == origin:
                    self._write(group, minutes, now)
            if history.minutes < minutes:
                # The lock's holder may be about something else than the history.
                return now + self._settings.step
        return origin + (minutes + 1) * MINUTE

    def _write(self, group: Group, minutes: int, now: float) -> None:
        """Write what is missing of the minutes since the history's origin; with the lock held."""
        history = group.history
        first = max(history.minutes, minutes - self._settings.max_history_minutes)
        before: Cumulative | None = None
        idle: MetricsSnapshot | None = None
        for minute in range(first + 1, minutes + 1):
            at = history.origin + minute * MINUTE
            wall = self._clock.time() - (now - at)
            if idle is not None:
                self._snapshots.store_gauges(idle, group, at)
                _append(group, idle, at, wall, minute, Counts().minute(MINUTE))
                continue
            server = self._server.read(group, Period(at, self._settings.step, past=True))
            total = _cumulative(server)
            if minute == first + 1:
                before = self._before(group, first, server, total)
            own = None
            if before is not None and before.left_out == total.left_out:
                own = server.total.since(_counts(before)).minute(MINUTE)
            before = total
            users, _ = server.active_users(self._settings.user_timeout_seconds)
            snapshot = self._snapshots.take(server, group, wall, users)
            _append(group, snapshot, at, wall, minute, own, total)
            if minute < minutes and not server.window.requests and not users:
                latest = self._server.read(group, Period(now, self._settings.step))
                if latest.total.requests == server.total.requests:
                    idle = snapshot  # as all later minutes are

    def _before(
        self, group: Group, first: int, server: ServerReading, total: Cumulative
    ) -> Cumulative | None:
        """Return what was counted before a minute; None where nobody knows.

        Args:
            group: The group, whose lock is held.
            first: How many minutes are before it.
            server: The reading of its end.
            total: What was counted up to its end.
        """
        history = group.history
        if first > history.minutes:  # those between are kept no more
            at = history.origin + first * MINUTE
            return _cumulative(self._server.read(group, Period(at, self._settings.step, past=True)))
        kept = history.cumulative
        if kept is not None and kept.reset_at == total.reset_at:
            return kept
        # The first minute of a server, or after a reset; not of a file that began later.
        is_first = kept is not None or not history.minutes
        if is_first and server.started >= history.origin:
            return Cumulative(total.reset_at, total.left_out, 0, 0, 0, (0,) * len(CLASSES), 0)
        return None

    def save(self, group: Group) -> None:
        """Add a snapshot of now to the history, beside those of each minute.

        What is counted in the minute is said once it is over, so this row does not say it.

        Raises:
            OSError: there is no room, or the lock cannot be had.
        """
        # Read under the lock: another worker's reset may not come between.
        with group.exclusive(wait=True):
            now, wall = self._clock.monotonic(), self._clock.time()
            server = self._server.read(group, Period(now, self._settings.step))
            users, _ = server.active_users(self._settings.user_timeout_seconds)
            _append(group, self._snapshots.take(server, group, wall, users), now, wall)


def _is_possible(history: History, now: float) -> bool:
    """Return whether its minutes have been until ``now``, or one of a clock that is ahead."""
    origin = history.origin
    return origin > 0 and history.minutes <= (now - origin) // MINUTE + 1


class LongHistory(Protocol):
    """A history that goes back further than the one in memory: an `SQLiteHistory`."""

    @property
    def max_minutes(self) -> int:
        """How many minutes it can look back."""

    @property
    def damaged(self) -> str | None:
        """What is wrong with it, as the last read found; None: nothing."""

    def rows(self, since: float, until: float, step_minutes: int = 1) -> list[SnapshotDict]:
        """Return its snapshots from after Unix time ``since`` to ``until``, oldest first."""


def before(recent: list[SnapshotDict], now: float) -> float:
    """Return the Unix time up to which a long history is to be asked beside recent snapshots.

    Args:
        recent: the snapshots in memory, oldest first.
        now: Unix time; the answer where there are none.
    """
    if not recent:
        return now
    # Half a minute earlier: not the same minute from both.
    return datetime.fromisoformat(str(recent[0]["timestamp"])).timestamp() - MINUTE / 2


def _append(
    group: Group,
    snapshot: MetricsSnapshot,
    at: float,
    wall: float,
    minute: int | None = None,
    own: Mapping[str, float] | None = None,
    cumulative: Cumulative | None = None,
) -> None:
    values = [getattr(snapshot, name) for name in NUMERIC_FIELDS]
    group.history.append(at, wall, values, minute, own, cumulative)


def _cumulative(server: ServerReading) -> Cumulative:
    total = server.total
    return Cumulative(
        server.reset.at,
        len(server.damaged),
        total.requests,
        total.errors,
        total.server_errors,
        total.classes or (0,) * len(CLASSES),
        total.histogram,
    )


def _counts(kept: Cumulative) -> Counts:
    return Counts(
        kept.requests,
        kept.errors,
        kept.histogram,
        server_errors=kept.server_errors,
        classes=kept.classes,
    )
