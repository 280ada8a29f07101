"""Who belongs together and who does not: servers side by side, directories by hand, families."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from kits.routes_kit import BEARER, Api
from kits.servers import APPS_ROOT, Server, serve, wait_until
from kits.workers import (
    ENV,
    SCRIPTS,
    announced,
    ask,
    directory_of,
    live_pids,
    read_often,
    run_script,
)

from metricsmw.engine.workers.directories import base_directory

WSGI, ASGI = "apps.raw_wsgi:app", "apps.raw_asgi:app"


def each_shows_its_own(servers: Sequence[Server], workers: int) -> None:
    """Each server is asked another number of times, and shows that number."""
    for number, server in enumerate(servers, 1):
        ask(server, 3 * number)
    for number, server in enumerate(servers, 1):
        Api(server).settled(3 * number)
        assert read_often(server, 12) == {(3 * number, workers, 0)}


def test_different_servers() -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(name, app, workers=2, env=ENV))
            for name, app in (("gunicorn", WSGI), ("uvicorn", ASGI))
        ]
        for server in servers:
            announced(server)
        each_shows_its_own(servers, workers=2)
        assert len({directory_of(server) for server in servers}) == 2


def test_one_program_with_different_arguments() -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve("gunicorn", WSGI, workers=2, args=args, env=ENV))
            for args in ([], ["--preload"])
        ]
        for server in servers:
            announced(server)
        each_shows_its_own(servers, workers=2)


GUNICORN = [str(shutil.which("gunicorn", path=sysconfig.get_path("scripts"))), WSGI, "-w", "2"]
SHELL = ["sh", "-c", f"{shlex.join(GUNICORN)} & {shlex.join(GUNICORN)} & wait"]
SUPERVISOR = [sys.executable, str(SCRIPTS / "supervisor.py"), *GUNICORN]


@contextmanager
def two_servers(command: Sequence[str], folder: Path) -> Iterator[list[Server]]:
    """The servers that a command starts, in one session that is ended with the block."""
    log = folder / "log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("METRICSMW_")}
    env |= {**ENV, "PYTHONPATH": str(APPS_ROOT), "HOME": str(folder)}
    env["GUNICORN_CMD_ARGS"] = "--bind 127.0.0.1:0"  # the same for both
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=APPS_ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def ports() -> list[str]:
            found = re.findall(r"Listening at: http://127.0.0.1:(\d+)", log.read_text())
            return found if len(found) == 2 else []

        yield [
            Server("gunicorn", int(port), process, log)
            for port in wait_until(ports, "two servers that listen")
        ]
    finally:
        Server("gunicorn", 0, process, log).stop()


@pytest.mark.parametrize("command", [SHELL, SUPERVISOR], ids=["a-shell", "a-python-program"])
def test_the_same_command_twice_from_one_process(command: Sequence[str], tmp_path: Path) -> None:
    with two_servers(command, tmp_path) as servers:
        for server in servers:
            api = Api(server)
            wait_until(lambda: api.current()["workers"] == 2, "both workers")  # noqa: B023
        each_shows_its_own(servers, workers=2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are taken for forks")
def test_a_program_that_starts_itself_twice() -> None:
    assert run_script("relaunched.py") == [[1, 1], [2, 1]]


def test_a_directory_by_hand_groups(tmp_path: Path) -> None:
    env = {**ENV, "METRICSMW_DIR": str(tmp_path)}
    with (
        serve("gunicorn", WSGI, workers=2, env=env) as one,
        serve("uvicorn", ASGI, workers=2, env=env) as other,
    ):
        (directory,) = tmp_path.iterdir()
        workers = sorted(one.worker_pids() + other.worker_pids())
        wait_until(lambda: live_pids(directory) == workers, "all workers")
        ask(one, 3)
        ask(other, 4)
        for server in (one, other):
            Api(server).settled(7)
            assert read_often(server, 12) == {(7, 4, 0)}
            assert (
                server.get("/api/metrics/health", BEARER).json()["mode_reason"] == "METRICSMW_DIR"
            )


def test_sharing_turned_off_separates() -> None:
    with serve("gunicorn", WSGI, workers=2, env={**ENV, "METRICSMW_SHARED": "off"}) as server:
        requests = server.reach_all_workers()
        if requests % 2 == 0:
            ask(server, 1)
            requests += 1
        shown: set[tuple[int, int, int]] = set()

        def both() -> bool:  # an odd sum is of two different numbers
            shown.update(read_often(server, 8))
            return len(shown) == 2

        wait_until(both, "the numbers of both")
        assert sum(total for total, *_ in shown) == requests
        assert {workers for _, workers, _ in shown} == {1}
        health = server.get("/api/metrics/health", BEARER).json()
        assert (health["mode"], health["mode_reason"]) == ("private", "METRICSMW_SHARED is off")
        assert list(base_directory().glob(f"{server.pid}-*")) == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_shares(method: str) -> None:
    parent, children = run_script("family.py", [method])
    whole = {"requests": 5 + 3 * 10, "workers": 4}
    assert parent == whole
    assert children == [whole] * 3


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("from multiprocessing.forkserver import main; import sys; ", id="3.13"),
        pytest.param("import sys; from multiprocessing.forkserver import main; ", id="3.14"),
        pytest.param("import sys, multiprocessing.forkserver as f; main = f.main; ", id="another"),
    ],
)
def test_a_fork_server_is_of_the_family_however_it_is_started(command: str) -> None:
    whole = {"requests": 5 + 3 * 10, "workers": 4}
    assert run_script("family.py", ["forkserver", command]) == [whole, [whole] * 3]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver", "os.fork"])
def test_a_helper_is_no_worker_before_it_records(method: str) -> None:
    """It has inherited or imported the wrapped app, and does not serve it."""
    before, after = run_script("helpers.py", [method])
    assert before == {"workers": 1, "segments": 1}
    assert after == {"workers": 3, "segments": 3}


@pytest.mark.parametrize("args", [[], ["--preload"]], ids=["plain", "preload"])
def test_helpers_of_a_server_are_no_workers(args: Sequence[str]) -> None:
    env = {**ENV, "PYTHONPATH": f"{APPS_ROOT}{os.pathsep}{SCRIPTS}"}
    with serve("gunicorn", "helped:app", workers=2, args=args, env=env) as server:
        wait_until(lambda: len(live_pids(directory_of(server))) == 2, "both workers")
        ask(server, 4)
        Api(server).settled(4)
        assert read_often(server, 8) == {(4, 2, 0)}
        os.killpg(server.pid, signal.SIGKILL)  # workers would wait for their helpers


def test_a_master_that_records_is_no_worker_twice() -> None:
    """The app records as it is imported, in the master; its forks must not write there too."""
    app = "early:app"
    for name, args in (("gunicorn", ["--preload"]), ("uwsgi", [])):
        env = {**ENV, "PYTHONPATH": f"{APPS_ROOT}{os.pathsep}{SCRIPTS}"}
        with serve(name, app, workers=2, args=args, env=env) as server:
            requests = server.reach_all_workers()
            Api(server).settled(requests + 1)
            assert read_often(server, 12) == {(requests + 1, 3, 0)}
            pids = live_pids(directory_of(server))
            assert pids == sorted([server.pid, *server.worker_pids()])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can drop it")
def test_workers_that_drop_their_privileges_after_the_fork() -> None:
    shown = {"requests": 6, "in_flight": 0, "workers": 2, "mode": "shared"}
    assert run_script("dropped.py") == [shown] * 2
