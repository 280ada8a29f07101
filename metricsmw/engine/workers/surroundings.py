"""The system's facts about this process: its boot, its namespaces, its processes.

Every fact is optional, as containers and service managers hide parts of /proc (``hidepid``,
``ProcSubset=pid``, no /proc at all). A hidden fact is None, or 0 for a number, never an exception.
"""

from __future__ import annotations

import os
import sys
import zlib
from typing import NamedTuple

# A flag of the kernel's for a process that was forked and has not started a program since.
PF_FORKNOEXEC = 0x40
NUMBER_BITS = 48  # of a hash that is to fit into a double


class ProcessStatus(NamedTuple):
    """The system's facts about one process.

    Attributes:
        parent: The process id of its parent; 0 where that is in another namespace.
        session: The id of its session.
        start: When it started: clock ticks since boot, milliseconds of Unix time elsewhere.
        is_fork: Whether it was forked and has not started a program since; None: not said.
        name: The name that a fork inherits.
        layout: Where its code and stack begin, which a fork inherits; None: not said.
        runs: Whether it has not ended; a zombie has.
    """

    parent: int
    session: int
    start: int
    is_fork: bool | None
    name: bytes
    layout: tuple[bytes, bytes] | None
    runs: bool


class Surroundings:
    """The facts of one machine or container.

    Args:
        proc: The folder where the kernel shows its processes.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._seen_by = 0, False

    @property
    def _shows_ids(self) -> bool:
        """Whether the ids that ``proc`` shows are those of this process's namespace."""
        pid, shows = self._seen_by
        if pid != os.getpid():
            try:
                shows = os.readlink(f"{self._proc}/self") == str(os.getpid())
            except OSError:
                shows = False
            self._seen_by = os.getpid(), shows
        return shows

    def read(self, name: str) -> bytes:
        """Return what a file below ``proc`` says; nothing where it cannot be read."""
        try:
            with open(f"{self._proc}/{name}", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _namespace(self, kind: str) -> int:
        try:
            return os.stat(f"{self._proc}/self/ns/{kind}").st_ino
        except OSError:
            return 0

    @property
    def pid_namespace(self) -> int:
        """The namespace that process ids are of; 0: not known."""
        return self._namespace("pid")

    @property
    def time_namespace(self) -> int:
        """The namespace that monotonic times are of; 0: not known."""
        return self._namespace("time")

    @property
    def boot(self) -> int:
        """A number of this boot of the machine; 0: not known."""
        boot = self.read("sys/kernel/random/boot_id").strip()
        return _number(boot) if boot else 0

    def status(self, pid: int) -> ProcessStatus | None:
        """Return the facts about a process; None where there is none, or it is hidden."""
        if sys.platform != "linux":
            return _status_elsewhere(pid)
        fields = self.read(f"{pid}/stat").rpartition(b")") if self._shows_ids else ()
        if not fields or not fields[1]:
            return None
        name, numbers = fields[0].partition(b"(")[2], fields[2].split()
        try:
            code, stack = numbers[23], numbers[25]
            return ProcessStatus(
                parent=int(numbers[1]),
                session=int(numbers[3]),
                start=int(numbers[19]),
                is_fork=bool(int(numbers[6]) & PF_FORKNOEXEC),
                name=name,
                layout=None if stack == b"0" else (code, stack),
                runs=numbers[0] not in (b"Z", b"X"),
            )
        except (IndexError, ValueError):
            return None

    def state(self, pid: int) -> str:
        """Return the state of a process as the kernel's letter, such as "T"; empty: not shown."""
        if sys.platform != "linux" or not self._shows_ids:
            return ""
        after_name = self.read(f"{pid}/stat").rpartition(b") ")[2]
        return after_name[:1].decode("ascii", "replace")

    def resident_bytes(self) -> int:
        """Return the resident memory of this process; 0: not known."""
        pages = self.read("self/statm").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0

    def command(self, pid: int) -> list[str]:
        """Return the command line of a process; empty where it is not shown."""
        if sys.platform != "linux":
            return _command_elsewhere(pid)
        line = self.read(f"{pid}/cmdline").rstrip(b"\0")
        return [os.fsdecode(word) for word in line.split(b"\0")] if line else []

    def executable(self, pid: int) -> str | None:
        """Return the file that a process executes; None where it is not shown."""
        if sys.platform != "linux":
            return _executable_elsewhere(pid)
        try:
            return os.readlink(f"{self._proc}/{pid}/exe")
        except OSError:
            return None


def _number(text: bytes) -> int:
    """Return a hash that is not 0 and fits into a double."""
    return (zlib.crc32(text) << 16 | zlib.adler32(text) & 0xFFFF) % (1 << NUMBER_BITS) or 1


# --- other systems: psutil is imported where it is used, as it costs more than the package --------


def _status_elsewhere(pid: int) -> ProcessStatus | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return ProcessStatus(
                parent=process.ppid(),
                session=0,
                start=int(process.create_time() * 1000),
                is_fork=None,
                name=process.name().encode(),
                layout=None,
                runs=process.status() != psutil.STATUS_ZOMBIE,
            )
    except (psutil.Error, OSError):
        return None


def _command_elsewhere(pid: int) -> list[str]:
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []


def _executable_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        return psutil.Process(pid).exe()
    except (psutil.Error, OSError):
        return None


def unique_start(pid: int) -> int:
    """Return a number that no other process with this id has had since the boot; 0: not known.

    Asks for a descriptor of the process, which needs no /proc: since Linux 6.9 its inode is such a
    number. Older kernels have one inode for all that is no file.
    """
    try:
        process, no_file = os.pidfd_open(pid), os.eventfd(0)
    except (OSError, AttributeError):
        return 0
    try:
        found, of_all = os.fstat(process), os.fstat(no_file)
        return 0 if os.path.samestat(found, of_all) else found.st_ino
    finally:
        os.close(process)
        os.close(no_file)


HERE = Surroundings()
