"""Importing is not serving: who only imports the app does none of the server's work."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from kits.servers import APPS_ROOT, free_port, serve, wait_until

# Longer than a process of which nobody knows yet what it will do was ever waited for.
IDLE = "import time; time.sleep(12)"

IMPORTERS = {
    "a shell": f"from apps.importing import *; {IDLE}",
    "a shell that reads": f"""
from apps.importing import *
monitor.get_current_snapshot(), monitor.get_metrics_history(), monitor.get_health()
alerter.get_alerts(), history.rows(0, 1e10)
{IDLE}
""",
    "a task queue's threads": f"""
from concurrent.futures import ThreadPoolExecutor
from apps.importing import monitor
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda n: monitor.get_active_users() + n, range(20)))
    {IDLE}
""",
    "a task queue's process": f"""
import os
from apps.importing import monitor
if os.fork() == 0:
    {IDLE}
    os._exit(0)
os.wait()
""",
    "a scheduler": """
import sched
from apps.importing import monitor
timer = sched.scheduler()
for second in range(12):
    timer.enter(second, 0, lambda: monitor.total_requests)
timer.run()
""",
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "letters").touch()
    return {
        "LETTERS": str(tmp_path / "letters"),
        "EXPORTS": str(tmp_path / "exports"),
        "HISTORY": str(tmp_path / "metrics.db"),
    }


@contextmanager
def started(env: dict[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("METRICSMW_")}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=APPS_ROOT,
        env={**own, "PYTHONPATH": str(APPS_ROOT), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def writers(env: dict[str, str]) -> set[str]:
    """The servers that have written into the lasting history."""
    if not os.path.exists(env["HISTORY"]):
        return set()
    with closing(sqlite3.connect(env["HISTORY"])) as database:
        return {server for (server,) in database.execute("SELECT DISTINCT server FROM minutes")}


def test_who_only_imports_the_app_does_nothing(env: dict[str, str]) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(started(env, "-c", code)) for code in IMPORTERS.values()]
        for name, process in zip(IMPORTERS, processes, strict=True):
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, f"{name}: {output}"
    assert Path(env["LETTERS"]).read_text() == ""
    assert os.listdir(env["EXPORTS"]) == []
    assert not os.path.exists(env["HISTORY"])


def test_beside_them_the_server_does_it(env: dict[str, str]) -> None:
    with (
        started(env, "-c", IMPORTERS["a shell that reads"]) as shell,
        serve("gunicorn", "apps.importing:app", workers=2, env=env) as server,
    ):
        wait_until(lambda: Path(env["LETTERS"]).read_text(), "an alert")
        shell.communicate(timeout=120)
        tellers = set(map(int, Path(env["LETTERS"]).read_text().split()))
        assert tellers <= set(server.worker_pids())
        answer = server.get("/api/metrics/health")
        components = answer.json()["components"]
        assert (answer.status, components["lasting_history"]) == (200, "operational")
        assert len(writers(env)) == 1


def test_the_parent_of_a_reloader_leaves_it_to_its_child(env: dict[str, str]) -> None:
    port = free_port()
    code = f"from apps.importing import app; app.run(port={port}, use_reloader=True)"
    file = Path(env["LETTERS"]).with_name("reloading.py")
    file.write_text(f"import os\nprint(os.getpid(), flush=True)\n{code}\n")
    with started(env, str(file)) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) == parent.pid
        pids = iter(parent.stdout.readline, "")
        child = next(int(line) for line in pids if line.strip().isdecimal())
        assert child != parent.pid

        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/metrics/health"):
                    return True
            except OSError:  # not yet
                return False

        try:
            wait_until(ask, "the child's answer")
            wait_until(lambda: Path(env["LETTERS"]).read_text(), "an alert")
            assert set(map(int, Path(env["LETTERS"]).read_text().split())) == {child}
        finally:
            os.kill(child, 9)


ASKED_BY_NAME = """
from apps.importing import *
from metricsmw.alerts import MetricsAlerter
told = []
asked = MetricsAlerter(monitor, 0.1, rules=["total_requests < 1"], notify=told.append, name="asked",
                       start=True)
monitor.get_current_snapshot()
while not told:
    time.sleep(0.01)
print(told[0].state)
"""


def test_a_program_may_ask_for_it_by_name(env: dict[str, str]) -> None:
    with started(env, "-c", f"import time{ASKED_BY_NAME}") as process:
        output, _ = process.communicate(timeout=120)
        assert output == "firing\n"
    assert Path(env["LETTERS"]).read_text() == ""
