"""Whose server a process belongs to, and whether that lives: containers, daemons, upgrades."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import cast

import psutil
import pytest
from kits.routes_kit import Api
from kits.servers import APPS_ROOT, Server, free_port, serve, wait_until
from kits.surroundings import NOBODY, Stage, container, need_namespaces, server_directories
from kits.workers import ENV, ask, read_often

DAY = 86400.0


@pytest.fixture
def stage(tmp_path: Path):
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    """A folder that containers have in common as their /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


class TestContainersWithOneDevShm:
    """Each has processes of its own, the first of which is number 1, and the same user."""

    @pytest.mark.parametrize("boots", [(None, None), ("1111-00", "2222-00")], ids=["one", "own"])
    def test_a_start_between_two_workers_of_another_container(
        self, stage: Stage, shm: Path, boots: tuple[str | None, str | None]
    ) -> None:
        """LXC and systemd-nspawn give each container a boot id of its own."""
        master = stage.start(within=container(shm=shm, boot=boots[0]))
        first = master.fork()
        first.do("record", 5)
        first.kill()
        stage.start(within=container(shm=shm, boot=boots[1])).do("record", 3)
        second = master.fork()
        second.do("record", 2)
        assert second.requests == 7

    def test_starts_at_the_same_moment(self, stage: Stage, shm: Path) -> None:
        number = 6
        for _ in range(number):
            stage.launch(within=container(shm=shm))
        servers = [stage.accept() for _ in range(number)]
        for server in servers:
            server.begin("record", 5)
        for server in servers:
            server.answer()
        assert [server.requests for server in servers] == [5] * number
        assert len({server.do("directory") for server in servers}) == number

    def test_starts_beside_each_other_keep_each_others_directories(
        self, stage: Stage, shm: Path
    ) -> None:
        """Whoever makes a directory is not met by somebody who clears."""
        masters = [stage.start("--preload", within=container(shm=shm)) for _ in range(3)]
        workers = [master.fork() for _ in range(8) for master in masters]
        for worker in workers:
            worker.begin("record", 1)
        for worker in workers:
            worker.answer()
        assert [worker.requests for worker in workers] == [8] * len(workers)

    def test_long_unused_directories_are_cleared_and_others_stay(
        self, stage: Stage, shm: Path
    ) -> None:
        within = container(shm=shm)
        left = [stage.start(within=within) for _ in range(2)]
        for server in left:
            server.do("record")
        old, young = (
            Path(str(server.do("directory"))).relative_to("/dev/shm/metricsmw-0") for server in left
        )
        for server in left:
            server.kill()
        base = shm / "metricsmw-0"
        for path in (base / old, *(base / old).iterdir()):
            os.utime(path, (time.time() - 2 * DAY,) * 2)
        stage.start(within=within).do("record")
        assert not (base / old).exists()
        assert (base / young).exists()


class TestDaemons:
    """The process that began is gone before its workers come."""

    @pytest.mark.parametrize("options", [["--preload"], []], ids=["imported-first", "not-imported"])
    def test_a_program_that_becomes_a_daemon(
        self, stage: Stage, shm: Path, options: list[str]
    ) -> None:
        within = container(pid=False, shm=shm)
        master = stage.start(*options, "--daemonise", within=within)
        workers = [master.fork() for _ in range(3)]
        for worker in workers:
            worker.do("record", 2)
        assert {worker.requests for worker in workers} == {6}
        for worker in workers:
            worker.kill()
        stage.start(within=within).do("record")  # which clears what belongs to nobody
        assert master.fork(["record", 1]).requests == 7

    def test_uwsgi_that_becomes_one_with_its_app(self, tmp_path: Path) -> None:
        uwsgi = shutil.which("uwsgi", path=sysconfig.get_path("scripts"))
        if uwsgi is None:
            pytest.skip("uwsgi is not installed")
        pid, log = tmp_path / "pid", tmp_path / "log"
        port = free_port()
        env = {name: value for name, value in os.environ.items() if "METRICSMW_" not in name}
        subprocess.run(
            [
                uwsgi, "--http-socket", f"127.0.0.1:{port}", "--module", "apps.raw_wsgi:app",
                "--processes", "3", "--master", "--need-app", "--home", sys.prefix,
                "--pythonpath", str(APPS_ROOT), "--die-on-term",
                "--daemonize2", str(log), "--safe-pidfile2", str(pid),
            ],
            env=env | ENV, check=True, capture_output=True,
        )  # fmt: skip
        wait_until(lambda: pid.is_file() and pid.read_text(), "its process id")
        master = int(pid.read_text())
        server = Server("uwsgi", port, cast("subprocess.Popen[bytes]", psutil.Process(master)), log)
        try:
            wait_until(lambda: len(server.worker_pids()) == 3, "three workers")
            requests = server.reach_all_workers()
            Api(server).settled(requests)
            assert read_often(server, 20) == {(requests, 3, 0)}
        finally:
            for process in [*psutil.Process(master).children(), psutil.Process(master)]:
                process.kill()


class TestUpgrades:
    def test_gunicorn_by_root_for_another_user(self) -> None:
        """The new master is a child of the old one, with its command line, until that has ended."""
        args = ["--user", str(NOBODY), "--group", str(NOBODY)]
        within = container(pid=False)
        with serve(
            "gunicorn", "apps.raw_wsgi:app", workers=2, args=args, env=ENV, within=within
        ) as server:
            ask(server, 3)
            os.kill(server.pid, signal.SIGUSR2)
            upgraded = wait_until(lambda: _new_master(server.pid), "the new master")
            wait_until(lambda: len(_children(upgraded)) == 2, "its workers")
            os.kill(server.pid, signal.SIGTERM)
            wait_until(server.ended, "the end of the old master")
            ask(server, 37)
            killed = _children(upgraded)[0]
            os.kill(killed, signal.SIGKILL)
            wait_until(
                lambda: len(workers := _children(upgraded)) == 2 and killed not in workers,
                "its replacement",
            )
            ask(server, 3)
            Api(server).settled(40)
            wait_until(lambda: Api(server).current()["workers"] == 2, "the new worker")
            assert read_often(server, 20) == {(40, 2, 0)}


def _children(pid: int) -> list[int]:
    try:
        return sorted(child.pid for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def _new_master(pid: int) -> int | None:
    return next((child for child in _children(pid) if _children(child)), None)


class TestHiddenProcesses:
    def test_a_master_that_its_workers_cannot_see(self, stage: Stage, shm: Path) -> None:
        within = container(shm=shm, proc="hidden")
        master = stage.start(within=within)
        workers = [master.fork(["become", NOBODY]) for _ in range(3)]
        for worker in workers:
            worker.do("record", 2)
        assert {worker.requests for worker in workers} == {6}

    @pytest.mark.parametrize("proc", ["processes", "none"])
    @pytest.mark.parametrize("options", [["--preload"], []], ids=["preload", "plain"])
    def test_less_of_proc(self, stage: Stage, shm: Path, proc, options: list[str]) -> None:
        master = stage.start(*options, within=container(shm=shm, proc=proc))
        workers = [master.fork(["announce"]) for _ in range(2)]
        for worker in workers:
            worker.do("record", 2)
        seen = [worker.do("read") for worker in workers]
        if proc == "none" and not options:  # nothing tells who forked whom
            health = workers[0].do("health")
            assert health["status"] == "degraded"
            assert "METRICSMW_DIR" in str(health)
        else:
            assert [shown["total_requests"] for shown in seen] == [4, 4]


class TestUserNamespaces:
    def test_root_has_no_number_there(self, stage: Stage, shm: Path) -> None:
        """Folders of root's are shown as nobody's."""
        need_namespaces("--user", "--map-root-user")
        within = container(pid=False, shm=shm, user=1234)
        within += ["unshare", "--user", "--map-root-user"]
        server = stage.start(within=within)
        worker = server.fork()
        worker.do("record", 2)
        server.do("record")
        assert worker.requests == server.requests == 3
        assert worker.do("directory").startswith("/dev/shm/")


class TestReboots:
    """On a directory that outlives it, with processes that have the numbers of those before."""

    def boots(self, one: str, other: str) -> list[list[str]]:
        return [container(boot=boot) for boot in (one, other)]

    def test_another_boot_id(self, stage: Stage, tmp_path: Path) -> None:
        env = {"METRICSMW_DIR": str(tmp_path / "kept")}
        before, after = self.boots("11111111-0000", "22222222-0000")
        first = stage.start(within=before, **env)
        first.do("record", 5)
        first.do("reset")
        first.do("record", 2)
        first.kill()
        second = stage.start(within=after, **env)
        second.do("record", 1)
        assert second.requests == 1
        assert second.do("health")["segments_left_out"] == 0

    def test_times_that_are_yet_to_come(self, stage: Stage, tmp_path: Path) -> None:
        """Also where no boot id tells: the clock that wrote them is another one."""
        need_namespaces("--time", "--monotonic=1000")
        env = {"METRICSMW_DIR": str(tmp_path / "kept")}
        first = stage.start(within=container(proc="processes", seconds_later=100_000), **env)
        first.do("record", 5)
        first.kill()
        second = stage.start(within=container(proc="processes"), **env)
        second.do("record", 1)
        shown = second.do("read")
        assert shown["total_requests"] == 1
        assert shown["request_rate_rpm"] <= 1.0


class TestOneDirectoryOverContainers:
    def test_cpu_and_memory_are_those_of_all(self, stage: Stage, tmp_path: Path) -> None:
        env = {"METRICSMW_DIR": str(tmp_path / "common")}
        reader, other = (stage.start(within=container(), **env) for _ in range(2))
        reader.do("record")
        alone = reader.do("read")["memory_usage_mb"]
        other.do("hold_memory", 200)
        other.do("burn", 0.5)
        other.do("record")
        shown = reader.do("read")
        assert shown["workers"] == 2
        assert shown["memory_usage_mb"] > alone + 190
        assert "workers_unmeasured" not in reader.do("statistics")["current"]

    def test_counts_are_those_of_all(self, stage: Stage, tmp_path: Path) -> None:
        env = {"METRICSMW_DIR": str(tmp_path / "common")}
        servers = [stage.start(within=container(), **env) for _ in range(3)]
        for server in servers:
            server.do("record", 2)
        servers[0].kill()
        assert [server.requests for server in servers[1:]] == [6, 6]
        late = stage.start(within=container(), **env)
        late.do("record", 1)
        assert late.requests == 7
        assert len(list((tmp_path / "common").glob("*/worker-*"))) == 3


class TestNames:
    def test_a_relative_directory_stays_where_it_was(self, stage: Stage, tmp_path: Path) -> None:
        server = stage.start(folder=tmp_path, METRICSMW_DIR="relative")
        server.do("record", 3)
        server.do("chdir", "/")
        assert server.requests == 3
        server.do("reset")
        assert server.do("health")["status"] == "healthy"
        late = server.fork()
        late.do("record", 2)
        assert late.requests == 2
        assert Path(late.do("directory")).parent == tmp_path / "relative"

    def test_sites_of_one_apache(self, stage: Stage, shm: Path) -> None:
        master = stage.start(within=container(shm=shm))

        def process(group: str, application: str):
            names = {"process_group": group, "application_group": application}
            worker = master.fork(["pretend", "mod_wsgi", names])
            worker.do("record", 2)
            return worker

        sites = [("one", "app"), ("other", "app"), ("", "first"), ("", "second")]
        workers = [process(*site) for site in sites for _ in range(2)]
        assert [worker.requests for worker in workers] == [4] * 8
        assert len(server_directories(shm)) == 4
