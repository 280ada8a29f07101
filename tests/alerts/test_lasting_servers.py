"""The lasting history on real servers: one worker writes, whoever dies or locks the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from kits.servers import Server, serve, wait_until

WSGI, ASGI = "apps.keeping:app", "apps.keeping:asgi_app"
SERVERS: dict[str, tuple[str, str, list[str]]] = {
    "gunicorn": ("gunicorn", WSGI, ["--worker-class", "gthread", "--threads", "2"]),
    "gunicorn-preload": ("gunicorn", WSGI, ["--preload"]),
    "gunicorn-gevent": ("gunicorn", WSGI, ["--worker-class", "gevent"]),
    "uvicorn": ("uvicorn", ASGI, []),
}


def totals(path: Path) -> list[int]:
    """What was counted at each minute; all by the same server."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'minutes'").fetchone():
            return []
        rows = database.execute("SELECT total_requests, server FROM minutes ORDER BY id").fetchall()
    assert len({server for _, server in rows}) <= 1
    return [int(total) for total, _ in rows]


def ask(server: Server, times: int) -> None:
    for _ in range(times):
        assert server.get("/hello").status == 200


def counted(server: Server) -> int:
    return int(server.get("/api/metrics/current").json()["metrics"]["total_requests"])


def all_is_kept(server: Server, path: Path) -> None:
    wait_until(lambda: totals(path)[-1:] == [counted(server)], "a row with all requests")


def problem(server: Server) -> str:
    return str(server.get("/api/metrics/health").json()["components"]["lasting_history"])


@pytest.mark.parametrize(("name", "app", "args"), SERVERS.values(), ids=SERVERS)
def test_one_worker_keeps_what_all_have_counted(
    tmp_path: Path, name: str, app: str, args: Sequence[str]
) -> None:
    path = tmp_path / "metrics.db"
    with serve(name, app, workers=2, args=args, env={"HISTORY": str(path)}) as server:
        ask(server, 10)
        all_is_kept(server, path)

        def leader() -> int | None:
            answer = server.get("/leader").json()
            return answer["pid"] if answer["leads"] else None

        os.kill(wait_until(leader, "the worker that writes") or 0, signal.SIGKILL)
        wait_until(lambda: len(server.worker_pids()) == 2, "a new worker")
        ask(server, 10)
        all_is_kept(server, path)

        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("PRAGMA locking_mode = EXCLUSIVE")
            holder.execute("BEGIN EXCLUSIVE")
            wait_until(lambda: problem(server) == "failing: database is locked", "the report")
            ask(server, 20)
            assert server.get("/api/metrics/history?minutes=5").status == 200
        wait_until(lambda: problem(server) == "operational", "an end of it")
        all_is_kept(server, path)
        found = totals(path)
        assert found == sorted(found)
        shown = server.get("/api/metrics/history?minutes=5").json()["history"]
        assert shown[-1]["total_requests"] <= counted(server)


# One greenlet writes into a locked file, and another one, which comes to its turn only if the first
# waits as greenlets do, ends the lock.
GREENLETS = """
from gevent import monkey
monkey.patch_all()

import sqlite3, sys
import gevent
from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.history import SQLiteHistory

clock = ManualClock()
monitor = MetricsMonitor(clock=clock)
lasting = SQLiteHistory(monitor, sys.argv[1], start=False)
clock.advance(60)
assert lasting.check()
clock.advance(60)
holder = sqlite3.connect(sys.argv[1], isolation_level=None)
holder.execute("PRAGMA locking_mode = EXCLUSIVE")
holder.execute("BEGIN EXCLUSIVE")
writer = gevent.spawn(lasting.check)
gevent.spawn(holder.close)
print(writer.get())
"""


def test_under_gevent_others_go_on_while_it_waits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, str(tmp_path / "metrics.db")],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
