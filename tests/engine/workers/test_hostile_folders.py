"""Folders in which somebody else may write: where files are, who can enter, what is removed."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits.damage import NOBODY, ROOT

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.tokens import own_token
from metricsmw.alerts import MetricsAlerter
from metricsmw.clock import ManualClock
from metricsmw.engine import files
from metricsmw.engine.directory import make_directory
from metricsmw.engine.workers import directories
from metricsmw.exporters.server import exposition
from metricsmw.exporting import ScheduledExport

as_root = pytest.mark.skipif(not ROOT, reason="only root can act as another user")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that METRICSMW_DIR names."""
    found = tmp_path / "base"
    found.mkdir(mode=0o700)
    monkeypatch.setenv("METRICSMW_DIR", str(found))
    return found


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        yield monitor


@pytest.fixture
def umask_0() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def do_as_nobody(*command: str) -> int:
    """Run a command as another user; its exit code."""
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], check=False
    ).returncode


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def used(monitor: MetricsMonitor) -> tuple[str, str]:
    """Record and read; mode and status."""
    monitor.record_request(10.0)
    assert monitor.total_requests == 1
    health = monitor.get_health()
    return health["mode"], health["status"]


# --- A folder that others may write to ------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o773, 0o757])
def test_a_base_that_others_may_rename_in(base: Path, monitor: MetricsMonitor, mode: int) -> None:
    base.chmod(mode)
    assert used(monitor) == ("private", "degraded")
    assert "sticky" in monitor.get_health()["mode_reason"]
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("mode", [0o1777, 0o755, 0o700])
def test_a_base_in_which_only_owners_rename(base: Path, monitor: MetricsMonitor, mode: int) -> None:
    base.chmod(mode)
    assert used(monitor) == ("shared", "healthy")


@pytest.mark.parametrize("mode", [0o777, 0o2777, 0o703])
def test_a_base_in_a_folder_that_others_may_rename_in(
    base: Path, tmp_path: Path, monitor: MetricsMonitor, mode: int
) -> None:
    tmp_path.chmod(mode)
    assert used(monitor) == ("private", "degraded")
    assert list(base.iterdir()) == []


@as_root
@pytest.mark.parametrize(("group", "found"), [(0, "shared"), (NOBODY, "private")])
def test_a_base_that_a_group_may_write_to(
    base: Path, monitor: MetricsMonitor, group: int, found: str
) -> None:
    """The user's own group is nobody else's."""
    os.chown(base, 0, group)
    base.chmod(0o770)
    assert used(monitor)[0] == found


@as_root
def test_a_base_of_somebody_else(base: Path, monitor: MetricsMonitor) -> None:
    base.chmod(0o1777)
    os.chown(base, NOBODY, NOBODY)
    assert used(monitor) == ("private", "degraded")


def test_a_link_in_the_place_of_the_directory(
    base: Path, tmp_path: Path, monitor: MetricsMonitor
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "worker-0").write_text("mine")
    (base / f"metricsmw-{os.geteuid()}").symlink_to(home)
    assert used(monitor) == ("private", "degraded")
    assert (home / "worker-0").read_text() == "mine"
    assert len(list(home.iterdir())) == 1


def test_a_directory_that_is_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    """The attack that deleted a home: after the check, before the use."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "worker-0").write_text("mine")
    directory = make_directory(tmp_path / "metricsmw")
    for name in ("worker-0", "reset"):
        (directory.path / name).touch()
    directory.path.rename(tmp_path / "away")
    directory.path.symlink_to(home)
    directories.clear(directory)
    directory.replace("reset", b"new")
    assert (home / "worker-0").read_text() == "mine"
    assert sorted(path.name for path in home.iterdir()) == ["worker-0"]
    assert sorted(path.name for path in (tmp_path / "away").iterdir()) == ["reset"]
    directory.look()
    assert not directory.is_in_place


def test_only_names_of_ours_are_cleared(base: Path, monitor: MetricsMonitor) -> None:
    directory = base / f"metricsmw-{os.geteuid()}"
    directory.mkdir(mode=0o700)
    for name in ("thesis.tex", "workers", "resets", ".thesis.tex.0123456789abcdef"):
        (directory / name).write_text("mine")
    (directory / "worker-8").mkdir()
    (directory / "photos").mkdir()
    (directory / "photos" / "worker-1").write_text("mine")
    left = ("worker-7", "once-alerts.json", "once-alerts.lock", "started-12.500000000", "new-reset")
    for name in (*left, ".once-alerts.json.0123456789abcdef", "history-30", "sent-otlp.json"):
        (directory / name).write_text("old")
    assert used(monitor) == ("shared", "healthy")
    assert sorted(path.name for path in directory.iterdir()) == [
        *(".thesis.tex.0123456789abcdef", "events", "history-60", "lock", "photos", "resets"),
        *("thesis.tex", "worker-0", "workers"),
    ]
    assert (directory / "photos" / "worker-1").read_text() == "mine"


def test_all_that_workers_write_is_cleared(base: Path, tmp_path: Path, clock: ManualClock) -> None:
    """The list of our names is complete: nothing is left by a server that has ended."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        monitor.record_request(10.0, user_id="ann", method="GET", route="/", status=200)
        monitor.reset_statistics()
        own_token(monitor)
        exposition(monitor)
        export = ScheduledExport(monitor, tmp_path / "exports", every_minutes=1, start=False)
        alerter = MetricsAlerter(monitor, rules=["workers > 9"], start=False)
        clock.advance(60)
        export.check()
        alerter.check()
        assert monitor.directory is not None
        found = {path.name for path in monitor.directory.iterdir()}
        assert {"token", "reset", "once-alerts.json", "worker-0", "history-60", "events"} <= found
        assert any(name.startswith("started-") for name in found)
        assert {name for name in found if not directories.OUR_NAMES.fullmatch(name)} == set()


@as_root
def test_a_foreign_directory_of_our_name_in_the_first_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: MetricsMonitor
) -> None:
    """Any local user can make one: the second place is used, and the reason is told."""
    for folder in reversed((tmp_path, *tmp_path.parents)):
        if folder.stat().st_uid == 0 and folder != Path("/") and str(folder).count("/") > 1:
            folder.chmod(folder.stat().st_mode | 0o011)
    first, second = tmp_path / "shm", tmp_path / "tmp"
    for folder in (first, second):
        folder.mkdir()
        folder.chmod(0o1777)
    monkeypatch.delenv("METRICSMW_DIR")
    monkeypatch.setattr(directories, "bases", lambda: [first, second])
    assert do_as_nobody("mkdir", "-m", "777", str(first / "metricsmw-0")) == 0
    assert used(monitor) == ("shared", "healthy")
    assert "second place" in monitor.get_health()["mode_reason"]
    assert list((first / "metricsmw-0").iterdir()) == []
    # Nobody may enter the one that is used, or remove it.
    (mine,) = second.iterdir()
    for command in (("ls", str(mine)), ("mv", str(mine), str(first)), ("rm", "-r", str(mine))):
        assert do_as_nobody(*command) != 0


# --- Modes ----------------------------------------------------------------------------------------


def test_modes_whatever_the_umask_is(
    base: Path, tmp_path: Path, umask_0: None, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    base.rmdir()
    monkeypatch.setenv("METRICSMW_DIR", str(base / "made" / "too"))
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        assert used(monitor) == ("shared", "healthy")
        monitor.reset_statistics()
        ScheduledExport(monitor, tmp_path / "exports", every_minutes=1, start=False).check()
        found = [base, *base.rglob("*")]
        assert {mode(path) for path in found if path.is_dir()} == {0o700}
        assert {mode(path) for path in found if path.is_file()} == {0o600}
        assert any(path.name == "reset" for path in found)
        assert any(path.name == "once-scheduled_export.lock" for path in found)
        monitor.export_to_json(tmp_path / "export")
    # Exports are for others to read, as the umask has it; nobody else may write there.
    assert mode(tmp_path / "export") == 0o664
    assert mode(tmp_path / "exports") == 0o775


def test_an_export_keeps_the_mode_that_its_user_gave_it(
    monitor: MetricsMonitor, tmp_path: Path, umask_0: None
) -> None:
    target = tmp_path / "export"
    target.touch(mode=0o640)
    monitor.export_to_csv(target)
    assert mode(target) == 0o640


@as_root
def test_an_export_takes_no_mode_from_somebody_else(
    monitor: MetricsMonitor, tmp_path: Path, umask_0: None
) -> None:
    target = tmp_path / "export"
    target.touch(mode=0o666)
    os.chown(target, NOBODY, NOBODY)
    monitor.export_to_csv(target)
    assert (mode(target), target.stat().st_uid) == (0o664, 0)


# --- Exports --------------------------------------------------------------------------------------


def test_no_link_under_a_drafts_name_is_followed(
    monitor: MetricsMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".export.guessed").symlink_to(victim)
    monkeypatch.setattr(files, "draft_name", lambda name: f".{name}.guessed")
    with pytest.raises(FileExistsError):
        monitor.export_to_json(tmp_path / "export")
    monkeypatch.undo()
    monitor.export_to_json(tmp_path / "export")
    assert victim.read_text() == "mine"


def test_a_drafts_name_cannot_be_guessed() -> None:
    names = {files.draft_name("export") for _ in range(100)}
    assert len(names) == 100


def test_a_link_in_the_place_of_an_export_is_replaced(
    monitor: MetricsMonitor, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o666)
    (tmp_path / "export").symlink_to(victim)
    monitor.export_to_json(tmp_path / "export")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "export").is_symlink()
    assert mode(tmp_path / "export") & 0o002 == 0


# --- FIFOs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("worker-0", "worker-1", "reset", "history-60", "once-scheduled_export.json", "lock"),
        *("once-scheduled_export.lock", "once-scheduled_export.turn", "once-alerts.json"),
    ],
)
def test_a_fifo_stops_nothing(
    base: Path, tmp_path: Path, monitor: MetricsMonitor, name: str
) -> None:
    monitor.record_request(10.0)
    directory = monitor.directory
    assert directory is not None
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    export = ScheduledExport(monitor, tmp_path / "exports", every_minutes=1, start=False)
    for _ in range(3):
        monitor.record_request(10.0)
        monitor.get_health()
        monitor.get_statistics()
        monitor.get_metrics_history()
        try:
            export.check()
            monitor.reset_statistics()
        except OSError:
            pass  # said, and not waited for


@pytest.mark.parametrize("name", ["token", "started"])
def test_a_fifo_stops_no_token_and_no_exposition(
    monitor: MetricsMonitor, clock: ManualClock, name: str
) -> None:
    clock.advance(random.random())  # a server of its own, also to what is remembered of others
    exposition(monitor)
    directory = monitor.directory
    assert directory is not None
    (started,) = directory.glob("started-*")
    started.unlink()
    os.mkfifo(directory / (started.name if name == "started" else name))
    with MetricsMonitor(shared=True, clock=clock) as other:
        assert exposition(other).families
        assert own_token(other)


def test_a_fifo_in_the_place_of_a_mark(
    monitor: MetricsMonitor, tmp_path: Path, clock: ManualClock
) -> None:
    export = ScheduledExport(monitor, tmp_path, every_minutes=1, start=False)
    os.mkfifo(tmp_path / ".metricsmw-exported-minutes")
    for _ in range(2):
        export.check()
        clock.advance(60)
    assert monitor.get_health()["components"]["scheduled_export"].startswith("failing")
