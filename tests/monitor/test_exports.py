"""Exports: what is in the files, and that nobody ever reads half of one."""

from __future__ import annotations

import csv
import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.snapshot import HISTORY_FIELDS

EXPORTS = ["export_to_json", "export_to_csv"]


@pytest.fixture
def filled(monitor: MetricsMonitor, clock: ManualClock) -> MetricsMonitor:
    """A monitor with a user, two routes and three minutes of history."""
    for minute in range(3):
        monitor.record_request(10.0, user_id="ada", method="GET", route="/", status=200)
        monitor.record_request(90.0 * (minute + 1), method="GET", route="/bad", status=500)
        clock.advance(60)
    return monitor


def test_json_has_the_statistics_and_the_history(filled: MetricsMonitor, tmp_path: Path) -> None:
    filled.export_to_json(tmp_path / "metrics.json")
    document = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(document) == ["current", "totals", "configuration", "history"]
    assert document["history"] == filled.get_metrics_history()
    assert [entry["total_requests"] for entry in document["history"]] == [2, 4, 6]
    statistics = filled.get_statistics()
    assert document["totals"] == statistics["totals"]
    assert document["configuration"] == statistics["configuration"]
    assert list(document["current"]) == list(statistics["current"])
    assert document["current"]["total_errors"] == 3


def test_csv_has_a_row_a_minute(filled: MetricsMonitor, tmp_path: Path) -> None:
    filled.export_to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    history = filled.get_metrics_history()
    assert header == list(HISTORY_FIELDS)
    assert rows == [[str(value) for value in entry.values()] for entry in history]


def test_csv_without_history_is_the_header(monitor: MetricsMonitor, tmp_path: Path) -> None:
    monitor.export_to_csv(tmp_path / "history.csv")
    text = (tmp_path / "history.csv").read_text(encoding="utf-8")
    assert text.splitlines() == [",".join(HISTORY_FIELDS)]


@pytest.mark.parametrize("export", EXPORTS)
def test_a_path_may_be_text(
    filled: MetricsMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: str
) -> None:
    monkeypatch.chdir(tmp_path)
    getattr(filled, export)("here")
    assert (tmp_path / "here").stat().st_size > 0
    getattr(filled, export)(str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes()[:40] == (tmp_path / "here").read_bytes()[:40]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("export", EXPORTS)
def test_a_new_file_is_as_readable_as_any_other(
    filled: MetricsMonitor, tmp_path: Path, export: str, umask: int
) -> None:
    plain = tmp_path / "plain"
    before = os.umask(umask)
    try:
        plain.write_text("")
        getattr(filled, export)(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("export", EXPORTS)
def test_a_missing_directory_is_an_error_that_names_it(
    filled: MetricsMonitor, tmp_path: Path, export: str
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/out'"):
        getattr(filled, export)(tmp_path / "nowhere" / "out")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As if the disk were full: files may grow to so many bytes and no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("export", EXPORTS)
def test_a_failure_leaves_the_old_file_and_no_rubbish(
    filled: MetricsMonitor, tmp_path: Path, export: str
) -> None:
    target = tmp_path / "out"
    target.write_text("the old one")
    with no_file_above(40), pytest.raises(OSError, match=r"(?i)file too large"):
        getattr(filled, export)(target)
    assert target.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("export", EXPORTS)
def test_a_reader_never_sees_half_a_file(
    filled: MetricsMonitor, tmp_path: Path, export: str
) -> None:
    target = tmp_path / "out"
    getattr(filled, export)(target)
    writing = threading.Event()
    writing.set()
    seen: set[bytes] = set()

    def read() -> None:
        while writing.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    whole = {target.read_bytes()}
    for index in range(300):
        if index % 20 == 0:
            filled.save_snapshot_to_history()
        getattr(filled, export)(target)
        whole.add(target.read_bytes())
    writing.clear()
    reader.join()
    assert seen
    assert seen <= whole
    assert os.listdir(tmp_path) == ["out"]


def test_an_export_at_the_same_time_as_another(filled: MetricsMonitor, tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    faults: list[Exception] = []

    def export() -> None:
        try:
            for _ in range(50):
                filled.export_to_json(target)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=export) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert json.loads(target.read_text())["totals"]["total_requests"] == 6
    assert os.listdir(tmp_path) == ["metrics.json"]
