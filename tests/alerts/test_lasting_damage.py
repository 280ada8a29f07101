"""A lasting history's file that somebody else has prepared: refused or damaged, never worse."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.history import SQLiteHistory


@pytest.fixture
def lasting(monitor: MetricsMonitor, path: Path) -> Iterator[SQLiteHistory]:
    lasting = SQLiteHistory(monitor, path, days=1, start=False)
    yield lasting
    lasting.stop()


def keep(lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock) -> None:
    for _ in range(3):
        monitor.record_request(10.0)
        clock.advance(60)
        assert lasting.check()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def problem(monitor: MetricsMonitor) -> str:
    return monitor.get_health()["components"]["lasting_history"]


def test_it_is_made_for_its_owner_only(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    before = os.umask(0)
    try:
        keep(lasting, monitor, clock)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in path.parent.glob("metrics.db*")}
    assert modes == {0o600}


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def of_another(path: Path) -> None:
    path.touch()
    try:
        os.chown(path, 65534, 65534)
    except PermissionError:
        pytest.skip("files are given away by root only")


def a_link_of_another(path: Path) -> None:
    path.with_name("mine").touch()
    path.symlink_to(path.with_name("mine"))
    try:
        os.lchown(path, 65534, 65534)
    except PermissionError:
        pytest.skip("files are given away by root only")


@pytest.mark.parametrize("plant", [a_pipe, of_another, a_link_of_another, Path.mkdir])
def test_what_is_no_file_of_ours_is_not_opened(
    lasting: SQLiteHistory,
    monitor: MetricsMonitor,
    clock: ManualClock,
    path: Path,
    plant: Callable[[Path], None],
) -> None:
    plant(path)
    clock.advance(60)
    assert not lasting.check()
    assert problem(monitor) == "failing: not a regular file of this user"
    assert len(monitor.get_metrics_history(600)) == 1


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_what_stands_beside_it_is_looked_at_first(
    suffix: str,
    lasting: SQLiteHistory,
    monitor: MetricsMonitor,
    clock: ManualClock,
    path: Path,
) -> None:
    """SQLite would wait for a FIFO, which nothing can end, and the file may be known by a link."""
    keep(lasting, monitor, clock)
    path.rename(path.with_name("real.db"))
    path.symlink_to("real.db")
    beside = path.with_name(f"real.db{suffix}")
    os.mkfifo(beside)
    clock.advance(60)
    assert not lasting.check()
    assert problem(monitor) == f"failing: its {suffix} is no file of this user"
    assert len(monitor.get_metrics_history()) == 4
    beside.unlink()
    assert lasting.check()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
PREPARED: dict[str, list[str]] = {
    "a view without an end": [
        "ALTER TABLE minutes RENAME TO others",
        f"CREATE VIEW minutes AS SELECT * FROM others WHERE id > ({ENDLESS})",
    ],
    "a trigger without an end": [
        f"CREATE TRIGGER t AFTER INSERT ON minutes BEGIN DELETE FROM hidden WHERE ({ENDLESS}); END",
    ],
}


@pytest.mark.parametrize("statements", PREPARED.values(), ids=PREPARED)
def test_what_has_no_end_is_ended(
    monitor: MetricsMonitor, clock: ManualClock, path: Path, statements: list[str]
) -> None:
    lasting = SQLiteHistory(monitor, path, start=False, time_limit=0.05)
    keep(lasting, monitor, clock)
    change(path, *statements)
    clock.advance(60)
    assert not lasting.check()
    assert problem(monitor).startswith("failing: ")
    assert len(monitor.get_metrics_history(600)) >= 4
    lasting.stop()


def test_a_histogram_that_unpacks_to_gigabytes_is_damaged(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    keep(lasting, monitor, clock)
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE minutes SET histogram = ?", (bomb,))
    with pytest.raises(sqlite3.DatabaseError, match="a histogram is damaged"):
        lasting.summary(0, clock.time())


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "setlimit"), reason="Python 3.11 limits values")
def test_a_schema_that_makes_up_gigabytes_is_damaged(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    keep(lasting, monitor, clock)
    change(
        path,
        "ALTER TABLE minutes RENAME COLUMN histogram TO h",
        "ALTER TABLE minutes ADD COLUMN histogram AS (zeroblob(900000000))",
    )
    with pytest.raises(sqlite3.DataError, match="too big"):
        lasting.summary(0, clock.time())
    assert len(monitor.get_metrics_history(600)) >= 3


def test_more_rows_than_minutes_are_damage(
    lasting: SQLiteHistory, monitor: MetricsMonitor, clock: ManualClock, path: Path
) -> None:
    keep(lasting, monitor, clock)
    with closing(sqlite3.connect(path)) as database, database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info (minutes)")][1:]
        names = ", ".join(columns)
        for _ in range(12):  # doubled each time
            database.execute(f"INSERT INTO minutes ({names}) SELECT {names} FROM minutes")
    with pytest.raises(sqlite3.DatabaseError, match="more rows than minutes"):
        lasting.rows(0, clock.time())
    change(path, "UPDATE minutes SET server = id")
    with pytest.raises(sqlite3.DatabaseError, match="more rows than minutes"):
        lasting.rows(0, clock.time(), 5)
    assert problem(monitor) == "failing: there are more rows than minutes"
    assert len(monitor.get_metrics_history(600)) == 3


values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
columns = st.sampled_from(
    ["at", "monotonic", "seconds", "server", "first", "histogram", "total_requests", "workers"]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(columns, st.integers(1, 3), values), min_size=1, max_size=3))
def test_whatever_is_in_a_row_is_read_or_damaged(
    tmp_path: Path, changes: list[tuple[str, int, Any]]
) -> None:
    clock = ManualClock()
    path = tmp_path / "metrics.db"
    for file in tmp_path.glob("metrics.db*"):
        file.unlink()
    with MetricsMonitor(clock=clock) as monitor:
        lasting = SQLiteHistory(monitor, path, start=False)
        keep(lasting, monitor, clock)
        with closing(sqlite3.connect(path)) as database, database:
            for column, row, value in changes:
                with suppress(sqlite3.IntegrityError):
                    database.execute(f"UPDATE minutes SET {column} = ? WHERE id = ?", (value, row))
        for read in (lasting.rows, lasting.summary, partial(lasting.route_rows, "GET", "/x")):
            with suppress(sqlite3.Error, OSError):
                read(0, clock.time())
        assert len(monitor.get_metrics_history(600)) >= 3
        monitor.get_metrics_history(600, step_minutes=2)
        clock.advance(60)
        lasting.check()
        monitor.get_health()
        lasting.stop()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40_000), st.binary(min_size=1, max_size=9)), min_size=1))
def test_whatever_is_in_the_file_is_read_or_damaged(
    tmp_path: Path, changes: list[tuple[int, bytes]]
) -> None:
    clock = ManualClock()
    path = tmp_path / "metrics.db"
    for file in tmp_path.glob("metrics.db*"):
        file.unlink()
    with MetricsMonitor(clock=clock) as monitor:
        lasting = SQLiteHistory(monitor, path, start=False)
        keep(lasting, monitor, clock)
        data = bytearray(path.read_bytes())
        for place, written in changes:
            place %= len(data)
            data[place : place + len(written)] = written
        path.write_bytes(data)
        for read in (lasting.rows, lasting.summary, partial(lasting.route_rows, "GET", "/x")):
            with suppress(sqlite3.Error, OSError):
                read(0, clock.time())
        assert len(monitor.get_metrics_history(600)) >= 3
        clock.advance(60)
        lasting.check()
        monitor.get_health()
        lasting.stop()
