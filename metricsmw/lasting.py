"""`LastingHistory`: minutes with their histograms in an SQLite file, beyond the hour and restarts.

One worker writes a row a minute, from a thread of its own; requests never see the database. A row
holds what was counted since the row before, so percentiles over any range come from the merged
histograms of its rows, exact within the 1.1 % of their buckets.

    minutes    at         Unix time of the row's end
               seconds    that it covers
               requests, errors
               snapshot   the numbers at its end, as JSON: those of the minute history
               histogram  zlib over the 1153 buckets' counts, each 8 bytes, little endian, bucket
                          -768 (2^-24 s) first; see `metricsmw.histogram`
    progress   the one row that says how far the counts are written: the server and its counts

A row and the progress are one transaction. So a worker that dies in the middle of it has written
nothing, and the next one, who counts on from the progress, writes its minute too; only the end of
the whole server loses the minute in progress.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from metricsmw.background import Background
from metricsmw.histogram import FIRST, LAST, SCALE, Distribution
from metricsmw.once import PROBLEM, Once
from metricsmw.snapshot import FIELDS, INTEGER_FIELDS, NUMERIC_FIELDS, iso_timestamp

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

logger = logging.getLogger("metricsmw")

BUCKETS = LAST - FIRST + 1
MINUTE = 60.0
CHECK_SECONDS = 5.0
# How long the writer, and a reader, wait for a database that somebody else has locked.
WRITE_PATIENCE, READ_PATIENCE = 5.0, 0.1
# Old rows go so many at a time: a clock that jumps ahead for a while costs no history.
REMOVED_AT_ONCE = 10
VERSION = 1
SCHEMA = """
CREATE TABLE minutes (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    seconds REAL NOT NULL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    snapshot TEXT NOT NULL,
    histogram BLOB NOT NULL
);
CREATE INDEX minutes_at ON minutes (at);
CREATE TABLE progress (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    server TEXT NOT NULL,
    monotonic REAL NOT NULL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    histogram BLOB NOT NULL,
    hidden_before REAL NOT NULL
);
"""

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
    """Counted in some time: the histogram as one integer, a lane of 64 bits for each bucket."""

    requests: int = 0
    errors: int = 0
    histogram: int = 0
    seconds: float = 0.0

    def plus(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.histogram + other.histogram,
            self.seconds + other.seconds,
        )

    def latency(self) -> Distribution:
        lanes = self.histogram.to_bytes(BUCKETS * 8, "little")
        return Distribution(memoryview(lanes).cast("Q").tolist(), FIRST, SCALE)


class LastingHistory:
    """Keep the minute history of the monitor's server in the SQLite file ``path`` for ``days``.

    - ``path``: made if it does not exist; its folder must. A server needs a file of its own.
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
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise ValueError(f"path must lie in a folder that exists, got {os.fspath(path)!r}")
        self.days = days
        self._monitor = monitor
        self._once = Once(monitor, "lasting_history")
        self._failing = False
        self._lock = threading.Lock()
        self._background = Background(
            monitor, self.check, CHECK_SECONDS, "metricsmw lasting history", self._renew
        )
        monitor.lasting = self
        if start:
            self.start()

    @property
    def max_minutes(self) -> int:
        """How far it can look back."""
        return self.days * 1440

    def start(self) -> None:
        """Write in a daemon thread, a row a minute. May be repeated."""
        self._background.start()

    def stop(self) -> None:
        """Write no more, and leave it to another worker; may be repeated."""
        self._background.stop()
        self._once.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()

    # --- writing ---------------------------------------------------------------------------------

    def check(self) -> bool:
        """Write a row if a minute is over, and this worker is the one that does; whether it did."""
        with self._lock:
            if not self._once.lead():
                return False
            try:
                with self._database(WRITE_PATIENCE) as database:
                    written = self._write_if_due(database)
            except (sqlite3.Error, OSError) as error:
                self._report(str(error) or type(error).__name__)
                return False
            self._report(None)
            return written

    def _write_if_due(self, database: sqlite3.Connection) -> bool:
        _prepare(database)
        # The same minutes for every worker, so that a new one does not begin others.
        now = self._monitor.clock.monotonic()
        state = database.execute("SELECT * FROM progress").fetchone()
        total, snapshot, origin = self._monitor.read_counts()
        server = repr(origin)  # tells this server from earlier ones, and from itself before a reset
        wall = self._monitor.clock.time()
        counted, since, hidden = Counts(), origin, self._hidden_before(0.0)
        if state is not None:
            _, known, monotonic, requests, errors, histogram, hidden_before = state
            hidden = max(hidden, hidden_before)
            if known == server:
                counted, since = Counts(requests, errors, _unpack(histogram)), monotonic
        if now // MINUTE <= since // MINUTE:
            return False
        row = Counts(
            max(total.requests - counted.requests, 0),
            max(total.errors - counted.errors, 0),
            _difference(total.histogram, counted.histogram),
            now - since,
        )
        with database:
            database.execute(
                "INSERT INTO minutes (at, seconds, requests, errors, snapshot, histogram) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (wall, row.seconds, row.requests, row.errors, json.dumps(snapshot),
                 _pack(row.histogram)),
            )  # fmt: skip
            database.execute(
                "REPLACE INTO progress VALUES (1, ?, ?, ?, ?, ?, ?)",
                (server, now, total.requests, total.errors, _pack(total.histogram), hidden),
            )
            database.execute(
                "DELETE FROM minutes WHERE id IN "
                "(SELECT id FROM minutes WHERE at < ? ORDER BY at LIMIT ?)",
                (wall - self.days * 86_400, REMOVED_AT_ONCE),
            )
        return True

    def _report(self, problem: str | None) -> None:
        """Tell the log, once, and `/health`; SQLite's messages name no path."""
        if problem is not None and not self._failing:
            logger.error("metricsmw: the lasting history %s fails: %s", self.path, problem)
        if problem is None and self._failing:
            logger.warning("metricsmw: the lasting history works again")
        self._failing = problem is not None
        text = None if problem is None else f"failing: {problem}"
        if self._once.read().get(PROBLEM, "") != text:
            self._once.write({PROBLEM: text})

    # --- reading ---------------------------------------------------------------------------------

    def rows(self, since: float, until: float, step_minutes: int = 1) -> list[Row]:
        """Snapshots from after Unix time ``since`` to ``until``, oldest first.

        With ``step_minutes`` above 1 each stands for the so many minutes before its timestamp:
        rates and percentiles are those of what was counted in them, totals those at their end,
        and all else (users, connections, memory, CPU, …) the largest in them.

        Raises `sqlite3.Error` or OSError where the database cannot be read.
        """
        rows: list[Row] = []
        group: list[tuple[float, Row, Counts]] = []
        for entry in self._read(since, until):
            if step_minutes == 1:
                rows.append(_in_order(entry[0], entry[1]))
                continue
            place = math.ceil(entry[0] / (MINUTE * step_minutes))
            if group and place != math.ceil(group[0][0] / (MINUTE * step_minutes)):
                rows.append(_merged(group))
                group = []
            group.append(entry)
        if group:
            rows.append(_merged(group))
        return rows

    def summary(self, since: float, until: float) -> RangeSummary:
        """What happened from after Unix time ``since`` to ``until``, in whole rows.

        Raises `sqlite3.Error` or OSError where the database cannot be read.
        """
        counts = Counts()
        for _, _, more in self._read(since, until):
            counts = counts.plus(more)
        return {
            "since": iso_timestamp(since),
            "until": iso_timestamp(until),
            "seconds": round(counts.seconds, 2),
            "requests": counts.requests,
            "errors": counts.errors,
            **_rates(counts),  # type: ignore[typeddict-item]
        }

    def _read(self, since: float, until: float) -> Iterator[tuple[float, Row, Counts]]:
        if not self.path.exists():
            return
        with self._database(READ_PATIENCE) as database:
            if not database.execute("PRAGMA user_version").fetchone()[0]:
                return
            state = database.execute("SELECT hidden_before FROM progress").fetchone()
            oldest = max(
                since,
                self._hidden_before(state[0] if state else 0.0),
                self._monitor.clock.time() - self.days * 86_400,
            )
            for at, seconds, requests, errors, snapshot, histogram in database.execute(
                "SELECT at, seconds, requests, errors, snapshot, histogram FROM minutes "
                "WHERE at > ? AND at <= ? ORDER BY at",
                (oldest, until),
            ):
                counts = Counts(requests, errors, _unpack(histogram), seconds)
                yield at, json.loads(snapshot), counts

    def _hidden_before(self, known: float) -> float:
        """Unix time of the last reset, before which nothing is shown."""
        reset = self._monitor.reset_at
        if not reset:
            return known
        clock = self._monitor.clock
        return max(known, clock.time() - (clock.monotonic() - reset))

    @contextmanager
    def _database(self, patience: float) -> Iterator[sqlite3.Connection]:
        # Opened for each use: a connection must not be taken through a fork.
        with closing(sqlite3.connect(self.path, timeout=patience)) as database:
            yield database


def _prepare(database: sqlite3.Connection) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if version:
        raise OSError(f"the database is of another version, {version}")
    # Readers and the writer do not wait for each other then; kept in the file.
    database.execute("PRAGMA journal_mode = WAL")
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")


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


def _difference(now: int, before: int) -> int:
    """Bucket by bucket; below 0 (a damaged segment was left out) is 0."""
    pairs = zip(_lanes(now), _lanes(before), strict=True)
    return pack_lanes(max(later - earlier, 0) for later, earlier in pairs)


def _lanes(histogram: int) -> list[int]:
    return memoryview(histogram.to_bytes(BUCKETS * 8, "little")).cast("Q").tolist()


def pack_lanes(counts: Iterable[int]) -> int:
    """Buckets' counts as one integer."""
    return int.from_bytes(b"".join(count.to_bytes(8, "little") for count in counts), "little")


def _rates(counts: Counts) -> Row:
    latency = counts.latency()
    p50, p95, p99 = (round(latency.percentile(p) * 1000, 2) for p in (50, 95, 99))
    requests = counts.requests
    return {
        "request_rate_rpm": round(60 * requests / counts.seconds, 2) if counts.seconds else 0.0,
        "error_rate_pct": round(100 * counts.errors / requests, 2) if requests else 0.0,
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "latency_p99_ms": p99,
        "latency_max_ms": round(latency.max * 1000, 2),
    }


def _merged(group: list[tuple[float, Row, Counts]]) -> Row:
    counts = Counts()
    for _, _, more in group:
        counts = counts.plus(more)
    row: Row = {
        name: max(float(snapshot.get(name, 0)) for _, snapshot, _ in group)
        for name in NUMERIC_FIELDS
    }
    at, last, _ = group[-1]
    row |= {name: last.get(name, 0) for name in ("total_requests", "total_errors")}
    return _in_order(at, row | _rates(counts))


def _in_order(at: float, snapshot: Row) -> Row:
    row: Row = {"timestamp": iso_timestamp(at)}
    for name in FIELDS[1:]:
        value = float(snapshot.get(name, 0))
        row[name] = int(value) if name in INTEGER_FIELDS else value
    return row
