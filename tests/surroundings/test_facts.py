"""What follows from facts of the system that cannot be had in a test: they are given instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricsmw.clock import ManualClock
from metricsmw.config import Settings
from metricsmw.engine.reading.limits import read_limits
from metricsmw.engine.workers.directories import is_in_use
from metricsmw.engine.workers.processes import Process, find_root
from metricsmw.engine.workers.shared import SharedGroup
from metricsmw.engine.workers.surroundings import PF_FORKNOEXEC, Surroundings

MIB = 1 << 20


class Proc:
    """A folder that shows processes as the kernel does, of which this one is the youngest."""

    def __init__(self, folder: Path, boot: str = "one") -> None:
        self.folder = folder
        (folder / "sys/kernel/random").mkdir(parents=True)
        (folder / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
        (folder / "self").symlink_to(str(os.getpid()))
        self.here = Surroundings(str(folder))

    def add(
        self, pid: int, parent: int, *, fork: bool, stack: int = 0, command: str = "server",
        session: int = 1, start: int = 100,
    ) -> None:  # fmt: skip
        """Show a process; its stack is hidden where it is another user's."""
        process = self.folder / str(pid)
        process.mkdir()
        fields = ["S", parent, 1, session, 0, 0, PF_FORKNOEXEC if fork else 0]
        fields += [0] * 12 + [start, 0, 0, 0, 1, 0, stack]
        (process / "stat").write_text(f"{pid} (server) {' '.join(map(str, fields))}\n")
        (process / "cmdline").write_text(f"{command}\0--workers\0")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


class TestTheRoot:
    def test_an_upgraded_masters_workers_are_its_own(self, proc: Proc) -> None:
        """It has the old master's command line, and its workers cannot see the memory of either."""
        parent = os.getppid()
        proc.add(os.getpid(), parent, fork=True, stack=5)
        proc.add(parent, 77, fork=False, start=90)
        proc.add(77, 1, fork=False, start=10)
        assert find_root(proc.here).process == Process(parent, 90)

    def test_a_daemon_is_no_worker_of_the_parent_that_it_leaves(self, proc: Proc) -> None:
        parent = os.getppid()
        proc.add(os.getpid(), parent, fork=True, stack=5, session=9)
        proc.add(parent, 77, fork=True, stack=5, session=9, start=90)
        proc.add(77, 1, fork=False, stack=5, session=1, start=10)
        assert find_root(proc.here).process == Process(parent, 90)

    def test_a_program_is_no_worker_of_a_shell_with_its_command_line(self, proc: Proc) -> None:
        parent = os.getppid()
        proc.add(os.getpid(), parent, fork=False, start=95)
        proc.add(parent, 1, fork=False, start=90)
        assert find_root(proc.here).process == Process(os.getpid(), 95)

    def test_a_proc_of_another_namespace_says_nothing(self, proc: Proc) -> None:
        proc.add(os.getpid(), os.getppid(), fork=True)
        (proc.folder / "self").unlink()
        (proc.folder / "self").symlink_to("1")
        assert proc.here.status(os.getpid()) is None


class TestBoots:
    """A process with the id and the start of one before the boot, on its directory."""

    @pytest.fixture
    def here(self, tmp_path: Path) -> list[Surroundings]:
        found = []
        for boot in ("one", "other"):
            proc = Proc(tmp_path / boot, boot)
            proc.add(os.getpid(), os.getppid(), fork=False)
            found.append(proc.here)
        return found

    def group(self, clock: ManualClock, here: Surroundings) -> SharedGroup:
        return SharedGroup(Settings(), clock.monotonic, here=here)

    def test_another_boot(self, here: list[Surroundings]) -> None:
        clock = ManualClock()
        before = self.group(clock, here[0])
        before.segment.table.lanes[0] += 5.0
        nonce = before.segment.header[4]
        before.close()
        assert is_in_use(before.directory, clock.monotonic(), here[0])
        assert not is_in_use(before.directory, clock.monotonic(), here[1])
        after = self.group(clock, here[1])
        assert list(after.sources()) == ["worker-0"]
        assert after.segment.header[4] != nonce
        assert after.history.origin == clock.monotonic()
        after.close()

    def test_times_that_are_yet_to_come(self, here: list[Surroundings]) -> None:
        before = self.group(ManualClock(5000.0), here[0])
        nonce = before.segment.header[4]
        before.close()
        clock = ManualClock(4000.0)
        after = self.group(clock, here[0])
        assert after.segment.header[4] != nonce
        assert after.history.origin == 4000.0
        after.close()

    def test_the_same_boot(self, here: list[Surroundings]) -> None:
        clock = ManualClock()
        before = self.group(clock, here[0])
        nonce = before.segment.header[4]
        before.close()
        after = self.group(clock, here[0])
        assert after.segment.header[4] == nonce
        after.close()


class TestLimits:
    def machine(self, root: Path, cgroup: str, mountinfo: str, **files: str) -> str:
        """Make files below a root: what the kernel says of groups, and limits by path."""
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
        (root / "proc/self/mountinfo").write_text(mountinfo)
        for name, value in files.items():
            path = root / "sys/fs/cgroup" / name.replace("__", ".").replace("_S_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return str(root)

    V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"

    def test_the_least_on_the_way_up_holds(self, tmp_path: Path) -> None:
        root = self.machine(
            tmp_path,
            "0::/system/app\n",
            self.V2,
            system_S_app_S_memory__max="max",
            system_S_memory__max=str(512 * MIB),
            system_S_app_S_cpu__max="50000 100000",
            system_S_cpu__max="max 100000",
        )
        assert read_limits(4096 * MIB, root) == (512 * MIB, "cgroup v2", 0.5, "cgroup v2")

    def test_a_container_sees_its_group_as_the_top(self, tmp_path: Path) -> None:
        root = self.machine(tmp_path, "0::/\n", self.V2, memory__max=str(64 * MIB))
        assert read_limits(4096 * MIB, root) == (64 * MIB, "cgroup v2", 0.0, "none")

    def test_version_1_in_a_container(self, tmp_path: Path) -> None:
        mounts = (
            "31 30 0:27 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
            "32 30 0:28 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        )
        root = self.machine(
            tmp_path,
            "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n",
            mounts,
            memory_S_memory__limit_in_bytes=str(128 * MIB),
        )
        cpu = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
        cpu.mkdir()
        (cpu / "cpu.cfs_quota_us").write_text("20000\n")
        (cpu / "cpu.cfs_period_us").write_text("100000\n")
        assert read_limits(4096 * MIB, root) == (128 * MIB, "cgroup v1", 0.2, "cgroup v1")

    def test_no_limit_is_the_machines(self, tmp_path: Path) -> None:
        root = self.machine(tmp_path, "0::/\n", self.V2, memory__max="max", cpu__max="max 100000")
        assert read_limits(4096 * MIB, root) == (4096 * MIB, "machine", 0.0, "none")

    def test_nothing_is_known(self, tmp_path: Path) -> None:
        assert read_limits(0, str(tmp_path)) == (0, "unknown", 0.0, "none")

    def test_lines_that_no_kernel_writes(self, tmp_path: Path) -> None:
        root = self.machine(tmp_path, "\nnone\n0::/\n", f"\n1 -\n{self.V2}", memory__max="9")
        assert read_limits(10, root) == (9, "cgroup v2", 0.0, "none")
