"""Servers in the surroundings of production: namespaces, small disks, other users, half a /proc.

    stage = Stage(tmp_path)
    with stage:
        master = stage.start(within=container(shm=shared))
        worker = master.fork()
        worker.do("record", 5)
        worker.kill()

What is started is `tests/surroundings/apps/family.py`: a master that forks workers when it is told
to. Each process answers over a socket, whose file is seen in every namespace. Skipped with the
reason where this machine has no namespaces, or the tests do not run as root.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pytest

from kits.servers import wait_until

FAMILY = Path(__file__).resolve().parent.parent / "surroundings" / "apps" / "family.py"
PATIENCE = 60.0  # seconds that a process has for one answer
NOBODY = 65534

Proc = Literal["whole", "hidden", "processes", "none"]


@cache
def why_not(*flags: str) -> str:
    """Why there can be no such namespaces here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces are made by root, on Linux"
    done = subprocess.run(["unshare", "--fork", *flags, "true"], capture_output=True, text=True)
    return done.stderr.strip()


def need_namespaces(*flags: str) -> None:
    """Skip the test where there can be no such namespaces."""
    if reason := why_not(*flags):
        pytest.skip(reason)


def container(
    *,
    pid: bool = True,
    shm: Path | None = None,
    proc: Proc = "whole",
    boot: str | None = None,
    seconds_later: int = 0,
    user: int | None = None,
    cgroup: Sequence[Path] = (),
) -> list[str]:
    """The words before a command that start it in namespaces of its own.

    Args:
        pid: Whether it is process 1 of a namespace of its own.
        shm: The folder that is its /dev/shm; the machine's where there is none.
        proc: What there is of /proc: all, not the processes of others (``hidepid=2``), nothing but
            processes (systemd's ``ProcSubset=pid``), or nothing.
        boot: The boot id that it sees.
        seconds_later: By how much its monotonic clock is ahead.
        user: Whom it becomes before the command is run.
        cgroup: Groups that it joins, folders below /sys/fs/cgroup.
    """
    flags = ["--mount", *(["--pid", "--fork", "--kill-child"] if pid else [])]
    if seconds_later:
        flags += ["--fork", "--time", f"--monotonic={seconds_later}"]
    need_namespaces(*flags)
    steps = [f"echo $$ > {shlex.quote(str(folder))}/cgroup.procs" for folder in cgroup]
    if closed := next((p for p in Path(sys.base_prefix).parents if not _is_open(p)), None):
        inside = sys.base_prefix
        steps.append(
            f"mount -t tmpfs tmpfs /mnt && mkdir /mnt/python && "
            f"mount --bind {inside} /mnt/python && "
            f"mount -t tmpfs -o mode=755 tmpfs {closed} && mkdir -p {inside} && "
            f"mount --bind /mnt/python {inside}"
        )
    if shm is not None:
        steps.append(f"mount --bind {shlex.quote(str(shm))} /dev/shm")
    options = {"whole": "", "hidden": "-o hidepid=2", "processes": "-o subset=pid", "none": ""}
    if proc == "none":
        steps.append("mount -t tmpfs tmpfs /proc")
    elif pid or proc != "whole":
        steps.append(f"mount -t proc {options[proc]} proc /proc")
    if boot is not None:
        steps.append(
            f"mount -t tmpfs tmpfs /mnt; echo {boot} > /mnt/boot; "
            "mount --bind /mnt/boot /proc/sys/kernel/random/boot_id"
        )
    words = ["exec"]
    if user is not None:
        words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    steps.append(f'{" ".join(words)} "$@"')
    return ["unshare", *flags, "sh", "-c", " && ".join(steps), "sh"]


def _is_open(folder: Path) -> bool:
    """Whether everybody may enter; others could not run a Python that is in there."""
    return bool(folder.stat().st_mode & 0o001)


class Told:
    """A process that does what it is told. ``pid`` is as this process sees it."""

    def __init__(self, stage: Stage, connection: socket.socket) -> None:
        self._stage = stage
        self._connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]
        connection.settimeout(PATIENCE)
        self._answers = connection.makefile("r", encoding="utf-8")

    def begin(self, name: str, *arguments: object) -> None:
        """Give an order, whose answer is not waited for."""
        self._connection.sendall(json.dumps([name, *arguments]).encode() + b"\n")

    def answer(self) -> Any:
        """The answer to the oldest order that has none."""
        line = self._answers.readline()
        assert line, "the process has ended"
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["answer"]

    def do(self, name: str, *arguments: object) -> Any:
        """Give an order; what the process answers."""
        self.begin(name, *arguments)
        return self.answer()

    def fork(self, *preparation: Sequence[object]) -> Told:
        """A worker that this process forks, and that obeys the orders in ``preparation`` first."""
        self.do("fork", preparation)
        return self._stage.accept()

    @property
    def requests(self) -> int:
        """The total that it shows."""
        return int(self.do("read")["total_requests"])

    def kill(self) -> None:
        """End it by SIGKILL; returns when it has ended."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def leave(self) -> None:
        """End it as a program ends; returns when it has ended."""
        self.begin("exit")
        self._wait()

    def _wait(self) -> None:
        with suppress(OSError):
            assert self._answers.readline() == ""
        self._connection.close()
        wait_until(lambda: not _runs(self.pid), f"the end of {self.pid}")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


class Stage:
    """The processes of a test, all of which end with the block."""

    def __init__(self, folder: Path) -> None:
        self._path = f"{folder}/orders"  # of no file: whoever a process becomes, it may connect
        self._listener = socket.socket(socket.AF_UNIX)
        self._started: list[subprocess.Popen[bytes]] = []
        self._told: list[Told] = []

    def __enter__(self) -> Stage:
        self._listener.bind(f"\0{self._path}")
        self._listener.listen(100)
        self._listener.settimeout(PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for told in self._told:
            with suppress(ProcessLookupError):
                os.kill(told.pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()
        self._listener.close()

    def launch(
        self, *options: str, within: Sequence[str] = (), settings: dict[str, Any] | None = None,
        folder: Path | None = None, **environment: str,
    ) -> None:  # fmt: skip
        """Start a master, which is not waited for."""
        env = {name: value for name, value in os.environ.items() if "METRICSMW_" not in name}
        words = [sys.executable, str(FAMILY), self._path, *options]
        words += ["--settings", json.dumps(settings or {})]
        self._started.append(
            subprocess.Popen(
                [*within, *words],
                env=env | environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def accept(self) -> Told:
        """The next process that is ready to be told something."""
        connection, _ = self._listener.accept()
        told = Told(self, connection)
        self._told.append(told)
        return told

    def start(
        self, *options: str, within: Sequence[str] = (), settings: dict[str, Any] | None = None,
        folder: Path | None = None, **environment: str,
    ) -> Told:  # fmt: skip
        """A master with these options, under the words of `container`."""
        self.launch(*options, within=within, settings=settings, folder=folder, **environment)
        return self.accept()


def server_directories(shm: Path, user: int = 0) -> list[Path]:
    """The directories of a user's servers below a folder that is some container's /dev/shm."""
    base = shm / f"metricsmw-{user}"
    return sorted(path for path in base.glob("*/*") if path.is_dir()) if base.is_dir() else []


@contextmanager
def control_group(controller: str, **limits: int | str) -> Iterator[Path]:
    """A group of cgroup version 1 with these limits, ``file=value``; skips where there is none."""
    folder = Path("/sys/fs/cgroup", controller, f"metricsmw-test-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, value in limits.items():
            Path(folder, name.replace("__", ".")).write_text(f"{value}\n")
        yield folder
    finally:
        wait_until(lambda: not Path(folder, "cgroup.procs").read_text(), "an empty group")
        folder.rmdir()
