"""The lasting history: days back, across restarts, from merged histograms, whatever breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from kits.crew import SharedClock, crew
from kits.servers import wait_until

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.asgi import metrics_app
from metricsmw.adapters.auth import public
from metricsmw.alerts import MetricsAlerter
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.counts import Counts, pack_lanes
from metricsmw.engine.reading.database import Written, append
from metricsmw.history import SQLiteHistory
from metricsmw.snapshot import HISTORY_FIELDS

BOUND = 0.011


def nearest_rank(values: list[float], percent: int) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def ask(monitor: MetricsMonitor, query: str) -> tuple[int, Any]:
    answer = Handlers(monitor, public()).handle(Request("GET", "/history", query, {}))
    return answer.status, json.loads(answer.body)


def test_percentiles_of_any_range_are_those_of_its_requests(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    drawn = random.Random(6)
    minutes: list[list[float]] = []
    start = clock.time()
    for minute in range(180):
        # Quiet minutes are slow ones: averages of percentiles would be far off.
        count = drawn.choice([0, 1, 3, 100])
        values = [drawn.lognormvariate(3 if count == 100 else 6, 1) for _ in range(count)]
        for number, value in enumerate(values):
            monitor.record_request(value, is_error=number % 7 == 3)
        minutes.append(values)
        clock.advance(60)
        assert lasting.check(), f"minute {minute}"
        assert not lasting.check()
    for first, last in [(0, 180), (17, 18), (3, 150), (100, 133)]:
        wanted = [value for values in minutes[first:last] for value in values]
        errors = sum(n % 7 == 3 for values in minutes[first:last] for n in range(len(values)))
        found = lasting.summary(start + first * 60, start + last * 60)
        assert (found["requests"], found["errors"]) == (len(wanted), errors)
        assert found["seconds"] == (last - first) * 60
        assert found["request_rate_rpm"] == round(len(wanted) / (last - first), 2)
        for percent in (50, 95, 99):
            exact = nearest_rank(wanted, percent) if wanted else 0.0
            shown = found[f"latency_p{percent}_ms"]  # type: ignore[literal-required]
            assert abs(shown - exact) <= exact * BOUND + 0.01


def test_the_history_goes_back_beyond_the_hour(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    for _ in range(300):
        monitor.record_request(10.0, is_error=True)
        clock.advance(60)
        monitor.get_current_snapshot()
        lasting.check()
    assert len(monitor.get_metrics_history(60)) == 60
    whole = monitor.get_metrics_history(1000)
    assert [row["total_requests"] for row in whole] == list(range(1, 301))
    assert [list(row) for row in whole] == [list(HISTORY_FIELDS)] * 300
    assert [row["minute_requests"] for row in whole] == [1] * 300
    assert [list(map(type, row.values())) for row in whole] == [
        list(map(type, whole[-1].values()))
    ] * 300
    code, body = ask(monitor, "minutes=240")
    assert (code, body["count"], body["minutes"], body["step_minutes"]) == (200, 240, 240, 1)
    code, body = ask(monitor, "minutes=240&step_minutes=60")
    assert body["step_minutes"] == 60
    assert body["count"] in (4, 5)
    row = body["history"][1]
    assert (row["request_rate_rpm"], row["error_rate_pct"]) == (1.0, 100.0)
    assert abs(row["latency_p99_ms"] - 10) <= 0.11
    code, body = ask(monitor, "minutes=99999999")
    assert (body["minutes"], body["step_minutes"]) == (30 * 1440, 30)
    code, body = ask(monitor, "minutes=2880&step_minutes=1")
    assert body["step_minutes"] == 2
    assert ask(monitor, "minutes=5&step_minutes=0")[0] == 400


def test_it_writes_by_itself(path: Path, monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    lasting = SQLiteHistory(monitor, path, check_interval=0.01)
    try:
        for minute in range(1, 4):
            clock.advance(60)
            wait_until(lambda: len(lasting.rows(0, clock.time())) == minute, "the row")  # noqa: B023
    finally:
        lasting.stop()


def test_it_outlives_the_server(path: Path, clock: ManualClock) -> None:
    for run in range(3):
        with MetricsMonitor(clock=clock) as monitor:
            lasting = SQLiteHistory(monitor, path, start=False)
            for _ in range(5):
                monitor.record_request(10.0 * (run + 1))
                clock.advance(60)
                lasting.check()
            rows = monitor.get_metrics_history(60)
            assert len(rows) == 5 * (run + 1)
            assert [row["total_requests"] for row in rows] == [1, 2, 3, 4, 5] * (run + 1)
            assert lasting.summary(0, clock.time())["requests"] == 5 * (run + 1)
            lasting.stop()
        clock.advance(300)
        clock.now = 5000.0 * (run + 1)  # another start of the machine


@pytest.mark.parametrize(
    ("saved", "pause", "fires"),
    [(61, 90, True), (61, 600, False), (40, 30, False), (0, 30, False)],
    ids=["restarted", "long away", "too young", "no history"],
)
@pytest.mark.parametrize("name", ["burn_rate", "server_burn_rate"])
def test_a_burn_rate_goes_on_after_a_restart(
    path: Path, clock: ManualClock, name: str, saved: int, pause: int, fires: bool
) -> None:
    """Its long window is covered by what was saved before."""
    rule = f"{name}(99.9, 60m, 5m) > 14.4"
    for minutes in (saved, 1):
        with MetricsMonitor(clock=clock) as monitor:
            lasting = SQLiteHistory(monitor, path, start=False)
            with MetricsAlerter(monitor, rules=[rule], notify=str, start=False) as alerter:
                for _ in range(minutes if minutes > 1 else 0):
                    for number in range(10):
                        monitor.record_request(1.0, status=500 if number < 5 else 200)
                    clock.advance(60)
                    assert lasting.check()
                if minutes == 1:
                    for number in range(10):
                        monitor.record_request(1.0, status=500 if number < 5 else 200)
                    clock.advance(6)
                    assert [alert.state for alert in alerter.check()] == ["firing"] * fires
                    if fires:
                        (row,) = alerter.get_alerts()
                        assert row["value"] == pytest.approx(500)
            lasting.stop()
        clock.advance(pause)


def test_a_reset_hides_what_was_before(
    path: Path, monitor: MetricsMonitor, lasting: SQLiteHistory, clock: ManualClock
) -> None:
    for _ in range(5):
        monitor.record_request(10.0)
        clock.advance(60)
        lasting.check()
    monitor.record_request(10.0)
    clock.advance(30)
    monitor.reset_statistics()
    assert monitor.get_metrics_history(600) == []
    monitor.record_request(10.0)
    clock.advance(60)
    assert lasting.check()
    assert [row["total_requests"] for row in lasting.rows(0, clock.time())] == [1]
    assert lasting.summary(0, clock.time())["requests"] == 1
    lasting.stop()
    with MetricsMonitor(clock=clock) as after:
        again = SQLiteHistory(after, path, start=False)
        assert again.summary(0, clock.time())["requests"] == 1


def test_old_minutes_go(path: Path, monitor: MetricsMonitor, clock: ManualClock) -> None:
    lasting = SQLiteHistory(monitor, path, days=1, start=False)
    for _ in range(30):
        monitor.record_request(10.0)
        clock.advance(60)
        lasting.check()
    clock.advance(86_400 - 600)
    assert len(lasting.rows(0, clock.time())) == 10
    assert lasting.summary(0, clock.time())["requests"] == 10
    for _ in range(30):
        monitor.record_request(10.0)
        clock.advance(60)
        lasting.check()
    assert len(lasting.rows(0, clock.time())) == 30
    # The first of these follows a day's gap: the row that it counts from is gone.
    assert lasting.summary(0, clock.time())["requests"] == 29
    with closing(sqlite3.connect(path)) as database:
        kept = database.execute("SELECT count(*) FROM minutes").fetchone()[0]
    assert 30 <= kept <= 41
    lasting.stop()


def test_what_lies_before_the_oldest_minute_is_in_no_range(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    for _ in range(5):
        monitor.record_request(10.0)
        clock.advance(60)
        lasting.check()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM minutes WHERE id <= 2")
    found = lasting.summary(0, clock.time())
    assert (found["requests"], found["seconds"]) == (2, 120)


def test_counts_that_shrink_for_a_while_are_never_below_nothing() -> None:
    before = Counts(10, 5, pack_lanes([0] * 100 + [7, 3] + [0] * 1051))
    now = Counts(9, 6, pack_lanes([0] * 100 + [5, 4] + [0] * 1051))
    assert now.since(before) == Counts(0, 1, pack_lanes([0] * 101 + [1] + [0] * 1051))
    more = Counts(12, 5, pack_lanes([0] * 100 + [8, 4] + [0] * 1051))
    assert more.since(before) == Counts(2, 0, pack_lanes([0] * 100 + [1, 1] + [0] * 1051))


def test_a_jump_of_the_clock_costs_nothing(
    path: Path, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    lasting = SQLiteHistory(monitor, path, days=1, start=False)
    for jump in [0.0] * 50 + [86_400.0 * 365, -86_400.0 * 365] + [0.0] * 5:
        clock.wall += jump
        monitor.record_request(10.0)
        clock.advance(60)
        assert lasting.check()
    kept = lasting.summary(0, clock.time())
    assert kept["requests"] >= 56 - 10
    lasting.stop()


Break = Callable[[Path], "sqlite3.Connection | None"]


def lock(path: Path) -> sqlite3.Connection:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    return holder


def damage(path: Path) -> None:
    for name in os.listdir(path.parent):
        (path.parent / name).unlink()
    path.write_bytes(b"this is no database, but long enough to be one" * 200)


def remove_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("break_it", [lock, damage, remove_the_folder])
def test_a_broken_database_is_told_and_touches_nothing(
    tmp_path: Path,
    monitor: MetricsMonitor,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    break_it: Break,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "metrics.db"
    lasting = SQLiteHistory(monitor, path, start=False, write_patience=0.01, read_patience=0.01)
    clock.advance(60)
    assert lasting.check()
    assert monitor.get_health()["components"]["lasting_history"] == "operational"
    holder = break_it(path)
    for _ in range(3):
        monitor.record_request(10.0)
        clock.advance(60)
        assert not lasting.check()
    recent = monitor.read().recent_history(60)
    assert len(recent) == 4
    assert monitor.get_metrics_history(600)[-4:] == recent
    code, body = ask(monitor, "minutes=600")
    assert (code, body["history"][-4:]) == (200, recent)
    health = monitor.get_health()
    assert health["status"] == "degraded"
    assert health["components"]["lasting_history"].startswith("failing: ")
    assert str(folder) not in health["components"]["lasting_history"]
    errors = [r for r in caplog.records if "lasting history" in r.getMessage()]
    assert errors[0].levelno == logging.ERROR
    assert len(errors) <= 2
    if holder is not None:
        holder.close()
        assert lasting.check()
        assert monitor.get_health()["status"] == "healthy"
        # What could not be written is in the next row.
        assert lasting.summary(0, clock.time())["requests"] == 3
        assert lasting.summary(0, clock.time())["seconds"] == 240
    lasting.stop()


def test_a_full_disk_is_told_and_loses_nothing(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    monitor.record_request(10.0)
    clock.advance(60)
    assert lasting.check()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        monitor.record_request(10.0)
        clock.advance(60)
        assert not lasting.check()
        assert "lasting_history" in monitor.get_health()["components"]
        assert monitor.get_health()["components"]["lasting_history"].startswith("failing: ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    clock.advance(60)
    assert lasting.check()
    assert lasting.summary(0, clock.time())["requests"] == 2
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_it_waits_for_a_locked_database_by_sleeping(
    path: Path,
    lasting: SQLiteHistory,
    monitor: MetricsMonitor,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.advance(60)
    assert lasting.check()
    sleep = time.sleep
    holders: list[sqlite3.Connection] = []

    def let_go(seconds: float) -> None:
        # Only here: greenlets run while one sleeps, and not while SQLite waits.
        if holders:
            holders.pop().close()
        sleep(0)

    monkeypatch.setattr(time, "sleep", let_go)
    holders.append(lock(path))
    clock.advance(60)
    assert lasting.check()
    assert not holders
    holders.append(lock(path))
    assert len(lasting.rows(0, clock.time())) == 2
    assert not holders


def test_what_cannot_be_read_is_told(
    path: Path, lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    for _ in range(70):
        monitor.record_request(10.0)
        clock.advance(60)
        assert lasting.check()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE minutes SET histogram = x'00' WHERE id <= 60")
    assert ask(monitor, "minutes=100&step_minutes=60")[1]["history"] == []
    health = monitor.get_health()
    assert health["status"] == "degraded"
    assert health["components"]["lasting_history"].startswith("failing: a histogram is damaged")
    assert lasting.check() is False  # writing goes on, and is due in a minute
    assert monitor.get_health()["status"] == "degraded"
    assert ask(monitor, "minutes=5&step_minutes=2")[1]["history"] != []
    assert monitor.get_health()["status"] == "healthy"


@pytest.mark.parametrize("path_asked", ["/history", "/export/json", "/export/csv"])
def test_the_event_loop_goes_on_while_the_database_is_read(
    lasting: SQLiteHistory,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    path_asked: str,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    went_on: list[bool] = []

    def rows(*args: object) -> list[Any]:
        begun.set()
        went_on.append(go_on.wait(20))
        return []

    monkeypatch.setattr(lasting, "rows", rows)
    app = metrics_app(monitor, public())

    async def both() -> list[int]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            slow = asyncio.ensure_future(client.get(path_asked))
            while not begun.is_set():
                await asyncio.sleep(0)
            other = await client.get("/current")
            go_on.set()
            return [other.status_code, (await slow).status_code]

    assert asyncio.run(both()) == [200, 200]
    assert went_on == [True]


def test_of_two_servers_with_one_file_one_writes(
    path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def go(minutes: int, *checking: SQLiteHistory) -> list[list[bool]]:
        found = []
        for _ in range(minutes):
            for monitor in monitors:
                monitor.record_request(10.0)
            clock.advance(60)
            found.append([one.check() for one in checking])
        return found

    with MetricsMonitor(clock=clock) as first:
        clock.advance(1)
        second = MetricsMonitor(clock=clock)
        monitors = [first, second]
        one, two = (SQLiteHistory(monitor, path, start=False) for monitor in monitors)
        assert go(3, one, two) == [[True, False]] * 3
        assert first.get_health()["status"] == "healthy"
        told = second.get_health()["components"]["lasting_history"]
        assert told.startswith("failing: another server")
        assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
        assert one.summary(0, clock.time())["requests"] == 3
        # Where the writer is gone, the other writes, and has missed nothing of its own.
        assert go(3, two) == [[False], [True], [True]]
        assert second.get_health()["status"] == "healthy"
        assert one.summary(0, clock.time())["requests"] == 3 + 6
        assert go(1, one) == [[False]]


def test_a_writer_that_hung_until_another_wrote_writes_nothing(
    path: Path, lasting: SQLiteHistory, clock: ManualClock
) -> None:
    clock.advance(60)
    assert lasting.check()
    with closing(sqlite3.connect(path)) as database:
        columns = {name: 0 for _, name, *_ in database.execute("PRAGMA table_info (minutes)")}
        at, server = database.execute("SELECT monotonic, server FROM minutes").fetchone()
        row = Written(
            clock.time(), clock.monotonic() + 60, float(server), Counts(), dict(columns), {}
        )
        for since in (None, at - 60):
            assert not append(database, row, since, 0.0, 0.0, 60.0, 20)
        assert append(database, row, at, 0.0, 0.0, 60.0, 20)
        assert not append(database, row, at, 0.0, 0.0, 60.0, 20)
    assert len(lasting.rows(0, clock.time())) == 2


WRITER = """
import sys
from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.history import SQLiteHistory

clock = ManualClock()
monitor = MetricsMonitor(clock=clock)
lasting = SQLiteHistory(monitor, sys.argv[1], start=False)
while True:
    for _ in range(10):
        monitor.record_request(10.0)
    clock.advance(60)
    assert lasting.check()
    print("x", end="", flush=True)
"""


@pytest.mark.parametrize("after", [1, 2, 17, 60, 61, 62, 63])
def test_killed_in_the_middle_it_has_all_but_the_minute_in_progress(path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        written = len(process.stdout.read(after))
        process.send_signal(signal.SIGKILL)
        written += len(process.stdout.read())
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        totals = [n for (n,) in database.execute("SELECT total_requests FROM minutes ORDER BY id")]
    assert totals == [10.0 * minute for minute in range(1, len(totals) + 1)]
    assert written <= len(totals) <= written + 1


ALL: list[SQLiteHistory] = []  # of a worker, in its own process


def equip(monitor: MetricsMonitor, path: Path) -> None:
    ALL[:] = [SQLiteHistory(monitor, path, start=False)]


def look(monitor: MetricsMonitor) -> bool:
    return ALL[0].check()


def record(monitor: MetricsMonitor) -> None:
    monitor.record_request(10.0)


def history(monitor: MetricsMonitor) -> list[Any]:
    return monitor.get_metrics_history(600)


def requests(monitor: MetricsMonitor, until: float) -> int:
    return ALL[0].summary(0, until)["requests"]


def test_one_worker_writes_and_its_death_loses_nothing(path: Path) -> None:
    clock = SharedClock()
    with crew(4, clock) as workers:
        workers.all(equip, path)
        workers.all(record)
        workers.workers[0].do(look)
        for minute in range(1, 91):
            workers.all(record)
            clock.advance(60)
            if minute in (20, 50):
                workers.workers[minute // 25].kill()
            assert sum(workers.all(look)) == 1, f"minute {minute}"
        histories = workers.all(history)
        assert histories[0] == histories[1]
        assert len(histories[0]) == 90
        expected = 4 + 4 * 20 + 3 * 30 + 2 * 40
        assert histories[0][-1]["total_requests"] == expected
        assert workers.all(requests, clock.time()) == [expected] * 2


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"days": 0}, ValueError),
        ({"days": 3651}, ValueError),
        ({"days": 1.5}, TypeError),
        ({"path": "/nowhere/at/all.db"}, ValueError),
    ],
)
def test_bad_settings_are_an_error_at_the_start(
    monitor: MetricsMonitor, path: Path, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        SQLiteHistory(monitor, **{"path": path, "start": False} | settings)
    assert monitor.lasting is None


def test_joined_minutes_need_it(monitor: MetricsMonitor) -> None:
    with pytest.raises(ValueError, match="SQLiteHistory"):
        monitor.get_metrics_history(60, step_minutes=5)


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "metricsmw lasting_history"]


def test_a_monitor_keeps_its_history_until_it_is_closed(path: Path, clock: ManualClock) -> None:
    def a_minute_goes_by(rows: int) -> None:
        monitor.record_request(10.0)
        clock.advance(60)
        assert monitor.lasting is not None
        assert len(threads()) == 1
        assert monitor.lasting.check()
        assert len(monitor.lasting.rows(0, clock.time())) == rows

    with MetricsMonitor(clock=clock, history=path, history_days=7) as monitor:
        assert monitor.longest_history == 7 * 1440
        a_minute_goes_by(1)
    assert threads() == []
    with monitor:  # used again
        a_minute_goes_by(2)
    assert threads() == []


def test_the_servers_monitor_keeps_its_history(path: Path) -> None:
    monitor = get_metrics_monitor(history=path, history_days=3)
    assert monitor.longest_history == 3 * 1440
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_metrics_monitor() is monitor
        assert get_metrics_monitor(history=str(path)) is monitor
    with pytest.warns(RuntimeWarning, match="has another one"):
        assert get_metrics_monitor(history="other.db") is monitor


def test_a_history_that_comes_too_late_is_warned_of(path: Path) -> None:
    monitor = get_metrics_monitor()
    with pytest.warns(RuntimeWarning, match="has none"):
        assert get_metrics_monitor(history=path) is monitor
    assert monitor.lasting is None


@pytest.mark.parametrize(
    ("history", "history_days", "error", "says"),
    [
        ("/nowhere/at/all.db", 30, ValueError, "history must lie in a folder that exists"),
        ("metrics.db", 0, ValueError, "history_days must be a whole number from 1 to 3650"),
        ("metrics.db", "30", TypeError, "history_days"),
        (5, 30, TypeError, "history must be a path, got 5"),
    ],
)
def test_a_bad_history_is_an_error_at_the_start(
    history: Any, history_days: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        MetricsMonitor(history=history, history_days=history_days)
    assert threads() == []


def test_who_keeps_no_history_loads_no_database() -> None:
    code = "import sys, metricsmw; metricsmw.MetricsMonitor(); print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
