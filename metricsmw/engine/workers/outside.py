"""A server's directory, read by a process that is none of its workers.

Nothing there is changed. Files are opened for reading, with their times of access left alone, and
closed again after each reading, so that no directory and no removed file is kept. Which worker
lives is read from the kernel's list of locks. Only where that list cannot say it, a worker's flock
is tried, shared and without waiting: a new worker that claims a dead one's segment just then tries
again a millisecond later. No other lock is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from metricsmw.config import RANGES
from metricsmw.engine.files import FileHandle
from metricsmw.engine.storage.layout import Owner
from metricsmw.engine.storage.minutes import History
from metricsmw.engine.storage.reader import NEVER, Reset, SegmentSource
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.directories import SEGMENT, is_locked, read_header
from metricsmw.engine.workers.group import Mode
from metricsmw.engine.workers.leader import LOCK_FILE, NOTE_FILE, read_deadline
from metricsmw.engine.workers.notes import MAX_BYTES
from metricsmw.engine.workers.processes import Process
from metricsmw.engine.workers.registry import JobRegistry
from metricsmw.engine.workers.resets import MOST_BYTES as MOST_RESET_BYTES
from metricsmw.engine.workers.resets import NAME as RESET
from metricsmw.engine.workers.resets import unpack_reset
from metricsmw.engine.workers.sources import Unreadable
from metricsmw.engine.workers.surroundings import HERE, Surroundings

HISTORY_FILE = re.compile(r"history-([1-9][0-9]{0,3})")
DEFAULT_MINUTES = 60
# 1: FLOCK  ADVISORY  WRITE 1534 00:1b:21277 0 EOF
FLOCK_LINE = re.compile(
    rb"^\d+: FLOCK +\w+ +WRITE +-?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE
)
_NO_ATIME = getattr(os, "O_NOATIME", 0)
_FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):  # Windows has none of them
    _FLAGS |= getattr(os, _name, 0)


class Folder:
    """A directory of one user that is only read.

    Args:
        path: The directory.
        uid: The user that it and all files in it must belong to.
        within: The folder that holds it, where that one is opened already; links are followed
            nowhere but on the way to the first one.

    Raises:
        OSError: It cannot be opened, or is not a directory that only that user can enter.
    """

    def __init__(self, path: Path, uid: int, within: Folder | None = None) -> None:
        self.path = path
        self.uid = uid
        if within is None:
            handle = _open(path, os.O_DIRECTORY)
        else:
            handle = _open(path.name, os.O_DIRECTORY, within.fileno())
        self._handle = handle
        status = os.fstat(handle.fileno())
        if status.st_uid != uid or stat.S_IMODE(status.st_mode) & 0o077:
            handle.close()
            raise PermissionError(
                errno.EPERM, "must be a directory that only its owner can enter", str(path)
            )

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._handle.fileno()

    def close(self) -> None:
        """Close it."""
        self._handle.close()

    def inner(self, name: str) -> Folder:
        """Open a directory in it. Raises OSError."""
        return Folder(self.path / name, self.uid, self)

    def names(self) -> list[str]:
        """Return the names of all that is in it, sorted. Raises OSError."""
        return sorted(os.listdir(self._handle.fileno()))

    def open(self, name: str) -> FileHandle:
        """Open a regular file of the user for reading. Raises OSError."""
        file = _open(name, 0, self._handle.fileno())
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != self.uid:
            file.close()
            raise PermissionError(errno.EPERM, "not a regular file of this user")
        return file

    def read(self, name: str, most: int) -> bytes:
        """Return at most ``most`` bytes of a file. Raises OSError."""
        with contextlib.closing(self.open(name)) as file:
            return os.pread(file.fileno(), min(os.fstat(file.fileno()).st_size, most), 0)


def _open(path: str | Path, flags: int, dir_fd: int | None = None) -> FileHandle:
    try:
        return FileHandle(os.open(path, _FLAGS | flags | _NO_ATIME, dir_fd=dir_fd))
    except PermissionError:
        if not _NO_ATIME:
            raise
        return FileHandle(os.open(path, _FLAGS | flags, dir_fd=dir_fd))


class Flocks:
    """The exclusive flocks of this machine, as far as the kernel lists them to this process."""

    def __init__(self, here: Surroundings = HERE) -> None:
        self._held = {
            (int(major, 16), int(minor, 16), int(inode))
            for major, minor, inode in FLOCK_LINE.findall(here.read("locks"))
        }

    def has(self, file: FileHandle) -> bool:
        """Return whether a process is listed that holds an exclusive flock of the file."""
        status = os.fstat(file.fileno())
        device = status.st_dev
        return (os.major(device), os.minor(device), status.st_ino) in self._held


def is_alive(file: FileHandle, owner: Owner | None, flocks: Flocks, here: Surroundings) -> bool:
    """Return whether the worker of a segment lives.

    Args:
        file: The segment.
        owner: The worker that its header names; None: not known.
        flocks: The locks that are held.
        here: The system's facts about this process.
    """
    if flocks.has(file):
        return True
    if owner is None or owner.pid_namespace != here.pid_namespace or not here.pid_namespace:
        return is_locked(file)
    return Process(owner.pid, owner.process_start).is_running(here) and is_locked(file)


class OutsideSegment:
    """A segment that is only read. A truncated file is a short read.

    Attributes:
        alive: Whether its worker lived when the segment was opened.
        owner: The worker that its header names; None where the header is damaged.
        created: Monotonic time at which the segment was made.
    """

    size = 0

    def __init__(self, file: FileHandle, flocks: Flocks, here: Surroundings) -> None:
        self._file = file
        self.header = read_header(file)
        self.owner = None if self.header is None else self.header.owner
        self.created = 0.0 if self.header is None else self.header.created
        self.alive = is_alive(file, self.owner, flocks, here)

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; fewer where the segment ends. Raises OSError."""
        return self._file.pread(size, offset)

    def opened(self) -> OutsideSegment:
        """Return itself: it is open."""
        return self


class _ReadOnlyBytes:
    """The bytes of a minute history that is only read."""

    def __init__(self, file: FileHandle | None) -> None:
        self._file = file

    def reserve(self, size: int) -> None:
        """Reserve nothing."""

    def read(self, offset: int, size: int) -> bytes:
        """See `Bytes`."""
        return b"" if self._file is None else self._file.pread(size, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Refuse. Raises OSError."""
        _refuse()


def _refuse() -> NoReturn:
    raise OSError(errno.EROFS, "another server's files are only read")


class OutsideGroup:
    """The workers of a server as they are at one moment; a `Group` that nothing can be changed in.

    Args:
        folder: The server's directory.
        now: Monotonic seconds, by which a segment of another clock is told.
        reason: Why its workers share the directory.
        here: The system's facts about this process.

    Raises:
        OSError: The directory cannot be read any more.
    """

    mode: Mode = "shared"
    failed = False
    directory = None  # no job of this process may lead there
    segment: Segment  # never there: this process records nothing

    def __init__(self, folder: Folder, now: float, reason: str, here: Surroundings = HERE) -> None:
        self.reason = reason
        self.flocks = Flocks(here)
        self._problems: list[str] = []
        names = folder.names()
        # The reset goes first: states that are read after it can only be later ones.
        self.reset = self._read_reset(folder, names, now)
        self.segments: dict[str, OutsideSegment] = {}
        self._sources: dict[str, SegmentSource] = {}
        for name in names:
            if name.startswith(SEGMENT):
                self._add(folder, name, now, here)
        self.minutes, self.history = self._open_history(folder, names)

    def _add(self, folder: Folder, name: str, now: float, here: Surroundings) -> None:
        try:
            segment = OutsideSegment(folder.open(name), self.flocks, here)
        except FileNotFoundError:
            return
        except OSError as error:
            self._sources[name] = Unreadable(error)
            return
        header = segment.header
        if header is not None and not header.has_this_clock(now, here):
            self._sources[name] = Unreadable(OSError(errno.EXDEV, "of another boot or clock"))
            return
        self.segments[name] = segment
        self._sources[name] = segment

    def _read_reset(self, folder: Folder, names: list[str], now: float) -> Reset:
        if RESET not in names:
            return NEVER
        try:
            return unpack_reset(folder.read(RESET, MOST_RESET_BYTES), now)
        except FileNotFoundError:
            return NEVER
        except OSError:
            self._problems.append("the last reset cannot be read, so counts from before it show")
            return NEVER

    @staticmethod
    def _open_history(folder: Folder, names: list[str]) -> tuple[int, History]:
        """Return how many minutes are kept, and the history that was written last."""
        found: list[tuple[float, int, FileHandle]] = []
        for name in names:
            match = HISTORY_FILE.fullmatch(name)
            if match is not None and int(match[1]) <= RANGES["max_history_minutes"][1]:
                with contextlib.suppress(OSError):
                    file = folder.open(name)
                    found.append((os.fstat(file.fileno()).st_mtime, int(match[1]), file))
        if not found:
            return DEFAULT_MINUTES, History(_ReadOnlyBytes(None), DEFAULT_MINUTES)
        _, minutes, file = max(found, key=lambda one: one[0])
        return minutes, History(_ReadOnlyBytes(file), minutes)

    def sources(self, complete: bool = False) -> Mapping[str, SegmentSource]:
        """See `Group`."""
        return self._sources

    def write_reset(self, reset: Reset) -> None:
        """Refuse. Raises OSError."""
        _refuse()

    def renew(self, now: float) -> None:
        """Renew nothing: a reader keeps no file in use."""

    def problems(self) -> list[str]:
        """See `Group`."""
        if damaged := self.history.damaged():
            return [*self._problems, f"minutes of the history left out: {damaged}"]
        return self._problems

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        """Never hold the server's lock."""
        yield False

    def close(self) -> None:
        """Do nothing: there is no place to leave."""

    def release(self) -> None:
        """Do nothing: files are closed with the last reading of them."""


class CopiedJobs(JobRegistry):
    """The jobs of a server, as copies of its notes and deadlines in memory.

    A job has a leader where the kernel lists the lock of its lock file.
    """

    def copy(self, folder: Folder, flocks: Flocks, now: float) -> None:
        """Copy the server's notes and deadlines, as they are at monotonic ``now``."""
        self.clear()
        for name in folder.names():
            if match := NOTE_FILE.fullmatch(name):
                with contextlib.suppress(OSError):
                    text = folder.read(name, MAX_BYTES + 1)
                    self.notes[match[1]] = text.decode(errors="surrogateescape")
            elif match := LOCK_FILE.fullmatch(name):
                with contextlib.suppress(OSError), contextlib.closing(folder.open(name)) as file:
                    if flocks.has(file):
                        self.leaders[match[1]] = self  # any object stands for the leader
                        self.deadlines[match[1]] = read_deadline(file, now)
