"""`SQLiteHistory`: minutes with their histograms in an SQLite file, beyond the hour and restarts.

One worker writes a row a minute, from a thread of its own; only who asks for the history reads it.

    id, at     in the order of writing; Unix time
    monotonic  the same time on the machine's monotonic clock
    seconds    since the row before, or since the counts of that server began
    server     tells a server, and what it counted since a reset, from others
    first      1 where it is the first row of its server
    …          the snapshot's numeric fields, by their names
    histogram  all latencies since the server's counts began: zlib over the counts of the 1153
               buckets, 8 bytes each, little endian, bucket -768 (2^-24 s) first

Histograms and totals are cumulative, as in a worker's segment: what happened in a range is its last
row minus the one before its first, for each server in it. So percentiles over any range, exact
within the 1.1 % of the buckets, cost two histograms, however many minutes it has. And a worker
that dies in the middle of a row has lost nothing: the next one's row has its minute, too. Only the
end of the whole server loses the minute in progress.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, TypeVar

from metricsmw.engine.storage.histogram import BUCKETS, FIRST, SCALE
from metricsmw.engine.storage.lanes import distribution, unpack
from metricsmw.engine.workers.job import PeriodicTask
from metricsmw.engine.workers.leader import PROBLEM, LeaderLock
from metricsmw.snapshot import FIELDS, INTEGER_FIELDS, NUMERIC_FIELDS, iso_timestamp

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

logger = logging.getLogger("metricsmw")

T = TypeVar("T")

NAME = "lasting_history"
HIGHEST = int.from_bytes(bytes([0] * 7 + [128]) * BUCKETS, "little")
MINUTE, DAY = 60.0, 86_400.0
CHECK_SECONDS = 5.0
# How long the writer, and a reader, wait for a database that somebody else has locked.
WRITE_PATIENCE, READ_PATIENCE = 5.0, 0.1
RETRY_SECONDS = 0.02
# Where another server has written within so many seconds, this one does not.
OTHERS_TURN = 2 * MINUTE
# Old rows go so many at a time: a clock that jumps ahead for a while costs no history.
REMOVED_AT_ONCE = 10
VERSION = 1
COLUMNS = ", ".join(NUMERIC_FIELDS)
SCHEMA = (
    """
    CREATE TABLE minutes (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        monotonic REAL NOT NULL,
        seconds REAL NOT NULL,
        server TEXT NOT NULL,
        first INTEGER NOT NULL,
        histogram BLOB NOT NULL
    )
    """,
    "CREATE INDEX minutes_at ON minutes (at)",
    "CREATE INDEX minutes_server ON minutes (server, id)",
    # Unix time of the last reset: what was recorded before it is not shown.
    "CREATE TABLE hidden (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), before REAL NOT NULL)",
    "INSERT INTO hidden VALUES (1, 0.0)",
)

Row = dict[str, str | float | int]


class RangeSummary(TypedDict):
    """What happened between two times; rates and percentiles are of the whole range."""

    since: str
    until: str
    seconds: float
    requests: int
    errors: int
    request_rate_rpm: float
    error_rate_pct: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float


class Counts(NamedTuple):
    """What was counted; the histogram as an integer, a lane of 64 bits for each bucket."""

    requests: int = 0
    errors: int = 0
    histogram: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.histogram + other.histogram,
        )

    def since(self, earlier: Counts) -> Counts:
        """What was counted after the earlier one; never below 0, as it would be for a while where a
        damaged segment is left out."""
        # All lanes at once, as counts have 62 bits: a lane that fell below 0 shows in its highest.
        histogram = self.histogram - earlier.histogram
        if histogram < 0 or histogram & HIGHEST:
            lanes = unpack(self.histogram, BUCKETS), unpack(earlier.histogram, BUCKETS)
            histogram = pack_lanes(max(now - before, 0) for now, before in zip(*lanes, strict=True))
        return Counts(
            max(self.requests - earlier.requests, 0),
            max(self.errors - earlier.errors, 0),
            histogram,
        )


class Span(NamedTuple):
    """The rows of some time, put together."""

    at: float
    seconds: float
    counts: Counts
    row: Row  # the largest of each field, and the last totals


class SQLiteHistory:
    """Keep the minute history of the monitor's server in the SQLite file ``path`` for ``days``.

    - ``path``: made if it does not exist; its folder must. A server needs a file of its own, and so
      does a worker whose numbers are private: of several, one writes, and the others say so.
    - ``days``: how long minutes are kept, 1 to 3650.
    - ``start``: write in a daemon thread from now on; otherwise `start`, or call `check` yourself.

    Every worker of the server has one; one of them writes. From then on the monitor's
    `get_metrics_history`, and `/history`, go back beyond what the monitor itself keeps.

    A database that is locked, full or damaged is logged, shown in `/health` as
    ``lasting_history``, and tried again; what it missed is written as one longer row once it works.

    Raises `ValueError` or `TypeError` for bad settings.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        path: str | os.PathLike[str],
        days: int = 30,
        *,
        start: bool = True,
    ) -> None:
        if isinstance(days, bool) or not isinstance(days, int):
            raise TypeError(f"days must be a whole number from 1 to 3650, got {days!r}")
        if not 1 <= days <= 3650:
            raise ValueError(f"days must be a whole number from 1 to 3650, got {days!r}")
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"the path of the history must be a path, got {path!r}")
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise ValueError(
                f"the path of the history must lie in a folder that exists, got {os.fspath(path)!r}"
            )
        self.days = days
        self._monitor = monitor
        self._leader = LeaderLock(monitor, NAME)
        self._failing = False
        self.damaged: str | None = None  # what the last read here came upon
        self._lock = threading.Lock()
        self._task = PeriodicTask(monitor, self.check, CHECK_SECONDS, NAME, self._renew)
        monitor.lasting = self
        if start:
            self.start()

    @property
    def max_minutes(self) -> int:
        """How far it can look back."""
        return self.days * 1440

    def start(self) -> None:
        """Write in a daemon thread, a row a minute. May be repeated."""
        self._task.start()

    def stop(self) -> None:
        """Write no more, and leave it to another worker; may be repeated."""
        self._task.stop()
        self._leader.end()

    def _renew(self) -> None:
        self._lock = threading.Lock()

    # --- writing ---------------------------------------------------------------------------------

    def check(self) -> bool:
        """Write a row if a minute is over, and this worker is the one that does; whether it did."""
        with self._lock:
            if not self._leader.acquire():
                return False
            try:
                written = self._use(WRITE_PATIENCE, self._write_if_due)
            except (sqlite3.Error, OSError) as error:
                # Without the path: the answer of `/health` is open to all.
                self._report(getattr(error, "strerror", None) or str(error))
                return False
            self._report(None)
            return written

    def _write_if_due(self, database: sqlite3.Connection) -> bool:
        _prepare(database)
        counts, snapshot, origin = self._monitor.read_counts()
        clock = self._monitor.clock
        now, wall = clock.monotonic(), clock.time()
        # Of no other start of a server, nor of this one before a reset.
        server = repr(origin)
        state = database.execute(
            "SELECT monotonic FROM minutes WHERE server = ? ORDER BY id DESC LIMIT 1", (server,)
        ).fetchone()
        since = origin if state is None else state[0]
        # The same minutes for every worker, so that a new one does not begin others.
        if now // MINUTE <= since // MINUTE:
            return False
        values = [wall, now, now - since, server, state is None, _pack(counts.histogram)]
        values += [snapshot[name] for name in NUMERIC_FIELDS]
        places = ", ".join("?" * len(values))
        with database:
            # From here on nobody else may, so that of two servers only one does.
            database.execute("BEGIN IMMEDIATE")
            writer, at = database.execute(
                "SELECT server, monotonic FROM minutes ORDER BY id DESC LIMIT 1"
            ).fetchone() or (server, 0.0)
            if writer != server and max(origin, now - OTHERS_TURN) < at <= now:
                raise OSError("another server, or a worker with private numbers, writes there")
            database.execute(
                "INSERT INTO minutes (at, monotonic, seconds, server, first, histogram, "
                f"{COLUMNS}) VALUES ({places})",
                values,
            )
            database.execute("UPDATE hidden SET before = max(before, ?)", (self._reset_time(),))
            # Some more than `days`, as a range needs the row before its first.
            database.execute(
                "DELETE FROM minutes WHERE id IN "
                "(SELECT id FROM minutes WHERE at < ? ORDER BY at LIMIT ?)",
                (wall - self.days * DAY - 10 * MINUTE, REMOVED_AT_ONCE),
            )
        return True

    def _report(self, problem: str | None) -> None:
        """Tell the log, once, and `/health`."""
        if problem is not None and not self._failing:
            logger.error("metricsmw: the lasting history %s fails: %s", self.path, problem)
        if problem is None and self._failing:
            logger.warning("metricsmw: the lasting history works again")
        self._failing = problem is not None
        text = None if problem is None else f"failing: {problem}"
        if self._leader.read().get(PROBLEM, "") != text:
            self._leader.write({PROBLEM: text})

    # --- reading ---------------------------------------------------------------------------------

    def rows(self, since: float, until: float, step_minutes: int = 1) -> list[Row]:
        """Snapshots from after Unix time ``since`` to ``until``, oldest first.

        With ``step_minutes`` above 1 each stands for the so many minutes before its timestamp:
        rates and percentiles are those of what was counted in them, totals those at their end,
        and all else (users, connections, memory, CPU, …) the largest in them.

        Raises `sqlite3.Error` or OSError where the database cannot be read.
        """
        if step_minutes > 1:
            spans = self._spans(since, until, step_minutes * MINUTE)
            return [_in_order(span.at, span.row | _rates(span)) for span in spans]

        def read(database: sqlite3.Connection) -> list[Row]:
            found = database.execute(
                f"SELECT at, {COLUMNS} FROM minutes WHERE at > ? AND at <= ? ORDER BY at",
                (self._oldest(database, since), until),
            )
            return [
                _in_order(at, dict(zip(NUMERIC_FIELDS, values, strict=True)))
                for at, *values in found
            ]

        return self._read(read)

    def summary(self, since: float, until: float) -> RangeSummary:
        """What happened from after Unix time ``since`` to ``until``, in whole rows.

        Raises `sqlite3.Error` or OSError where the database cannot be read.
        """
        spans = self._spans(since, until, math.inf)
        span = spans[0] if spans else Span(until, 0.0, Counts(), {})
        return {
            "since": iso_timestamp(since),
            "until": iso_timestamp(until),
            "seconds": round(span.seconds, 2),
            "requests": span.counts.requests,
            "errors": span.counts.errors,
            **_rates(span),  # type: ignore[typeddict-item]
        }

    def _spans(self, since: float, until: float, step: float) -> list[Span]:
        """The rows of that time, in spans of ``step`` seconds, oldest first."""
        largest = ", ".join(f"max({name})" for name in NUMERIC_FIELDS)

        def read(database: sqlite3.Connection) -> list[Span]:
            spans: dict[int, Span] = {}
            groups = database.execute(
                "SELECT CAST(at / ? AS INTEGER) AS place, server, min(id), max(id), max(at), "
                f"sum(seconds), {largest} FROM minutes WHERE at > ? AND at <= ? "
                "GROUP BY place, server ORDER BY place, min(id)",
                (step, self._oldest(database, since), until),
            ).fetchall()
            for place, server, first, last, at, seconds, *values in groups:
                row: Row = dict(zip(NUMERIC_FIELDS, values, strict=True))
                end, _, _ = _counts(database, "id = ?", last)
                begin, missing = _before(database, server, first)
                row |= {"total_requests": end.requests, "total_errors": end.errors}
                span = Span(at, seconds - missing, end.since(begin), row)
                if place in spans:  # of an earlier server
                    span = _joined(spans[place], span)
                spans[place] = span
            return list(spans.values())

        return self._read(read)

    def _read(self, work: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        """What the work finds in the database as it is now, whatever is written meanwhile."""

        def read(database: sqlite3.Connection) -> list[T]:
            database.execute("BEGIN")
            made = database.execute("PRAGMA user_version").fetchone()[0]
            return work(database) if made else []

        try:
            found = self._use(READ_PATIENCE, read) if self.path.exists() else []
        except sqlite3.OperationalError:  # as the writer sees, too
            raise
        except sqlite3.Error as error:
            self.damaged = str(error)
            raise
        self.damaged = None
        return found

    def _oldest(self, database: sqlite3.Connection, since: float) -> float:
        """The time from after which rows may be shown."""
        hidden: float = database.execute("SELECT before FROM hidden").fetchone()[0]
        kept = self._monitor.clock.time() - self.days * DAY
        return max(since, hidden, self._reset_time(), kept)

    def _reset_time(self) -> float:
        """Unix time of this server's last reset; 0.0 where there was none."""
        reset = self._monitor.reset_at
        clock = self._monitor.clock
        return clock.time() - (clock.monotonic() - reset) if reset else 0.0

    def _use(self, patience: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """What the work makes of the database; waits so many seconds for one that is locked."""
        deadline = time.monotonic() + patience
        while True:
            try:
                # Opened for each use: a connection must not be taken through a fork.
                with closing(sqlite3.connect(self.path, timeout=0)) as database:
                    return work(database)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise
            # Not by SQLite's own wait, which would hold up every greenlet of the process.
            time.sleep(RETRY_SECONDS)


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables, or add the columns of fields that an older version did not have."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, VERSION):
        raise OSError(f"the database is of another version, {version}")
    if not version:
        # Readers and the writer do not wait for each other then; kept in the file.
        database.execute("PRAGMA journal_mode = WAL")
    known = {name for _, name, *_ in database.execute("PRAGMA table_info (minutes)")}
    fields = [name for name in NUMERIC_FIELDS if name not in known]
    if version and not fields:
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statement in () if version else SCHEMA:
            database.execute(statement)
        for name in fields:
            database.execute(f"ALTER TABLE minutes ADD COLUMN {name} REAL NOT NULL DEFAULT 0")
        database.execute(f"PRAGMA user_version = {VERSION}")


def _counts(
    database: sqlite3.Connection, where: str, *values: object
) -> tuple[Counts, bool, float]:
    """What a row's server had counted, whether it is its first row, and the seconds it covers."""
    requests, errors, histogram, first, seconds = database.execute(
        "SELECT total_requests, total_errors, histogram, first, seconds FROM minutes "
        f"WHERE {where} ORDER BY id DESC LIMIT 1",
        values,
    ).fetchone() or (0, 0, None, 0, 0.0)
    counted = 0 if histogram is None else _unpack(histogram)
    return Counts(int(requests), int(errors), counted), bool(first), seconds


def _before(database: sqlite3.Connection, server: str, row: int) -> tuple[Counts, float]:
    """What the server had counted before that row of its; and the row's seconds where nobody knows,
    as the row before it is gone: it is then left out."""
    begin, is_first, seconds = _counts(database, "id = ?", row)
    if is_first:
        return Counts(), 0.0
    earlier = database.execute(
        "SELECT max(id) FROM minutes WHERE server = ? AND id < ?", (server, row)
    ).fetchone()[0]
    if earlier is None:
        return begin, seconds
    return _counts(database, "id = ?", earlier)[0], 0.0


def _joined(one: Span, other: Span) -> Span:
    """Two servers' spans of the same time; the later one's totals."""
    latest = max(one, other, key=lambda span: span.at)
    row: Row = {name: max(float(one.row[name]), float(other.row[name])) for name in one.row}
    row |= {name: latest.row[name] for name in ("total_requests", "total_errors")}
    return Span(latest.at, one.seconds + other.seconds, one.counts.plus(other.counts), row)


def _pack(histogram: int) -> bytes:
    return zlib.compress(histogram.to_bytes(BUCKETS * 8, "little"), 1)


def _unpack(data: bytes) -> int:
    try:
        lanes = zlib.decompress(data)
    except zlib.error as error:
        raise sqlite3.DatabaseError(f"a histogram is damaged: {error}") from error
    if len(lanes) != BUCKETS * 8:
        raise sqlite3.DatabaseError("a histogram is damaged")
    return int.from_bytes(lanes, "little")


def pack_lanes(counts: Iterable[int]) -> int:
    """Buckets' counts as one integer."""
    return int.from_bytes(b"".join(count.to_bytes(8, "little") for count in counts), "little")


def _rates(span: Span) -> Row:
    latency = distribution(span.counts.histogram, FIRST, SCALE)
    p50, p95, p99 = (round(latency.percentile(p) * 1000, 2) for p in (50, 95, 99))
    requests, errors, _ = span.counts
    return {
        "request_rate_rpm": round(60 * requests / span.seconds, 2) if span.seconds else 0.0,
        "error_rate_pct": round(100 * errors / requests, 2) if requests else 0.0,
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "latency_p99_ms": p99,
        "latency_max_ms": round(latency.max * 1000, 2),
    }


def _in_order(at: float, snapshot: Row) -> Row:
    row: Row = {"timestamp": iso_timestamp(at)}
    for name in FIELDS[1:]:
        value = snapshot[name]
        row[name] = int(value) if name in INTEGER_FIELDS else float(value)
    return row
