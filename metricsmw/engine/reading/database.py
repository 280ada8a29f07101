"""The tables of an SQLite file that keeps the minute history, and what they say.

    id, at     in the order of writing; Unix time
    monotonic  the same time on the machine's monotonic clock
    seconds    since the row before, or since the counts of that server began
    server     tells a server, and what it counted since a reset, from others
    first      1 where it is the first row of its server
    …          the snapshot's numeric fields, by their names
    minute_…   what was counted since the row before; minute_seconds is 0 where that is not known,
               and minute_statuses_… is -1
    answers_…  how many answers had a status of that class since the server's counts began; -1 where
               that is not known
    histogram  all latencies since the server's counts began: zlib over the counts of the 1153
               buckets, 8 bytes each, little endian, bucket -768 (2^-24 s) first

Histograms and totals are cumulative, as in a worker's segment: what happened in a range is its last
row minus the one before its first, for each server in it. So percentiles over any range, exact
within the 1.1 % of the buckets, cost two histograms, however many minutes it has.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from metricsmw.engine.reading.counts import CLASSES, Counts
from metricsmw.engine.storage.histogram import BUCKETS
from metricsmw.extras import require
from metricsmw.snapshot import (
    HISTORY_FIELDS,
    MINUTE_FIELDS,
    NUMERIC_FIELDS,
    STATUS_FIELDS,
    SnapshotDict,
    history_row,
)

try:
    import sqlite3
finally:
    require("a lasting history", "history")  # which says more than the import does

from metricsmw.engine.reading import route_minutes
from metricsmw.engine.reading.route_minutes import (
    DAMAGED,
    LEFT_OUT,
    UNCOUNTED,
    UNKNOWN,
    BusiestRoutes,
    RouteTotals,
)

MINUTE, DAY = 60.0, 86_400.0
# Where another server has written within so many rows' time, this one does not.
OTHERS_TURN = 2.0
# Old rows go so many at a time: a clock that jumps ahead for a while costs no history.
REMOVED_AT_ONCE = 10
VERSION = 1
TOTALS = ("total_requests", "total_errors", "total_server_errors")
VALUES = HISTORY_FIELDS[1:]
COLUMNS = ", ".join(VALUES)
CLASS_FIELDS = tuple(f"answers_{number}xx" for number in CLASSES)
CLASS_COLUMNS = ", ".join(CLASS_FIELDS)
# What rows of the time before they were kept have for these; 0 for others.
DEFAULTS = dict.fromkeys((*CLASS_FIELDS, *STATUS_FIELDS), -1) | {LEFT_OUT: UNCOUNTED.left_out}
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


class Span(NamedTuple):
    """The rows of some time, put together.

    ``row`` has the largest of each field, and the last totals.
    """

    at: float
    seconds: float
    counts: Counts
    row: SnapshotDict

    def snapshot(self) -> SnapshotDict:
        """Return the span as a row of the history."""
        own = self.counts.minute(self.seconds)
        # Named as the snapshot's fields are, which here are of the span, too.
        rates = {name.removeprefix("minute_"): value for name, value in own.items()}
        return history_row(self.at, {**self.row, **rates, **own})


class Written(NamedTuple):
    """A row that is to be written.

    ``server`` is told apart by ``origin``, the monotonic time at which its counts began; ``routes``
    has all that each route has counted.
    """

    wall: float
    now: float
    origin: float
    counts: Counts
    snapshot: SnapshotDict
    routes: RouteTotals

    @property
    def server(self) -> str:
        """The name of the server: of no other start of one, nor of this one before a reset."""
        return repr(self.origin)


def prepare(database: sqlite3.Connection) -> None:
    """Make the tables, or add the columns of fields that an older version did not have.

    Raises:
        OSError: The file is of another version of this layout.
        sqlite3.Error: The file cannot be written, or is no database.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, VERSION):
        raise OSError(f"the database is of another version, {version}")
    if not version:
        # Readers and the writer do not wait for each other then; kept in the file.
        database.execute("PRAGMA journal_mode = WAL")
    known = {name for _, name, *_ in database.execute("PRAGMA table_info (minutes)")}
    fields = [name for name in (*VALUES, *CLASS_FIELDS, LEFT_OUT) if name not in known]
    if version and not fields:
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statement in (*(() if version else SCHEMA), *route_minutes.SCHEMA):
            database.execute(statement)
        for name in fields:
            usual = DEFAULTS.get(name, 0)
            database.execute(f"ALTER TABLE minutes ADD COLUMN {name} REAL NOT NULL DEFAULT {usual}")
        database.execute(f"PRAGMA user_version = {VERSION}")


def last_written(database: sqlite3.Connection, server: str) -> float | None:
    """Return the monotonic time of a server's last row; None where it has none."""
    found = database.execute(
        "SELECT monotonic FROM minutes WHERE server = ? ORDER BY id DESC LIMIT 1", (server,)
    ).fetchone()
    return None if found is None else float(found[0])


def append(
    database: sqlite3.Connection,
    row: Written,
    since: float | None,
    reset: float,
    oldest: float,
    row_seconds: float,
    most_routes: int,
) -> bool:
    """Append a row, note the reset, and remove some of the rows that are too old.

    Args:
        database: An open database with its tables.
        row: What to write.
        since: Monotonic time of the server's row before; None where there is none.
        reset: Unix time of the server's last reset.
        oldest: Unix time before which rows may go.
        row_seconds: The time between two rows.
        most_routes: How many routes of a row to keep, the busiest.

    Returns:
        Whether it was appended; not where the server has another row since, of a worker that has
        taken over from this one.

    Raises:
        OSError: Another server writes there.
        sqlite3.Error: The row cannot be written.
    """
    seconds = row.now - (row.origin if since is None else since)
    values = [row.wall, row.now, seconds, row.server, since is None, _pack(row.counts.histogram)]
    values += row.counts.classes or (-1,) * len(CLASS_FIELDS)
    values += [row.snapshot[name] for name in NUMERIC_FIELDS]
    places = ", ".join("?" * (len(values) + len(MINUTE_FIELDS) + 1))
    with database:
        # From here on nobody else may, so that of two servers only one does.
        database.execute("BEGIN IMMEDIATE")
        if last_written(database, row.server) != since:
            return False
        writer, at, left_out = database.execute(
            f"SELECT server, monotonic, {LEFT_OUT} FROM minutes ORDER BY id DESC LIMIT 1"
        ).fetchone() or (row.server, 0.0, UNCOUNTED.left_out)
        earliest = max(row.origin, row.now - OTHERS_TURN * row_seconds)
        if writer != row.server and earliest < at <= row.now:
            raise OSError("another server, or a worker with private numbers, writes there")
        # What routes had counted is that up to the last row.
        is_known = since is None or (writer == row.server and left_out > UNCOUNTED.left_out)
        routes = _busiest(database, row, most_routes, since is None) if is_known else UNKNOWN
        values += [*_since_last_row(database, row, seconds), routes.left_out]
        minute = database.execute(
            "INSERT INTO minutes (at, monotonic, seconds, server, first, histogram, "
            f"{CLASS_COLUMNS}, {COLUMNS}, {LEFT_OUT}) VALUES ({places})",
            values,
        ).lastrowid
        assert minute is not None
        if most_routes:
            route_minutes.store(database, minute, row.wall, routes, row.routes)
        database.execute("UPDATE hidden SET before = max(before, ?)", (reset,))
        removed = (
            "SELECT id FROM minutes WHERE at < ? ORDER BY at LIMIT ?",
            (oldest, REMOVED_AT_ONCE),
        )
        route_minutes.remove(database, *removed, oldest)
        database.execute(f"DELETE FROM minutes WHERE id IN ({removed[0]})", removed[1])
    return True


def _busiest(
    database: sqlite3.Connection, row: Written, most: int, is_first: bool
) -> BusiestRoutes:
    if not most:
        return UNCOUNTED
    try:
        return route_minutes.busiest(database, row.routes, most, is_first)
    except DAMAGED:
        return UNKNOWN


def _since_last_row(
    database: sqlite3.Connection, row: Written, seconds: float
) -> list[float | int]:
    """Return the `MINUTE_FIELDS` of a row that covers so many seconds; zeros: not known."""
    try:
        begin, _, _ = _counts(database, "server = ?", row.server)  # nothing before the first row
    except DAMAGED:
        return [0.0] * len(MINUTE_FIELDS)
    return list(row.counts.since(begin).minute(seconds).values())


def hidden_before(database: sqlite3.Connection) -> float:
    """Return the Unix time of the last reset that was noted, before which nothing is shown."""
    return float(database.execute("SELECT before FROM hidden").fetchone()[0])


def read_rows(
    database: sqlite3.Connection, since: float, until: float, most: int
) -> list[SnapshotDict]:
    """Return the snapshots from after Unix time ``since`` to ``until``, oldest first.

    Raises:
        sqlite3.Error: The rows cannot be read, or are more than there can be.
    """
    found = database.execute(
        f"SELECT at, {COLUMNS} FROM minutes WHERE at > ? AND at <= ? ORDER BY at", (since, until)
    ).fetchmany(most + 1)
    _check_number(found, most)
    return [history_row(at, dict(zip(VALUES, values, strict=True))) for at, *values in found]


def read_spans(
    database: sqlite3.Connection, since: float, until: float, step: float, most: int
) -> list[Span]:
    """Return the rows from after Unix time ``since`` to ``until``, in spans, oldest first.

    Args:
        database: An open database with its tables.
        since: Unix time.
        until: Unix time.
        step: The length of a span in seconds; may be infinite.
        most: How many spans there can be.

    Raises:
        sqlite3.Error: The rows cannot be read, or are more than there can be.
    """
    largest = ", ".join(f"max({name})" for name in NUMERIC_FIELDS)
    spans: dict[int, Span] = {}
    groups = database.execute(
        "SELECT CAST(at / ? AS INTEGER) AS place, server, min(id), max(id), max(at), "
        f"sum(seconds), {largest} FROM minutes WHERE at > ? AND at <= ? "
        "GROUP BY place, server ORDER BY place, min(id)",
        (step, since, until),
    ).fetchmany(most + 1)
    _check_number(groups, most)
    for place, server, first, last, at, seconds, *values in groups:
        row: SnapshotDict = dict(zip(NUMERIC_FIELDS, values, strict=True))
        end, _, _ = _counts(database, "id = ?", last)
        begin, missing = _before(database, server, first)
        row |= {"total_requests": end.requests, "total_errors": end.errors}
        row["total_server_errors"] = end.server_errors
        span = Span(at, seconds - missing, end.since(begin), row)
        if place in spans:  # of an earlier server
            span = _joined(spans[place], span)
        spans[place] = span
    return list(spans.values())


def _check_number(found: Sequence[object], most: int) -> None:
    if len(found) > most:
        raise sqlite3.DatabaseError("there are more rows than minutes")


def _counts(
    database: sqlite3.Connection, where: str, *values: object
) -> tuple[Counts, bool, float]:
    """Return a row's counts, whether it is its server's first, and the seconds it covers."""
    requests, errors, own, histogram, first, seconds, *answers = database.execute(
        "SELECT total_requests, total_errors, total_server_errors, histogram, first, seconds, "
        f"{CLASS_COLUMNS} FROM minutes WHERE {where} ORDER BY id DESC LIMIT 1",
        values,
    ).fetchone() or (0, 0, 0, None, 0, 0.0, *(0 for _ in CLASSES))
    counted = 0 if histogram is None else _unpack(histogram)
    classes = None if min(answers) < 0 else tuple(map(int, answers))
    counts = Counts(int(requests), int(errors), counted, server_errors=int(own), classes=classes)
    return counts, bool(first), seconds


def _before(database: sqlite3.Connection, server: str, row: int) -> tuple[Counts, float]:
    """Return the server's counts before one of its rows, and the seconds that are to be left out.

    These are the row's own where the row before it is gone, so that nobody knows its counts.
    """
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
    """Return two servers' spans of the same time as one, with the later one's totals."""
    latest = max(one, other, key=lambda span: span.at)
    row: SnapshotDict = {
        name: max(float(one.row[name]), float(other.row[name])) for name in one.row
    }
    row |= {name: latest.row[name] for name in TOTALS}
    return Span(latest.at, one.seconds + other.seconds, one.counts.plus(other.counts), row)


def _pack(histogram: int) -> bytes:
    return zlib.compress(histogram.to_bytes(BUCKETS * 8, "little"), 1)


def _unpack(data: bytes) -> int:
    try:
        # No more than it can be, whatever it says.
        lanes = zlib.decompressobj().decompress(data, BUCKETS * 8 + 1)
    except (TypeError, zlib.error) as error:
        raise sqlite3.DatabaseError(f"a histogram is damaged: {error}") from error
    if len(lanes) != BUCKETS * 8:
        raise sqlite3.DatabaseError("a histogram is damaged")
    return int.from_bytes(lanes, "little")
