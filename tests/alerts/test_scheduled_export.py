"""Scheduled exports: when, what, how many, by whom, and what a full disk costs."""

from __future__ import annotations

import csv
import json
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kits.crew import SharedClock, crew
from kits.servers import wait_until

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.exporting import ScheduledExport
from metricsmw.formats import csv_text

Make = Callable[..., ScheduledExport]


@pytest.fixture
def clock() -> ManualClock:
    """A clock that starts at noon, local time."""
    return ManualClock(wall=datetime(2026, 1, 25, 12, 0).timestamp())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exports"


@pytest.fixture
def export(monitor: MetricsMonitor, folder: Path) -> Iterator[Make]:
    made: list[ScheduledExport] = []

    def make(**settings: Any) -> ScheduledExport:
        made.append(ScheduledExport(monitor, folder, **{"start": False} | settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def to(clock: ManualClock, *moment: int) -> None:
    """Move the clock on to that local time."""
    clock.advance(datetime(*moment).timestamp() - clock.time())  # type: ignore[arg-type]


def test_daily_at_midnight(
    export: Make, folder: Path, clock: ManualClock, monitor: MetricsMonitor
) -> None:
    one = export()
    assert one.check() == []
    monitor.record_request(10.0, is_error=True)
    to(clock, 2026, 1, 25, 23, 59)
    assert one.check() == []
    to(clock, 2026, 1, 26, 0, 0)
    written = [path.name for path in one.check()]
    assert written == ["metrics_20260126.json", "metrics_history_20260126.csv"]
    assert files(folder) == written
    document = json.loads((folder / written[0]).read_text())
    assert document["totals"]["total_errors"] == 1
    assert document["history"] == monitor.get_metrics_history()
    with (folder / written[1]).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 60
    assert one.check() == []
    to(clock, 2026, 1, 26, 23, 59)
    assert one.check() == []
    to(clock, 2026, 1, 27, 0, 3)
    assert len(one.check()) == 2


def test_every_so_many_minutes(export: Make, folder: Path, clock: ManualClock) -> None:
    one = export(every_minutes=15, formats=["json"])
    for _ in range(100):
        one.check()
        clock.advance(60)
    expected = [f"metrics_20260125_{time}.json" for time in ("1215", "1230", "1245", "1300")]
    assert files(folder)[:4] == expected
    assert len(files(folder)) == 6


def test_the_newest_are_kept(export: Make, folder: Path, clock: ManualClock) -> None:
    folder.mkdir()
    others = ["metrics.json", "metrics_20200101.txt", "metrics_20200101_101010.json", "a.csv"]
    for name in [*others, "metrics_20200101.json"]:
        (folder / name).touch()
    one = export(keep=3, at="06:30")
    one.check()
    for day in range(26, 32):
        to(clock, 2026, 1, day, 7, 0)
        one.check()
    days = ["20260129", "20260130", "20260131"]
    kept = [f"metrics_{d}.json" for d in days] + [f"metrics_history_{d}.csv" for d in days]
    assert files(folder) == sorted(others + kept)


def test_what_was_due_while_it_was_down_is_made_up_for_once(
    export: Make, folder: Path, clock: ManualClock
) -> None:
    before = export()
    before.check()
    before.stop()
    to(clock, 2026, 1, 28, 9, 0)
    one = export(formats=["json"])
    one.check()
    one.check()
    assert files(folder) == ["metrics_20260128.json"]


def test_a_jump_of_the_clock_stops_nothing(export: Make, folder: Path, clock: ManualClock) -> None:
    one = export(formats=["json"], keep=1)
    one.check()
    clock.wall += 86_400 * 365
    assert len(one.check()) == 1
    clock.wall -= 86_400 * 365
    assert one.check() == []
    to(clock, 2026, 1, 26, 0, 1)
    assert [path.name for path in one.check()] == ["metrics_20260126.json"]
    assert files(folder) == ["metrics_20260126.json", "metrics_20270125.json"]


def test_a_full_disk_loses_nothing_and_is_told(
    export: Make,
    folder: Path,
    clock: ManualClock,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = export(keep=1)
    one.check()
    assert monitor.get_health()["components"]["scheduled_export"] == "operational"
    to(clock, 2026, 1, 26, 0, 1)
    one.check()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    to(clock, 2026, 1, 27, 0, 1)
    with monkeypatch.context() as full:

        def fail(fd: int) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(os, "fsync", fail)
        for _ in range(3):
            assert one.check() == []
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        health = monitor.get_health()
        assert health["status"] == "degraded"
        assert health["components"]["scheduled_export"] == "failing: No space left on device"
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
    one.check()
    assert files(folder) == ["metrics_20260127.json", "metrics_history_20260127.csv"]
    assert monitor.get_health()["status"] == "healthy"


def test_a_disk_that_fills_up_between_two_files(
    export: Make, folder: Path, clock: ManualClock, monitor: MetricsMonitor
) -> None:
    one = export(keep=1, formats=["csv", "json"])
    one.check()
    days = ["20260126", "20260127"]
    old, new = ([f"metrics_{d}.json", f"metrics_history_{d}.csv"] for d in days)
    to(clock, 2026, 1, 26, 0, 0)
    one.check()
    to(clock, 2026, 1, 27, 0, 0)
    table = len(csv_text(monitor.get_metrics_history(60)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (table, limits[1]))
    try:
        for _ in range(2):
            assert one.check() == []
            assert files(folder) == sorted([*old, new[1]])
            assert not [name for name in os.listdir(folder) if name.startswith(".metrics_")]
        assert health(monitor) == "failing: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(one.check()) == 2
    assert files(folder) == new
    assert health(monitor) == "operational"


def test_who_stops_tells_of_no_failure_any_more(
    export: Make, folder: Path, monitor: MetricsMonitor
) -> None:
    one = export()
    folder.rmdir()
    one.check()
    assert health(monitor).startswith("failing: ")
    one.stop()
    assert "scheduled_export" not in monitor.get_health()["components"]
    assert monitor.get_health()["status"] == "healthy"


def test_it_exports_by_itself(folder: Path, monitor: MetricsMonitor, clock: ManualClock) -> None:
    monitor.record_request(10.0)
    one = ScheduledExport(monitor, folder, formats=["json"], check_interval=0.01)
    try:
        wait_until(lambda: os.listdir(folder), "the first look")
        to(clock, 2026, 1, 26, 0, 0)
        wait_until(lambda: files(folder), "the export")
    finally:
        one.stop()
    assert files(folder) == ["metrics_20260126.json"]


def test_a_daily_export_and_one_by_minutes_share_a_folder(
    export: Make, folder: Path, clock: ManualClock
) -> None:
    daily = export(keep=2, formats=["json"])
    often = export(keep=3, formats=["json"], every_minutes=15, name="often")
    for _ in range(4 * 24 * 4 + 1):
        daily.check()
        often.check()
        clock.advance(900)
    assert files(folder) == [
        "metrics_20260128.json",
        "metrics_20260129.json",
        "metrics_20260129_1130.json",
        "metrics_20260129_1145.json",
        "metrics_20260129_1200.json",
    ]


def test_a_folder_that_cannot_be_is_an_error_at_the_start(export: Make, folder: Path) -> None:
    folder.touch()
    with pytest.raises(FileExistsError):
        export()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"at": "24:00"}, ValueError),
        ({"at": "7:00"}, ValueError),
        ({"at": None}, ValueError),
        ({"keep": 0}, ValueError),
        ({"keep": 1.5}, TypeError),
        ({"every_minutes": 0}, ValueError),
        ({"every_minutes": 1441}, ValueError),
        ({"formats": []}, ValueError),
        ({"formats": ["xml"]}, ValueError),
        ({"formats": "json"}, ValueError),
    ],
)
def test_bad_settings_are_an_error_at_the_start(
    export: Make, folder: Path, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        export(**settings)
    assert not folder.exists()


EXPORTS: list[ScheduledExport] = []  # of a worker, in its own process


def equip(monitor: MetricsMonitor, folder: Path) -> None:
    EXPORTS[:] = [ScheduledExport(monitor, folder, formats=["json"], start=False)]


def look(monitor: MetricsMonitor) -> int:
    return len(EXPORTS[0].check())


def record(monitor: MetricsMonitor) -> None:
    monitor.record_request(10.0)


def health(monitor: MetricsMonitor) -> str:
    return monitor.get_health()["components"]["scheduled_export"]


def test_one_worker_writes_for_all_and_another_when_it_dies(folder: Path) -> None:
    clock = SharedClock(wall=datetime(2026, 1, 25, 12, 0).timestamp())
    with crew(4, clock) as workers:
        workers.all(equip, folder)
        workers.all(record)
        first = workers.workers[0]
        first.do(look)
        for day in (1, 2):
            clock.advance(86_400)
            assert sum(workers.all(look)) == 1, f"day {day}"
            assert workers.all(health) == ["operational"] * (5 - day)
            if day == 1:
                first.kill()
    assert len(files(folder)) == 2
    documents = [json.loads((folder / name).read_text()) for name in files(folder)]
    assert [document["totals"]["total_requests"] for document in documents] == [4, 4]


def die_at_the_disk(monitor: MetricsMonitor) -> None:
    os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    look(monitor)


def test_what_a_worker_left_that_was_killed_as_it_wrote_is_removed(folder: Path) -> None:
    clock = SharedClock(wall=datetime(2026, 1, 25, 12, 0).timestamp())
    with crew(2, clock) as workers:
        workers.all(equip, folder)
        first, second = workers.workers
        first.do(look)
        clock.advance(86_400)
        first.begin(die_at_the_disk)
        assert not first.survives()
        (draft,) = [name for name in os.listdir(folder) if name.startswith(".metrics_")]
        (folder / f"{draft}.of-another").touch()
        assert second.do(look) == 1
        assert draft not in os.listdir(folder)
        assert f"{draft}.of-another" in os.listdir(folder)
