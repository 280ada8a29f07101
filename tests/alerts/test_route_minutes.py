"""Minutes of single routes in a lasting history."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest
from kits.reference import ROUTE_BOUND, nearest_rank

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.route_minutes import RouteMinute
from metricsmw.history import SQLiteHistory

Recorded = list[tuple[float, int]]  # milliseconds and status of each request
ROUTES = ["/a", "/b", "/c", "/d"]


def record(monitor: MetricsMonitor, route: str, requests: Recorded) -> None:
    for milliseconds, status in requests:
        monitor.record_request(milliseconds, method="GET", route=route, status=status)


def of(lasting: SQLiteHistory, clock: ManualClock, route: str, step: int = 1) -> list[RouteMinute]:
    return lasting.route_rows("GET", route, 0, clock.time(), step)


def assert_is(row: RouteMinute, requests: Recorded, minutes: float = 1) -> None:
    """The row tells of these requests."""
    errors = sum(status >= 400 for _, status in requests)
    own = sum(status >= 500 for _, status in requests)
    count = len(requests)
    assert (row["requests"], row["errors"], row["server_errors"]) == (count, errors, own)
    assert row["seconds"] == 60 * minutes
    assert row["request_rate_rpm"] == pytest.approx(count / minutes, abs=0.01)
    assert row["error_rate_pct"] == (round(100 * errors / count, 2) if count else 0)
    ordered = sorted(milliseconds for milliseconds, _ in requests)
    for percent in (50, 95, 99):
        found = row[f"latency_p{percent}_ms"]  # type: ignore[literal-required]
        if ordered:
            exact = nearest_rank(ordered, percent)
            assert found == pytest.approx(exact, rel=ROUTE_BOUND, abs=0.01)
        else:
            assert found is None


def test_minutes_and_spans_are_those_of_their_requests(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    drawn = random.Random(5)
    minutes: dict[str, list[Recorded]] = defaultdict(list)
    clock.advance(-clock.time() % 300)
    assert lasting.check()
    for minute in range(20):
        for route in ROUTES:
            count = drawn.choice([0, 1, 20])
            requests = [
                (drawn.lognormvariate(3, 1), drawn.choice([200, 404, 500])) for _ in range(count)
            ]
            record(monitor, route, requests)
            minutes[route].append(requests)
        clock.advance(60)
        if minute == 9:  # another worker takes over
            lasting.stop()
            lasting = SQLiteHistory(monitor, path, start=False)
        assert lasting.check()
    for route in ROUTES:
        rows = of(lasting, clock, route)[1:]
        for row, requests in zip(rows, minutes[route], strict=True):
            assert_is(row, requests)
        joined = of(lasting, clock, route, 5)
        assert sum(row["requests"] for row in joined) == sum(map(len, minutes[route]))
        # Rows lie a minute apart, and one ends a span of five.
        assert_is(joined[1], [one for five in minutes[route][4:9] for one in five], 5)
    # One that was never there had no requests: none was left out.
    assert [row["requests"] for row in of(lasting, clock, "/none")] == [0] * 21
    lasting.stop()


def test_only_the_busiest_are_kept_and_others_are_not_known(
    monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    lasting = SQLiteHistory(monitor, path, routes=2, start=False)
    for counts in ({"/a": 5, "/b": 4}, {"/a": 5, "/b": 4, "/c": 1}, {"/c": 9}, {}):
        for route, count in counts.items():
            record(monitor, route, [(10.0, 200)] * count)
        clock.advance(60)
        assert lasting.check()
    assert [row["requests"] for row in of(lasting, clock, "/a")] == [5, 5, 0, 0]
    assert [row["requests"] for row in of(lasting, clock, "/c")] == [0, 9, 0]
    (row,) = of(lasting, clock, "/c", 1000)[-1:]
    assert row["seconds"] in (60, 120, 180)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM route_minutes").fetchone() == (5,)
    lasting.stop()
    none = SQLiteHistory(monitor, path, routes=0, start=False)
    clock.advance(60)
    assert none.check()
    assert len(of(none, clock, "/a")) == 4
    none.stop()
    again = SQLiteHistory(monitor, path, start=False)
    for _ in range(2):  # of the first of them nobody knows what was before
        record(monitor, "/a", [(10.0, 200)])
        clock.advance(60)
        assert again.check()
    assert [row["requests"] for row in of(again, clock, "/a")] == [5, 5, 0, 0, 1]
    again.stop()


def test_restarts_and_resets(path: Path, clock: ManualClock) -> None:
    for run in range(3):
        with MetricsMonitor(clock=clock) as monitor:
            lasting = SQLiteHistory(monitor, path, start=False)
            for _ in range(2):
                record(monitor, "/a", [(10.0, 200)] * (run + 1))
                clock.advance(60)
                assert lasting.check()
            if run == 2:
                monitor.reset_statistics()
                record(monitor, "/a", [(10.0, 500)])
                clock.advance(60)
                assert lasting.check()
                (row,) = of(lasting, clock, "/a")
                assert_is(row, [(10.0, 500)])
            else:
                assert [row["requests"] for row in of(lasting, clock, "/a")] == [1, 1, 2, 2][
                    : 2 * run + 2
                ]
            lasting.stop()
        clock.advance(300)
        clock.now = 5000.0 * (run + 1)


@pytest.mark.parametrize("hours", [1, 30])
def test_a_table_of_a_span_is_the_sum_of_its_minutes(
    path: Path, clock: ManualClock, hours: int
) -> None:
    monitor = MetricsMonitor(max_history_minutes=1, clock=clock)
    lasting = SQLiteHistory(monitor, path, start=False)
    drawn = random.Random(hours)
    minutes: list[tuple[float, dict[str, Recorded]]] = []
    clock.advance(-clock.time() % 3600 + 1234)
    assert lasting.check()
    apart = 60 if hours == 1 else 600
    for _ in range(3600 * hours // apart):
        some: dict[str, Recorded] = {}
        for route in drawn.sample(ROUTES, 2 if hours > 1 else 4):
            some[route] = [(drawn.lognormvariate(3, 1), drawn.choice([200, 404, 500]))]
            record(monitor, route, some[route])
        clock.advance(apart)
        assert lasting.check()
        minutes.append((clock.time(), some))
    end = clock.time()
    for since in (0.0, end - 1000, end - 25.5 * 3600, end - 24.9 * 3600):
        expected: dict[str, Recorded] = defaultdict(list)
        for at, some in minutes:
            for route, requests in some.items():
                if at > since:
                    expected[route] += requests
        table = lasting.route_table(since, end)
        assert {row["route"]: row["requests"] for row in table} == {
            route: len(requests) for route, requests in expected.items()
        }
        for row in table:
            ordered = sorted(milliseconds for milliseconds, _ in expected[row["route"]])
            exact = nearest_rank(ordered, 95)
            assert row["latency_p95_ms"] == pytest.approx(exact, rel=ROUTE_BOUND, abs=0.01)
            errors = sum(status >= 400 for _, status in expected[row["route"]])
            assert row["errors"] == errors
        assert sum(row["time_share_pct"] for row in table) == pytest.approx(100, abs=0.05)
        assert [row["requests"] for row in table] == sorted(map(len, expected.values()))[::-1]
    monitor.reset_statistics()
    record(monitor, "/a", [(10.0, 200)])
    clock.advance(60)
    assert lasting.check()
    (row,) = lasting.route_table(0, clock.time())
    assert (row["requests"], row["request_rate_rpm"], row["time_share_pct"]) == (1, 1.0, 100.0)
    lasting.stop()
    monitor.close()


def test_the_api_tells_them(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    for _ in range(3):
        record(monitor, "/a?&", [(10.0, 404)])
        clock.advance(60)
        assert lasting.check()
    handlers = Handlers(monitor, public())
    query = urlencode({"method": "GET", "route": "/a?&", "minutes": 2000})
    body = json.loads(handlers.handle(Request("GET", "/history", query, {})).body)
    assert (body["minutes"], body["step_minutes"], body["kept"]) == (2000, 2, True)
    assert sum(row["requests"] for row in body["history"]) == 3
    query = query.replace("2000", "2")
    body = json.loads(handlers.handle(Request("GET", "/history", query, {})).body)
    assert body["history"] == lasting.route_rows("GET", "/a?&", clock.time() - 120, clock.time())
    assert (body["count"], body["route"]) == (2, "/a?&")
    table = json.loads(handlers.handle(Request("GET", "/history", "by=route", {})).body)
    assert (table["kept"], table["minutes"], table["count"]) == (True, 60, 1)
    assert table["routes"] == lasting.route_table(0, clock.time())
    assert handlers.handle(Request("GET", "/history", "by=minute", {})).status == 400
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE route_minutes")
    body = json.loads(handlers.handle(Request("GET", "/history", query, {})).body)
    assert (body["kept"], body["history"]) == (None, [])


def test_a_row_that_goes_to_another_route_is_no_burst_of_others(
    clock: ManualClock, path: Path
) -> None:
    with MetricsMonitor(10, max_routes=16, clock=clock) as monitor:
        lasting = SQLiteHistory(monitor, path, start=False)
        for minute in range(4):
            for number in range(16):
                record(monitor, f"/{minute}/{number}", [(10.0, 200)] * 5)
            clock.advance(60)
            assert lasting.check()
        assert [row["requests"] for row in of(lasting, clock, "/0/1")] == [5, 0, 0, 0]
        assert [row["requests"] for row in of(lasting, clock, "/2/1")] == [0, 0, 5, 0]
        assert [row["requests"] for row in of(lasting, clock, "<other>")] == [0] * 4
        lasting.stop()


def test_old_minutes_go(monitor: MetricsMonitor, clock: ManualClock, path: Path) -> None:
    lasting = SQLiteHistory(monitor, path, days=1, start=False)
    for pause in (60, 60, 2 * 86_400, 60, 60):
        record(monitor, "/a", [(10.0, 200)])
        clock.advance(pause)
        assert lasting.check()
    with closing(sqlite3.connect(path)) as database:
        kept = database.execute("SELECT id FROM minutes").fetchall()
        assert database.execute("SELECT minute FROM route_minutes").fetchall() == kept
        assert len(database.execute("SELECT hour FROM route_hours").fetchall()) == 1
    assert len(kept) == 3
    lasting.stop()


@pytest.mark.parametrize("damage", ["x'ffff'", "x'0000'", "'text'", "NULL OR 1", "zeroblob(1)"])
def test_damage_is_told_and_passes(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path, damage: str
) -> None:
    for _ in range(2):
        record(monitor, "/a", [(10.0, 200)])
        clock.advance(60)
        assert lasting.check()
    with closing(sqlite3.connect(path)) as database, database:
        for table in ("route_minutes", "route_hours", "route_totals"):
            database.execute(f"UPDATE {table} SET histogram = {damage}")
    with pytest.raises(sqlite3.DatabaseError, match="damaged"):
        of(lasting, clock, "/a")
    for _ in range(2):  # the first of them is not known
        record(monitor, "/a", [(10.0, 200)])
        clock.advance(60)
        assert lasting.check()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM route_minutes WHERE minute < 3")
        database.execute("UPDATE minutes SET routes_left_out = -1 WHERE id < 3")
    assert [row["requests"] for row in of(lasting, clock, "/a")] == [1]


@pytest.mark.parametrize("routes", [-1, 1001, 2.0, True])
def test_how_many_is_a_whole_number(monitor: MetricsMonitor, path: Path, routes: int) -> None:
    with pytest.raises(
        (TypeError, ValueError), match="routes must be a whole number from 0 to 1000"
    ):
        SQLiteHistory(monitor, path, routes=routes, start=False)
