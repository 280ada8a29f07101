"""What nobody answers for any more says nothing in `/health`; who only imports takes no part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kits.servers import wait_until
from kits.surroundings import Stage, Told


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Settings with which all processes are one server."""
    return {"METRICSMW_DIR": str(tmp_path / "d")}


EXPORT = """
from metricsmw.exporting import ScheduledExport
held.append(ScheduledExport(monitor(), {folder!r}, every_minutes=1, start={start}))
"""


def export(worker: Told, folder: Path, start: bool | None) -> None:
    """Have the worker export each minute into that folder."""
    worker.do("run", EXPORT.format(folder=str(folder), start=start))


def test_an_export_that_failed_and_was_taken_out(
    stage: Stage, env: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "exports"
    failing, other = (stage.start(**env) for _ in range(2))
    for worker in (failing, other):
        worker.do("record")
    export(failing, folder, start=False)
    folder.rmdir()
    folder.touch()  # nothing can be written there
    failing.do("run", "held[-1].check()")
    wait_until(lambda: other.do("health")["status"] == "degraded", "the failure in its health")
    failing.kill()  # as its app is reloaded without the export
    assert other.do("health")["status"] == "healthy"


def test_a_shell_does_nothing_in_the_servers_place(
    stage: Stage, env: dict[str, str], tmp_path: Path
) -> None:
    server, shell = (stage.start(**env) for _ in range(2))
    for process in (shell, server):
        # A process that may work does so at once: nothing is waited for but what it asks for.
        process.do("run", "import metricsmw.engine.workers.job as job; job.GRACE_SECONDS = 0.0")
        export(process, tmp_path / "exports", start=None)
    shell.do("read")
    leads = "held[-1]._job._task._interval = 0; answer = held[-1]._job._task.is_due()"
    assert shell.do("run", leads) is False
    server.do("record")
    assert server.do("run", leads) is True
    assert shell.do("run", leads) is False
    shell.do("record")
    assert shell.do("run", leads) is True
    assert shell.do("health")["status"] == "healthy"
