"""`SQLiteHistory`: minutes with their histograms in an SQLite file, beyond the hour and restarts.

One worker writes a row a minute, from a thread of its own; only who asks for the history reads it.
What a row holds: `metricsmw.engine.reading.database`.

A worker that dies in the middle of a row has lost nothing: the next one's row has its minute, too.
Only the end of the whole server loses the minute in progress.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from metricsmw.clock import Clock
from metricsmw.engine.files import open_own, this_user
from metricsmw.engine.reading.counts import Counts, SpanFigures
from metricsmw.engine.reading.database import (
    DAY,
    MINUTE,
    Span,
    Written,
    append,
    hidden_before,
    last_written,
    prepare,
    read_rows,
    read_spans,
)
from metricsmw.engine.reading.route_minutes import (
    RouteMinute,
    RouteSpan,
    RouteTotals,
    read_route,
    read_table,
    table_rows,
)
from metricsmw.engine.storage.keys import Name
from metricsmw.engine.workers.job import ServerJob
from metricsmw.engine.workers.membership import ServerMember
from metricsmw.extras import require
from metricsmw.snapshot import SnapshotDict, iso_timestamp
from metricsmw.validation import whole

try:
    import sqlite3
finally:
    require("a lasting history", "history")  # which says more than the import does

T = TypeVar("T")

NAME = "lasting_history"
RETRY_SECONDS = 0.02
# Of one value: a schema may make up any.
LIMIT_LENGTH, MOST_BYTES = 0, 4 << 20
# What SQLite opens beside a database, if it is there; a FIFO would hold it up for ever.
BESIDE = ("-journal", "-wal", "-shm")


class CountSource(ServerMember, Protocol):
    """Whose minutes a history keeps: a monitor."""

    @property
    def clock(self) -> Clock:
        """The clock that the source runs on."""

    @property
    def reset_at(self) -> float:
        """Monotonic time of the last reset; 0.0 where there was none."""

    def read_counts(self) -> tuple[Counts, SnapshotDict, float, RouteTotals]:
        """Return all counts, the snapshot of then, since when (monotonic), and those of routes."""

    def use_history(self, history: SQLiteHistory) -> None:
        """Answer from that history what is older than what is kept in memory."""


class RangeSummary(SpanFigures):
    """What happened between two times; rates and percentiles are of the whole range."""

    since: str
    until: str
    seconds: float


class SQLiteHistory:
    """Keep the minute history of a monitor's server in an SQLite file.

    Every worker of the server has one; one of them writes. From then on the monitor's
    `get_metrics_history`, and `/history`, go back beyond what the monitor itself keeps.

    A database that is locked, full or damaged is logged, shown in `/health` as
    ``lasting_history``, and tried again; what it missed is written as one longer row once it works.

    Args:
        source: The monitor.
        path: The file, which is made if it does not exist; its folder must. A server needs a file
            of its own, and so does a worker whose numbers are private: of several, one writes, and
            the others say so.
        days: How long minutes are kept, 1 to 3650.
        routes: How many routes of each minute are kept, the busiest, 0 to 1000.
        start: None: write in a daemon thread, once this process serves or records. True: also where
            it does neither. False: not before `start`; or call `check` yourself.
        row_seconds: The time between two rows.
        check_interval: Seconds between two looks whether a row is due.
        write_patience: Seconds that the writer waits for a database that somebody has locked.
        read_patience: Seconds that a reader waits.
        time_limit: Seconds that one use of the file may take, as anybody may have prepared it.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is of another type.
    """

    def __init__(
        self,
        source: CountSource,
        path: str | os.PathLike[str],
        days: int = 30,
        *,
        routes: int = 20,
        start: bool | None = None,
        row_seconds: float = MINUTE,
        check_interval: float = 5.0,
        write_patience: float = 5.0,
        read_patience: float = 0.1,
        time_limit: float = 10.0,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"the path of the history must be a path, got {path!r}")
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise ValueError(
                f"the path of the history must lie in a folder that exists, got {os.fspath(path)!r}"
            )
        self.days = whole("days", days, 1, 3650)
        self.routes = whole("routes", routes, 0, 1000)
        self.damaged: str | None = None
        """What the last read of this process came upon; None where it went well."""
        self._source = source
        self._row_seconds = row_seconds
        self._write_patience, self._read_patience = write_patience, read_patience
        self._time_limit = time_limit
        self._job: ServerJob[bool] = ServerJob(
            source,
            NAME,
            self._write_in_time,
            False,
            interval=check_interval,
            title=f"the lasting history {self.path}",
            expected=(sqlite3.Error, OSError),
            find_damage=lambda: self.damaged,
        )
        source.use_history(self)
        if start is not False:
            self._job.start(everywhere=bool(start))

    @property
    def max_minutes(self) -> int:
        """How far it can look back."""
        return self.days * 1440

    @property
    def _most_rows(self) -> int:
        """How many rows there can be, with a day's more for restarts."""
        return int((self.days + 1) * DAY / self._row_seconds)

    @property
    def is_leader(self) -> bool:
        """Whether this worker is the one that writes."""
        return self._job.leader.is_leader

    def start(self, *, everywhere: bool = True) -> None:
        """Write in a daemon thread, a row a minute; may be repeated.

        Args:
            everywhere: Whether to write in a process, too, that neither serves nor records.
        """
        self._job.start(everywhere)

    def stop(self) -> None:
        """Write no more, and leave it to another worker; may be repeated."""
        self._job.stop()

    # --- writing ---------------------------------------------------------------------------------

    def check(self) -> bool:
        """Write a row if a minute is over, and this worker is the one that does.

        Returns:
            Whether a row was written. What goes wrong is logged and shown in `/health`.

        Raises:
            OSError: The server's own directory cannot be used.
        """
        return self._job.run()

    def _write_in_time(self) -> bool:
        return self._use(self._write_patience, self._write_if_due)

    def _write_if_due(self, database: sqlite3.Connection) -> bool:
        prepare(database)
        counts, snapshot, origin, routes = self._source.read_counts()
        clock = self._source.clock
        row = Written(clock.time(), clock.monotonic(), origin, counts, snapshot, routes)
        since = last_written(database, row.server)
        # The same minutes for every worker, so that a new one does not begin others.
        before = origin if since is None else since
        if row.now // self._row_seconds <= before // self._row_seconds:
            return False
        # Some more than `days`, as a range needs the row before its first.
        oldest = row.wall - self.days * DAY - 10 * MINUTE
        return append(
            database, row, since, self._reset_time(), oldest, self._row_seconds, self.routes
        )

    # --- reading ---------------------------------------------------------------------------------

    def rows(self, since: float, until: float, step_minutes: int = 1) -> list[SnapshotDict]:
        """Return the snapshots of some time, oldest first.

        Args:
            since: Unix time after which they are.
            until: Unix time of the last one at most.
            step_minutes: With more than 1, each stands for the so many minutes before its
                timestamp: rates and percentiles are those of what was counted in them, totals those
                at their end, and all else (users, connections, memory, CPU, …) the largest in them.

        Raises:
            sqlite3.Error: The database cannot be read.
            OSError: The database cannot be read.
        """
        if step_minutes > 1:
            return [span.snapshot() for span in self._spans(since, until, step_minutes * MINUTE)]
        return self._read(
            lambda database: read_rows(
                database, self._since(database, since), until, self._most_rows
            )
        )

    def route_rows(
        self, method: str, route: str, since: float, until: float, step_minutes: int = 1
    ) -> list[RouteMinute]:
        """Return what one route counted in some time, oldest first.

        Minutes of which it is not known are left out: those of before routes were kept, and those
        that it was not among the busiest of, where others were left out, too.

        Args:
            method: The route's method, as the per-route table names it.
            route: Its template, likewise.
            since: Unix time after which they are.
            until: Unix time of the last one at most.
            step_minutes: How many minutes one entry stands for.

        Raises:
            sqlite3.Error: The database cannot be read.
            OSError: The database cannot be read.
        """
        name, step = Name(method, route), step_minutes * MINUTE
        return self._read(
            lambda database: read_route(
                database, name, self._since(database, since), until, step, self._most_rows
            )
        )

    def route_table(self, since: float, until: float) -> list[RouteSpan]:
        """Return what each route counted in some time, the busiest first.

        Of a route that was not always among the busiest, what it counted then is missing.

        Args:
            since: Unix time after which its minutes are.
            until: Unix time of the last one at most.

        Raises:
            sqlite3.Error: The database cannot be read.
            OSError: The database cannot be read.
        """
        return self._read(
            lambda database: table_rows(
                *read_table(database, self._since(database, since), until, self._most_rows)
            )
        )

    def summary(self, since: float, until: float) -> RangeSummary:
        """Return what happened from after one Unix time to another, in whole rows.

        Raises:
            sqlite3.Error: The database cannot be read.
            OSError: The database cannot be read.
        """
        spans = self._spans(since, until, math.inf)
        span = spans[0] if spans else Span(until, 0.0, Counts(), {})
        return {
            "since": iso_timestamp(since),
            "until": iso_timestamp(until),
            "seconds": round(span.seconds, 2),
            **span.counts.figures(span.seconds),
        }

    def _spans(self, since: float, until: float, step: float) -> list[Span]:
        return self._read(
            lambda database: read_spans(
                database, self._since(database, since), until, step, self._most_rows
            )
        )

    def _read(self, work: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        """Return what the work finds in the database as it is, whatever is written meanwhile."""

        def read(database: sqlite3.Connection) -> list[T]:
            database.execute("BEGIN")
            made = database.execute("PRAGMA user_version").fetchone()[0]
            return work(database) if made else []

        try:
            found = self._use(self._read_patience, read) if self.path.exists() else []
        except sqlite3.OperationalError:  # as the writer sees, too
            raise
        except sqlite3.Error as error:
            self.damaged = str(error)
            raise
        self.damaged = None
        return found

    def _since(self, database: sqlite3.Connection, since: float) -> float:
        """Return the Unix time from after which rows may be shown."""
        kept = self._source.clock.time() - self.days * DAY
        return max(since, hidden_before(database), self._reset_time(), kept)

    def _reset_time(self) -> float:
        """Return the Unix time of this server's last reset; 0.0 where there was none."""
        reset = self._source.reset_at
        clock = self._source.clock
        return clock.time() - (clock.monotonic() - reset) if reset else 0.0

    def _use(self, patience: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what the work makes of the database; wait so many seconds where it is locked."""
        deadline = time.monotonic() + patience
        while True:
            try:
                # Opened for each use: a connection must not be taken through a fork.
                with closing(self._open()) as database:
                    return work(database)
            except (ArithmeticError, TypeError, ValueError) as error:
                raise sqlite3.DatabaseError(f"a row is damaged: {error}") from error
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise
            # Not by SQLite's own wait, which would hold up every greenlet of the process.
            time.sleep(RETRY_SECONDS)

    def _open(self) -> sqlite3.Connection:
        """Open the file, which is made for its owner only, and which somebody may have prepared.

        Raises:
            OSError: It is no regular file of this user.
            sqlite3.Error: It cannot be opened.
        """
        users = 0, this_user()
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            open_own(self.path, os.O_RDWR | os.O_CREAT).close()
            status = os.stat(self.path)
        # A link is the user's own wish, or somebody else's who would have another file written to.
        if os.lstat(self.path).st_uid not in users or not _is_own(status):
            raise PermissionError(errno.EPERM, "not a regular file of this user")
        real = os.path.realpath(self.path)
        for suffix in BESIDE:
            with suppress(FileNotFoundError):
                if not _is_own(os.lstat(real + suffix)):
                    raise PermissionError(errno.EPERM, f"its {suffix} is no file of this user")
        database = sqlite3.connect(self.path, timeout=0)
        end = time.monotonic() + self._time_limit
        # A view or a trigger may be without an end, and may not call what is not harmless.
        database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        database.execute("PRAGMA trusted_schema = OFF")
        if hasattr(database, "setlimit"):  # of Python 3.11
            database.setlimit(LIMIT_LENGTH, MOST_BYTES)
        return database


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == this_user()
