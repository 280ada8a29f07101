"""A minute's own numbers: what was counted in it, whatever the window shows at its end."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.server import ServerReader
from metricsmw.engine.storage.minutes import Cumulative, History, MemoryBytes
from metricsmw.history import SQLiteHistory
from metricsmw.snapshot import MINUTE_FIELDS, NUMERIC_FIELDS, STATUS_FIELDS, SnapshotDict

Rows = Sequence[Mapping[str, str | float | int]]


def own(rows: Rows, name: str) -> list[float | int | str | None]:
    """One of the minutes' own numbers; None where it is not known."""
    return [row.get(f"minute_{name}") for row in rows]


def test_a_storm_is_in_its_minute_only(monitor: MetricsMonitor, clock: ManualClock) -> None:
    """Twenty seconds at two errors of three: no plateau, and the snapshots are as ever."""
    for second in range(600):
        is_storm = 130 <= second < 150
        monitor.record_request(500.0 if is_storm else 10.0, is_error=is_storm and second % 3 > 0)
        clock.advance(1)
    rows = monitor.get_metrics_history()
    assert own(rows, "requests") == [60] * 10
    assert own(rows, "request_rate_rpm") == [60.0] * 10
    assert own(rows, "errors") == own(rows, "server_errors") == [0, 0, 14, 0, 0, 0, 0, 0, 0, 0]
    assert own(rows, "error_rate_pct") == [0.0, 0.0, 23.33, *[0.0] * 7]
    for name in ("latency_p95_ms", "latency_p99_ms", "latency_max_ms"):
        values = [float(row[f"minute_{name}"]) for row in rows]
        assert values == pytest.approx([10, 10, 500, *[10] * 7], rel=0.011)
    # As described: of the window, in which the storm is for five minutes.
    is_in_window = [float(row["error_rate_pct"]) > 0 for row in rows]
    assert is_in_window == [*[False] * 2, *[True] * 5, *[False] * 3]


@pytest.mark.parametrize("window", [10, 60, 300, 3600])
def test_percentiles_are_those_of_the_minutes_requests(window: int) -> None:
    drawn = random.Random(3)
    clock = ManualClock()
    with MetricsMonitor(window, clock=clock) as monitor:
        minutes = [[drawn.lognormvariate(4, 1) for _ in range(40)] for _ in range(6)]
        for values in minutes:
            for value in values:
                monitor.record_request(value)
                clock.advance(1.5)
        rows = monitor.get_metrics_history()
    for row, values in zip(rows, minutes, strict=True):
        ordered = sorted(values)
        for percent in (50, 95, 99):
            exact = ordered[math.ceil(len(values) * percent / 100) - 1]
            assert row[f"minute_latency_p{percent}_ms"] == pytest.approx(exact, rel=0.011)
        assert row["minute_latency_max_ms"] == pytest.approx(ordered[-1], rel=0.011)


def test_the_minutes_add_up_to_the_total(monitor: MetricsMonitor, clock: ManualClock) -> None:
    drawn = random.Random(4)
    recorder = monitor.recorder
    for _ in range(40):
        for _ in range(drawn.choice([0, 1, 30])):
            monitor.record_request(10.0, status=drawn.choice([200, 404, 500]))
            recorder.begin()
            recorder.abandon(200, "/x", "GET")
        clock.advance(drawn.choice([0.5, 20, 61, 130]))
        if drawn.random() < 0.2:
            monitor.save_snapshot_to_history()
    clock.advance(60)
    rows = monitor.get_metrics_history()
    statuses = monitor.read().server.total.statuses
    for number in range(1, 6):
        counted = sum(int(row.get(f"minute_statuses_{number}xx", 0)) for row in rows)
        assert counted == statuses.get(f"{number}xx", 0)
    assert len(statuses) == 3
    snapshot = monitor.get_current_snapshot()
    for field in ("requests", "errors", "server_errors"):
        assert sum(row.get(f"minute_{field}", 0) for row in rows) == getattr(  # type: ignore[misc]
            snapshot, f"total_{field}"
        )
    assert snapshot.total_requests > 500


def test_idle_minutes_have_nothing(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    clock.advance(600)
    rows = monitor.get_metrics_history()
    assert own(rows, "requests") == [1] + [0] * 9
    assert own(rows, "latency_p99_ms")[1:] == [0.0] * 9
    assert own(rows, "seconds") == [60.0] * 10


def test_what_is_kept_no_more_is_in_no_later_minute(clock: ManualClock) -> None:
    with MetricsMonitor(max_history_minutes=5, clock=clock) as monitor:
        clock.advance(61)
        for _ in range(100):
            monitor.record_request(10.0)
        clock.advance(86_400)
        assert own(monitor.get_metrics_history(5), "requests") == [0] * 5
        monitor.record_request(10.0)
        clock.advance(60)
        assert own(monitor.get_metrics_history(5), "requests") == [0, 0, 0, 0, 1]


def test_after_a_reset_they_begin_with_nothing(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for _ in range(5):
        monitor.record_request(500.0, is_error=True)
        clock.advance(60)
    clock.advance(30)
    monitor.reset_statistics()
    for _ in range(3):
        monitor.record_request(10.0)
        clock.advance(60)
    rows = monitor.get_metrics_history()
    assert own(rows, "requests") == [1, 1, 1]
    assert own(rows, "errors") == [0, 0, 0]
    assert own(rows, "latency_p50_ms") == pytest.approx([10, 10, 10], rel=0.011)


def test_a_reset_that_left_the_rows_makes_none_of_them_wrong(
    monitor: MetricsMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed as it resets has not dropped the rows."""
    monitor.record_request(500.0, is_error=True)
    clock.advance(90)
    with monkeypatch.context() as patch:
        patch.setattr(History, "start", lambda history, origin: None)
        monitor.reset_statistics()
    monitor.record_request(10.0)
    clock.advance(60)
    assert own(monitor.get_metrics_history(), "requests") == [1]


def test_one_saved_by_hand_is_no_minute(monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    clock.advance(30)
    monitor.save_snapshot_to_history()
    monitor.record_request(10.0)
    clock.advance(30)
    assert own(monitor.get_metrics_history(), "requests") == [None, 2]


def test_a_segment_that_cannot_be_read_makes_them_unknown(
    monitor: MetricsMonitor, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a loss nor, when it can be read again, all of its past in one minute."""

    def minute() -> None:
        monitor.record_request(10.0)
        clock.advance(60)
        monitor.get_current_snapshot()

    minute()
    with monkeypatch.context() as patch:
        real = ServerReader.read

        def read(reader: ServerReader, group: object, period: object, **options: bool) -> object:
            reading = real(reader, group, period, **options)  # type: ignore[arg-type]
            reading.damaged["segment"] = "damaged"
            return reading

        patch.setattr(ServerReader, "read", read)
        minute()
        minute()
    minute()
    minute()
    assert own(monitor.get_metrics_history(), "requests") == [1, None, 1, None, 1]


def test_a_history_that_began_later_than_its_server_says_nothing_of_its_first(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    for _ in range(5):
        monitor.record_request(10.0)
    clock.advance(10)
    group = monitor.membership.group
    assert group is not None
    group.history.start(clock.monotonic())
    for _ in range(2):
        monitor.record_request(10.0)
        clock.advance(60)
    assert own(monitor.get_metrics_history(), "requests") == [None, 1]


class TestSlots:
    """The kept counts, in the file."""

    VALUES = (0.0,) * len(NUMERIC_FIELDS)

    def history(self) -> tuple[MemoryBytes, History]:
        data = MemoryBytes()
        history = History(data, 4)
        history.start(1.0)
        return data, history

    def add(self, history: History, minute: int) -> None:
        kept = Cumulative(0.0, 0, minute, 0, 0, (0, 0, minute, 0), minute << 64)
        history.append(60.0 * minute, 1e9, self.VALUES, minute, None, kept)

    def test_none_before_the_first(self) -> None:
        assert self.history()[1].cumulative is None

    def test_the_latest(self) -> None:
        _, history = self.history()
        for minute in range(1, 8):
            self.add(history, minute)
            assert history.cumulative == (0.0, 0, minute, 0, 0, (0, 0, minute, 0), minute << 64)
        history.append(1.0, 1e9, self.VALUES)
        assert history.cumulative == (0.0, 0, 7, 0, 0, (0, 0, 7, 0), 7 << 64)
        history.start(500.0)
        assert history.cumulative is None

    def test_a_writer_that_dies_before_the_header_has_changed_nothing(self) -> None:
        data, history = self.history()
        self.add(history, 1)
        for minute in (2, 3):
            header = data.read(0, 40)
            self.add(history, minute)
            data.write(0, header)
            assert history.cumulative == (0.0, 0, 1, 0, 0, (0, 0, 1, 0), 1 << 64)
        self.add(history, 2)
        assert history.cumulative == (0.0, 0, 2, 0, 0, (0, 0, 2, 0), 2 << 64)

    def test_damage_is_no_counts(self) -> None:
        data, history = self.history()
        self.add(history, 1)
        size = len(data.read(0, 1 << 20))
        for start in range(40, size, 97):
            kept = data.read(start, 8)
            data.write(start, b"\xff" * len(kept))
            assert history.cumulative in (None, (0.0, 0, 1, 0, 0, (0, 0, 1, 0), 1 << 64))
            data.write(start, kept)


class TestLasting:
    """The same of a lasting history, and of several minutes put together."""

    def test_its_rows_have_them(
        self, monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path
    ) -> None:
        history = SQLiteHistory(monitor, tmp_path / "metrics.db", start=False)
        for minute in range(10):
            for _ in range(minute):
                monitor.record_request(100.0 if minute == 5 else 1.0, is_error=minute == 5)
            clock.advance(60)
            history.check()
        rows = history.rows(0, clock.time())
        assert own(rows, "requests") == list(range(10))
        assert own(rows, "errors") == [0, 0, 0, 0, 0, 5, 0, 0, 0, 0]
        assert own(rows, "seconds") == [60.0] * 10
        assert rows[5]["minute_latency_p99_ms"] == pytest.approx(100, rel=0.011)
        assert rows[6]["minute_latency_p99_ms"] == pytest.approx(1, rel=0.011)
        joined = history.rows(0, clock.time(), step_minutes=5)
        assert sum(int(row["minute_requests"]) for row in joined) == sum(range(10))
        for row in joined:
            for name in ("request_rate_rpm", "error_rate_pct", "latency_p95_ms", "latency_max_ms"):
                assert row[f"minute_{name}"] == row[name]

    def test_they_know_statuses(
        self, monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path
    ) -> None:
        path = tmp_path / "metrics.db"
        history = SQLiteHistory(monitor, path, start=False)
        for minute in range(10):
            for status in (200, 404, 500):
                for _ in range(minute):
                    monitor.record_request(1.0, status=status)
            clock.advance(60)
            history.check()

        def told(rows: list[SnapshotDict]) -> list[tuple[object, ...]]:
            return [tuple(row.get(name) for name in STATUS_FIELDS) for row in rows]

        rows = history.rows(0, clock.time())
        assert told(rows) == [(0, n, 0, n, n) for n in range(10)]
        assert told(monitor.get_metrics_history())[-10:] == told(rows)
        joined = told(history.rows(0, clock.time(), step_minutes=5))
        assert [sum(column) for column in zip(*joined, strict=True)] == [0, 45, 0, 45, 45]  # type: ignore[arg-type]
        # Rows of the time before they were kept do not say.
        columns = [*STATUS_FIELDS, *(f"answers_{number}xx" for number in (1, 3, 4, 5))]
        with closing(sqlite3.connect(path)) as database, database:
            for column in columns:
                database.execute(f"ALTER TABLE minutes DROP COLUMN {column}")
        monitor.record_request(1.0, status=404)
        clock.advance(60)
        assert history.check()
        rows = history.rows(0, clock.time())
        assert told(rows) == [(None,) * 5] * 11
        monitor.record_request(1.0, status=404)
        clock.advance(60)
        assert history.check()
        assert told(history.rows(0, clock.time()))[-1] == (0, 0, 0, 1, 0)
        assert told(history.rows(0, clock.time(), 1000)) == [(0, 45, 0, 47, 45)]
        assert told(history.rows(clock.time() - 130, clock.time(), 1000)) == [(None,) * 5]

    def test_after_a_reset(
        self, monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path
    ) -> None:
        history = SQLiteHistory(monitor, tmp_path / "metrics.db", start=False)
        for _ in range(3):
            monitor.record_request(1.0)
            clock.advance(60)
            history.check()
        monitor.reset_statistics()
        monitor.record_request(1.0)
        clock.advance(60)
        history.check()
        assert own(history.rows(0, clock.time()), "requests") == [1]


def test_exports_have_them(monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path) -> None:
    monitor.save_snapshot_to_history()
    monitor.record_request(10.0)
    clock.advance(60)
    monitor.export_to_csv(tmp_path / "metrics.csv")
    header, by_hand, minute = (tmp_path / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert names[-len(MINUTE_FIELDS) :] == list(MINUTE_FIELDS)
    assert by_hand.endswith("," * len(MINUTE_FIELDS))
    assert dict(zip(names, minute.split(","), strict=True))["minute_requests"] == "1"
