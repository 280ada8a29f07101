"""A reload of the workers keeps the server's numbers; an upgrade of the master starts new ones."""

from __future__ import annotations

import shutil
import signal
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from kits.crew import SharedClock, crew
from kits.routes_kit import Api
from kits.servers import Server, serve, wait_until
from kits.workers import ENV, announced, ask, directory_of, live_pids, read_often, segment_files

from metricsmw import MetricsMonitor
from metricsmw.engine.workers.shared import SharedGroup

WSGI = "apps.raw_wsgi:app"
WORKERS = 2

RELOADED = {
    "gunicorn": ("gunicorn", []),
    "gunicorn-preload": ("gunicorn", ["--preload"]),
    "uwsgi": ("uwsgi", []),
    "uwsgi-lazy": ("uwsgi", ["--lazy-apps"]),
}


def reloadable(name: str, args: Sequence[str]) -> Sequence[str]:
    """The arguments with which a server can start itself again.

    uWSGI as a Python package would do so with the interpreter that the environment was made of,
    which does not find that package.
    """
    command = shutil.which(name, path=sysconfig.get_path("scripts"))
    if name != "uwsgi" or command is None or Path(command).read_bytes()[:2] != b"#!":
        return args
    return [*args, "--binary-path", sys.executable]


def reload_workers(server: Server) -> None:
    """SIGHUP; returns when all workers are new ones, with segments."""
    old = set(server.worker_pids())
    server.signal(signal.SIGHUP)

    def all_new() -> bool:
        pids = server.worker_pids()
        return len(pids) == WORKERS and old.isdisjoint(pids)

    wait_until(all_new, "new workers")
    announced(server)


@pytest.mark.parametrize(("name", "args"), RELOADED.values(), ids=RELOADED)
def test_totals_and_window_outlive_a_reload(name: str, args: Sequence[str]) -> None:
    with serve(name, WSGI, workers=WORKERS, args=reloadable(name, args), env=ENV) as server:
        api = Api(server)
        announced(server)
        directory = directory_of(server)
        requests = server.reach_all_workers()
        server.get("/fail")
        before = api.settled(requests + 1)
        routes = api.routes()
        for _ in range(2):
            reload_workers(server)
            assert read_often(server, 8) == {(requests + 1, WORKERS, 0)}
        after = api.current()
        moved = {"timestamp", "memory_usage_pct", "memory_usage_mb", "cpu_usage_pct"}
        moved |= {"cpu_share_pct", "request_rate_rpm"}  # the same in the first minute only
        for name in before.keys() - moved:
            assert after[name] == before[name], name
        assert after["request_rate_rpm"] > 0
        assert api.routes() == routes
        ask(server, 4)
        assert api.settled(requests + 5)["workers"] == WORKERS
        # Old and new workers live side by side for a while.
        assert len(segment_files(directory)) <= 2 * WORKERS


@pytest.mark.parametrize("args", [[], ["--preload"]], ids=["plain", "preload"])
def test_an_upgraded_gunicorn_is_a_server_of_its_own(args: Sequence[str]) -> None:
    """SIGUSR2 starts another master beside the first; then the first is asked to go."""
    with serve("gunicorn", WSGI, workers=WORKERS, args=args, env=ENV) as server:
        announced(server)
        old_workers = server.worker_pids()
        ask(server, 3)
        server.signal(signal.SIGUSR2)

        def new_workers() -> list[int]:
            new = [pid for pid in server.worker_pids() if pid not in old_workers]
            found = [child.pid for pid in new for child in psutil.Process(pid).children()]
            return sorted(found) if len(found) == WORKERS else []

        wait_until(new_workers, "the new master's workers")
        directory = directory_of(server)

        def joined() -> list[int]:
            others = (path for path in directory.parent.iterdir() if path != directory)
            return [pid for path in others for pid in live_pids(path)]

        wait_until(lambda: set(new_workers()) <= set(joined()), "their segments elsewhere")
        assert live_pids(directory) == old_workers
        server.signal(signal.SIGQUIT)
        wait_until(server.ended, "the end of the old master")
        ask(server, 5)
        Api(server).settled(5)
        assert read_often(server, 12) == {(5, WORKERS, 0)}


@pytest.mark.parametrize("seconds", [60, 600])
def test_another_window_after_a_reload(seconds: int) -> None:
    """Workers with the new window take over: totals go on, the window begins anew."""
    clock = SharedClock()
    with crew(2, clock, window_seconds=300) as workers:
        old, older = workers.workers
        workers.all(record, "/old", 5)
        clock.advance(30)
        workers.all(record, "/old", 5)
        workers.settings["window_seconds"] = seconds
        # While both kinds live, each has the totals of all, and the window of its own kind.
        new = workers.start()
        new.do(record, "/new", 3)
        for worker, rate, route in (
            (old, 20, {"/old": 20}),
            (older, 20, {"/old": 20}),
            (new, 3, {"/new": 3}),
        ):
            assert worker.do(told) == (23, rate, route, 3, "healthy")
        old.kill()
        older.leave()
        heir, other = workers.start(), workers.start()
        workers.all(MetricsMonitor.get_health)  # all take their places
        for worker in (new, heir, other):
            assert worker.do(told) == (23, 3, {"/new": 3}, 3, "healthy")
        clock.advance(1)
        heir.do(record, "/old", 4)
        for worker in (new, heir, other):
            assert worker.do(told) == (27, 7, {"/new": 3, "/old": 4}, 3, "healthy")
        assert len(set(workers.all(segment_name))) == 3
        clock.advance(2 * seconds)
        for worker in (new, heir, other):
            assert worker.do(told) == (27, 0, {}, 3, "healthy")


def record(monitor: MetricsMonitor, route: str, times: int) -> None:
    """In a worker: so many requests."""
    for _ in range(times):
        monitor.record_request(10.0, route=route)


def told(monitor: MetricsMonitor) -> tuple[int, int, dict[str, int], int, str]:
    """In a worker: total, requests in the window, routes, workers, state."""
    snapshot = monitor.get_current_snapshot()
    reading = monitor.read().server
    return (
        snapshot.total_requests,
        reading.window.requests,
        {row["route"]: row["requests"] for row in monitor.get_routes()},
        snapshot.workers,
        monitor.get_health()["status"],
    )


def segment_name(monitor: MetricsMonitor) -> str:
    """In a worker: which segment it has."""
    group = monitor.membership.group
    assert isinstance(group, SharedGroup)
    return group.name
