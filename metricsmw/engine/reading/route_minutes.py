"""The tables of an SQLite file that keep the minutes of single routes, beside those of `database`.

    route_names    a number for each method and template
    route_minutes  what a route counted since the row before: `minute` is the id of a row of
                   `minutes`, `name` the route's number; only of the busiest routes of that minute
    route_hours    the sum of a route's rows whose time is after the start of an hour and up to its
                   end; `hour` is the number of hours since 1970, `name` the route's number
    route_totals   what each route had counted up to the last row of `minutes`

    minutes.routes_left_out  how many further routes had requests in that minute; -1: no route of it
                             is known; -2: nor are there totals up to it

A histogram is the number of the first bucket in use, 2 bytes, and zlib over the counts of the
buckets from that one to the last in use, 8 bytes each, all little endian.

What a route counted in any span of minutes is the sum of its rows: a route without one had no
requests where no route was left out, and is not known otherwise.
"""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from metricsmw.engine.reading.counts import Counts, SpanFigures, SpanRates, percent
from metricsmw.engine.reading.routes import seconds_spent
from metricsmw.engine.storage.histogram import ROUTE_BUCKETS, ROUTE_SCALE
from metricsmw.engine.storage.keys import OTHER, Name
from metricsmw.engine.storage.lanes import in_use
from metricsmw.snapshot import iso_timestamp

MINUTE = 60.0
HOUR = 3600.0
# What reading a damaged row may raise.
DAMAGED = (sqlite3.DatabaseError, ArithmeticError, TypeError, ValueError)
LEFT_OUT = "routes_left_out"
# From so many whole hours on their sums are read, and single minutes only around them.
WHOLE_HOURS = 24
COUNTED = "requests, errors, server_errors, histogram"
_COUNTED = "requests INTEGER NOT NULL, errors INTEGER NOT NULL, server_errors INTEGER NOT NULL"
SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS route_names (
        id INTEGER PRIMARY KEY, method TEXT NOT NULL, route TEXT NOT NULL, UNIQUE (method, route)
    )
    """,
    f"""
    CREATE TABLE IF NOT EXISTS route_minutes (
        minute INTEGER NOT NULL, name INTEGER NOT NULL, {_COUNTED}, histogram BLOB NOT NULL,
        PRIMARY KEY (minute, name)
    ) WITHOUT ROWID
    """,
    f"""
    CREATE TABLE IF NOT EXISTS route_hours (
        hour INTEGER NOT NULL, name INTEGER NOT NULL, {_COUNTED}, histogram BLOB NOT NULL,
        PRIMARY KEY (hour, name)
    ) WITHOUT ROWID
    """,
    f"""
    CREATE TABLE IF NOT EXISTS route_totals (
        name INTEGER PRIMARY KEY, {_COUNTED}, histogram BLOB NOT NULL
    )
    """,
)

RouteTotals = Mapping[Name, Counts]


class RouteMinute(SpanRates):
    """What a route counted in a minute or several. Latencies are None where nothing was answered.

    ``timestamp`` is the end; ``seconds`` is the time that the numbers are of, less than that of all
    the minutes where the route is not known of some.
    """

    timestamp: str
    seconds: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    latency_max_ms: float | None


class RouteSpan(SpanFigures):
    """A row of the per-route table over a span of minutes; see `RouteMinute`."""

    method: str
    route: str
    time_share_pct: float


class BusiestRoutes(NamedTuple):
    """The routes of a minute that are kept, and what its `routes_left_out` is."""

    counts: RouteTotals
    left_out: int


UNKNOWN, UNCOUNTED = BusiestRoutes({}, -1), BusiestRoutes({}, -2)


def busiest(
    database: sqlite3.Connection, totals: RouteTotals, most: int, is_first: bool
) -> BusiestRoutes:
    """Return what routes counted since the row before.

    Args:
        database: An open database with its tables.
        totals: All that each has counted.
        most: How many routes to keep.
        is_first: Whether nothing was counted before.

    Raises:
        sqlite3.Error: What they had counted before cannot be read.
    """
    before = {} if is_first else _totals(database)
    counted = {
        name: counts.since(before[name]) if name in before else counts
        for name, counts in totals.items()
    }
    # A row that has gone to another route: what it had counted is now that of `<other>`.
    for name, counts in before.items():
        other = Name(name.method, OTHER)
        if totals.get(name, NOTHING).requests < counts.requests and other in counted:
            counted[other] = counted[other].since(counts.since(totals.get(name, NOTHING)))
    active = [name for name in counted if counted[name].requests]
    active.sort(key=lambda name: (-counted[name].requests, name))
    return BusiestRoutes(
        {name: counted[name] for name in active[:most]}, max(len(active) - most, 0)
    )


def store(
    database: sqlite3.Connection,
    minute: int,
    at: float,
    routes: BusiestRoutes,
    totals: RouteTotals,
) -> None:
    """Store the routes of a row of `minutes`, and what all have counted up to it.

    Args:
        database: An open database with its tables.
        minute: The id of the row.
        at: Its Unix time.
        routes: What routes have counted since the row before.
        totals: All that each has counted.

    Raises:
        sqlite3.Error: They cannot be written.
    """
    database.executemany(
        "INSERT OR IGNORE INTO route_names (method, route) VALUES (?, ?)",
        [(name.method, name.route) for name in totals],
    )
    database.execute("DELETE FROM route_totals")
    named = "(SELECT id FROM route_names WHERE method = ? AND route = ?), ?, ?, ?, ?"
    database.executemany(
        f"INSERT INTO route_totals VALUES ({named})",
        [_values(name, counts) for name, counts in totals.items()],
    )
    database.executemany(
        f"INSERT INTO route_minutes VALUES (?, {named})",
        [(minute, *_values(name, counts)) for name, counts in routes.counts.items()],
    )
    hour = math.ceil(at / HOUR) - 1
    joined = dict(routes.counts)
    for method, route, *counted in database.execute(
        f"SELECT method, route, {COUNTED} FROM route_hours JOIN route_names ON id = name "
        "WHERE hour = ?",
        (hour,),
    ):
        name = Name(method, route)
        if name in joined:
            with suppress(*DAMAGED):  # whoever reads it says so
                joined[name] = joined[name].plus(_counts(*counted))
    database.executemany(
        f"INSERT OR REPLACE INTO route_hours VALUES (?, {named})",
        [(hour, *_values(name, joined[name])) for name in routes.counts],
    )


def remove(
    database: sqlite3.Connection, minutes: str, values: tuple[object, ...], oldest: float
) -> None:
    """Remove what belongs to rows of `minutes`, which a query names, and an hour that is as old."""
    database.execute(f"DELETE FROM route_minutes WHERE minute IN ({minutes})", values)
    database.execute(
        "DELETE FROM route_hours WHERE hour = (SELECT min(hour) FROM route_hours) AND hour < ?",
        (oldest // HOUR - 1,),
    )


def read_route(
    database: sqlite3.Connection, name: Name, since: float, until: float, step: float, most: int
) -> list[RouteMinute]:
    """Return what a route counted from after Unix time ``since`` to ``until``, oldest first.

    Args:
        database: An open database with its tables.
        name: The route.
        since: Unix time.
        until: Unix time.
        step: The length of an entry in seconds, of up to a minute that of a row; entries of which
            nothing is known are left out.
        most: How many rows of `minutes` there can be.

    Raises:
        sqlite3.Error: The rows cannot be read, or are more than there can be.
    """
    found = database.execute(
        f"SELECT minutes.id, at, seconds, {LEFT_OUT}, requests, errors, "
        "server_errors, route_minutes.histogram FROM minutes LEFT JOIN route_minutes "
        "ON minute = minutes.id AND name = "
        "(SELECT id FROM route_names WHERE method = ? AND route = ?) "
        "WHERE at > ? AND at <= ? ORDER BY at",
        (name.method, name.route, since, until),
    ).fetchmany(most + 1)
    if len(found) > most:
        raise sqlite3.DatabaseError("there are more rows than minutes")
    spans: dict[int, tuple[float, float, Counts]] = {}
    for minute, at, seconds, left_out, requests, *counted in found:
        if requests is None and left_out != 0:
            continue
        place = int(at // step) if step > MINUTE else minute
        _, before, counts = spans.get(place, (0.0, 0.0, NOTHING))
        own = NOTHING if requests is None else _counts(requests, *counted)
        spans[place] = at, before + seconds, counts.plus(own)
    return [_minute(*span) for span in spans.values()]


NOTHING = Counts(scale=ROUTE_SCALE, classes=None)


def _minute(at: float, seconds: float, counts: Counts) -> RouteMinute:
    minute: RouteMinute = {
        "timestamp": iso_timestamp(at),
        "seconds": round(seconds, 2),
        **counts.figures(seconds),
    }
    if not counts.latency.count:
        minute["latency_p50_ms"] = minute["latency_p95_ms"] = minute["latency_p99_ms"] = None
        minute["latency_max_ms"] = None
    return minute


def _totals(database: sqlite3.Connection) -> dict[Name, Counts]:
    rows = database.execute(
        f"SELECT method, route, {COUNTED} FROM route_totals JOIN route_names ON id = name"
    )
    return {Name(method, route): _counts(*counted) for method, route, *counted in rows}


def _values(name: Name, counts: Counts) -> tuple[object, ...]:
    histogram = _pack(counts.histogram)
    numbers = counts.requests, counts.errors, counts.server_errors
    return name.method, name.route, *numbers, histogram


def _counts(requests: int, errors: int, server_errors: int, histogram: bytes) -> Counts:
    return _counts_of(int(requests), int(errors), int(server_errors), _unpack(histogram))


def _counts_of(requests: int, errors: int, server_errors: int, histogram: int) -> Counts:
    return Counts(requests, errors, histogram, 0.0, ROUTE_SCALE, server_errors, None)


def _pack(histogram: int) -> bytes:
    first, counts = in_use(histogram)
    lanes = (histogram >> 64 * first).to_bytes(8 * len(counts), "little")
    return first.to_bytes(2, "little") + zlib.compress(lanes, 1)


def _unpack(data: bytes) -> int:
    try:
        first = int.from_bytes(data[:2], "little")
        # No more than it can be, whatever it says.
        unpacking = zlib.decompressobj()
        lanes = unpacking.decompress(data[2:], ROUTE_BUCKETS * 8 + 1)
    except (TypeError, zlib.error) as error:
        raise sqlite3.DatabaseError(f"a route's histogram is damaged: {error}") from error
    if not unpacking.eof or len(lanes) % 8 or first + len(lanes) // 8 > ROUTE_BUCKETS:
        raise sqlite3.DatabaseError("a route's histogram is damaged")
    return int.from_bytes(lanes, "little") << 64 * first


def read_table(
    database: sqlite3.Connection, since: float, until: float, most: int
) -> tuple[dict[Name, Counts], float]:
    """Return what each route counted from after Unix time ``since`` to ``until``.

    Args:
        database: An open database with its tables.
        since: Unix time.
        until: Unix time.
        most: How many rows of `minutes` there can be.

    Returns:
        The counts of the minutes in which each was kept, and the seconds of all these minutes.

    Raises:
        sqlite3.Error: The rows cannot be read, or are more than there can be.
    """
    where = "WHERE at > ? AND at <= ?"
    seconds, minutes = database.execute(
        f"SELECT sum(seconds), count(*) FROM minutes {where} AND {LEFT_OUT} >= 0", (since, until)
    ).fetchone()
    if minutes > most:
        raise sqlite3.DatabaseError("there are more rows than minutes")
    first, last = math.ceil(since / HOUR), math.floor(until / HOUR)
    numbers: dict[int, list[int]] = {}
    queries = [(since, until)]
    if last - first >= WHOLE_HOURS:
        queries = [(since, first * HOUR), (last * HOUR, until)]
        hours = database.execute(
            f"SELECT name, {COUNTED} FROM route_hours WHERE hour >= ? AND hour < ?", (first, last)
        )
        _add_up(numbers, hours)
    for span in queries:
        found = database.execute(
            "SELECT name, requests, errors, server_errors, route_minutes.histogram "
            f"FROM minutes JOIN route_minutes ON minute = minutes.id {where}",
            span,
        )
        _add_up(numbers, found)
    names = database.execute("SELECT id, method, route FROM route_names")
    return {
        Name(method, route): _counts_of(*numbers[number])
        for number, method, route in names
        if number in numbers
    }, float(seconds or 0)


def table_rows(routes: RouteTotals, seconds: float) -> list[RouteSpan]:
    """Return what `read_table` found as rows of the per-route table, the busiest first."""
    spent = {name: seconds_spent(counts.histogram) for name, counts in routes.items()}
    total = sum(spent.values())
    rows: list[RouteSpan] = [
        {
            "method": name.method,
            "route": name.route,
            **counts.figures(seconds),
            "time_share_pct": percent(spent[name], total),
        }
        for name, counts in routes.items()
    ]
    return sorted(rows, key=lambda row: (-row["requests"], row["route"], row["method"]))


def _add_up(numbers: dict[int, list[int]], rows: Iterable[Sequence[Any]]) -> None:
    """Add rows of a name and what it counted."""
    for name, requests, errors, server_errors, histogram in rows:
        found = numbers.setdefault(name, [0, 0, 0, 0])
        found[0] += int(requests)
        found[1] += int(errors)
        found[2] += int(server_errors)
        found[3] += _unpack(histogram)
