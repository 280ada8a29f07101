"""Files in use look so, and hold what cleaners respect."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
from kits.surroundings import Stage

DAY = 86400.0


@pytest.fixture
def stage(tmp_path: Path):
    with Stage(tmp_path) as stage:
        yield stage


def all_of(directory: Path) -> list[Path]:
    return [directory, *directory.iterdir()]


def test_nothing_that_is_made_looks_old(stage: Stage, tmp_path: Path) -> None:
    server = stage.start(METRICSMW_DIR=str(tmp_path / "d"))
    server.do("record")
    server.do("reset")
    directory = Path(server.do("directory"))
    for path in all_of(directory):
        assert path.stat().st_mtime > time.time() - DAY, path.name


USE_ALL = """
from metricsmw.alerts import MetricsAlerter
from metricsmw.engine.workers.token import server_token
monitor().get_workers()
server_token(monitor().shared_directory)
held.append(MetricsAlerter(monitor(), notify=[], start=False))
held[0].check()
"""
LOOK_LATER = """
import time
monitor().membership.group.renew(time.monotonic() + 3600)
"""


def test_nothing_that_is_used_looks_old(stage: Stage, tmp_path: Path) -> None:
    """Neither what was written once, nor what a dead worker has counted."""
    server = stage.start(METRICSMW_DIR=str(tmp_path / "d"))
    server.do("record")
    server.do("run", USE_ALL)
    server.do("reset")
    dead = server.fork()
    dead.do("record", 3)
    dead.kill()
    directory = Path(server.do("directory"))
    old = time.time() - 30 * DAY
    for path in all_of(directory):
        os.utime(path, (old, old))
    server.do("run", LOOK_LATER)
    names = {path.name for path in all_of(directory) if path.stat().st_mtime > time.time() - DAY}
    assert names == {path.name for path in all_of(directory)}
    assert {"worker-0", "worker-1", "token", "once-alerts.json", "events"} <= names
    assert server.requests == 3


def test_a_reset_stays_one_when_its_file_is_renewed(stage: Stage, tmp_path: Path) -> None:
    server = stage.start(METRICSMW_DIR=str(tmp_path / "d"))
    server.do("record", 2)
    server.do("reset")
    os.utime(Path(server.do("directory")) / "reset")
    server.do("record", 1)
    assert server.requests == 1


def test_the_directory_is_locked_as_systemd_asks(stage: Stage, tmp_path: Path) -> None:
    server = stage.start(METRICSMW_DIR=str(tmp_path / "d"))
    server.do("record")
    descriptor = os.open(server.do("directory"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server.kill()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
