"""`SharedGroup`: the directory of a server's workers, who of them is alive, and what they share.

Only its owner can enter the directory:

    worker-N   the segment of a worker, which holds an exclusive flock on it for its life
    reset      the states of all tables at the last reset; replaced as a whole
    history-M  the minute history of the workers that keep M minutes
    lock       its flock is held by whoever adopts a segment, resets, or writes the history

The kernel drops a dead worker's flock, also after SIGKILL, and pid reuse cannot bring it back:
so a lock tells who is alive. A new worker adopts a dead one's segment, whose counts go on; there
are never more files than workers that lived at once. Nothing here runs in the background.

The flock is on a second descriptor, not the mapped one: a mapping keeps its own descriptor open
until the last view of it is gone, and a forked child can lose track of views that other threads
of its parent had in hand. It would keep the lock of a worker that has died.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

from metricsmw.config import Settings
from metricsmw.engine.files import FileHandle
from metricsmw.engine.storage.layout import HEADER_BYTES, Field
from metricsmw.engine.storage.memory import FileMemory
from metricsmw.engine.storage.minutes import FileBytes, History
from metricsmw.engine.storage.reader import NEVER, Period, Reset, SegmentReading, Source
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.storage.tables import CorruptSegmentError
from metricsmw.engine.workers.group import Mode, OwnSource
from metricsmw.engine.workers.processes import Process, root_process, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


PREFIX = "worker-"
RESET_HEADER = struct.Struct("<dQ")
RESET_ENTRY = struct.Struct("<QQQ")


class _FileSource:
    """Another worker's segment. Read by `pread`: a truncated file is a short read, no SIGBUS."""

    def __init__(self, path: str) -> None:
        self._file = _open_own(path, os.O_RDONLY)

    @property
    def alive(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


class _Unreadable:
    """A file in the directory that is no segment of ours; reading it says why."""

    alive = False

    def __init__(self, error: OSError) -> None:
        self._error = error

    def read(self, offset: int, size: int) -> bytes:
        raise self._error


def _open_own(path: str, flags: int) -> FileHandle:
    """Open a regular file that belongs to this user, following no link. Raises OSError."""
    file = FileHandle(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    if not _is_own(os.fstat(file.fileno())):
        raise PermissionError(errno.EPERM, "not a regular file of this user")
    return file


def _is_own(status: os.stat_result) -> bool:
    """Whether it is a regular file of this user; nothing else is a segment."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _segment_files(directory: str | Path) -> dict[str, os.stat_result]:
    """What is named as a segment there, with its status. Raises OSError."""
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def _process(header: bytes, pid: Field, start: Field) -> Process | None:
    """A process that a segment's header names; None where it names none."""
    try:
        numbers = memoryview(header).cast("d")
        return Process(int(numbers[pid]), int(numbers[start]))
    except (IndexError, TypeError, ValueError, OverflowError):
        return None


def _make_private_directory(path: Path) -> None:
    """Make the directory if need be; raise OSError unless only its owner can enter it."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.geteuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        what = "must be a directory that only its owner can enter"
        raise PermissionError(errno.EPERM, what, str(path))


def base_directory() -> Path:
    """Where the servers of this user keep their directories."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK):
        base = shm
    else:
        from tempfile import gettempdir  # here, as it loads a random generator

        base = Path(gettempdir())
    return base / f"metricsmw-{os.geteuid()}"


class _Place(NamedTuple):
    """This worker's segment: its file's name, and the opening whose flock says that it lives."""

    name: str
    life: FileHandle
    segment: Segment


class SharedGroup:
    """A server's directory, and this worker's place in it. Raises OSError where it cannot be."""

    mode: Mode = "shared"

    def __init__(self, settings: Settings, now: float) -> None:
        if fcntl is None:
            raise OSError("this platform has no file locks")
        self._settings = settings
        # With the file's inode and owner, as a name may come to stand for another file. Replaced
        # as a whole: threads share it.
        self._sources: dict[str, tuple[tuple[int, int], _FileSource]] = {}
        # The flock is the process's; this keeps its threads apart.
        self._thread_lock = threading.Lock()
        # The file's inode and time, and what was read from it.
        self._reset = (0, 0), NEVER
        root = root_process()
        by_hand = os.environ.get("METRICSMW_DIR")
        if by_hand:
            base = Path(by_hand)
            base.mkdir(parents=True, exist_ok=True)
            self.reason = "METRICSMW_DIR"
            self.directory = base / f"metricsmw-{os.geteuid()}"
        else:
            base = base_directory()
            _make_private_directory(base)
            self.reason = "workers of one server"
            self.directory = base / f"{root.pid}-{root.start}"
            _remove_dead_servers(base)
        _make_private_directory(self.directory)
        self._reset_path = str(self.directory / "reset")
        self._shared: dict[str, FileHandle] = {}
        self._lock = self._open_shared("lock")
        with self.exclusive(wait=True):
            if by_hand and not _is_in_use(self.directory):
                self._clear()
            minutes = settings.max_history_minutes
            name = f"history-{minutes}"
            is_new = not os.path.lexists(self.directory / name)
            self.history = History(FileBytes(self._open_shared(name)), minutes)
            if is_new:  # another one without an origin has been damaged
                self.history.start(now)
            place = self._adopt(root, now) or self._create(root, now)
        self.name, self._life, self.segment = place
        self._inode = os.fstat(self._life.fileno()).st_ino

    def _open_shared(self, name: str) -> FileHandle:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = FileHandle(os.open(self.directory / name, flags, 0o600))
        self._shared[name] = file
        return file

    # --- this worker's segment -------------------------------------------------------------------

    def _clear(self) -> None:
        """Start clean, as all that is there belongs to servers that have ended."""
        for entry in os.scandir(self.directory):
            if entry.name == "lock":
                continue
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)

    def _adopt(self, root: Process, now: float) -> _Place | None:
        """Take over the segment of a worker that has died."""
        for name in sorted(_segment_files(self.directory), key=lambda name: (len(name), name)):
            path = str(self.directory / name)
            try:
                life = _open_own(path, os.O_RDWR)
                if not self._claim(life):
                    continue
                memory = FileMemory(_open_own(path, os.O_RDWR))
                if not self._is_whole(name, memory, now):
                    continue
                segment = Segment(
                    memory,
                    window_seconds=self._settings.window_seconds,
                    now=now,
                    owner=this_process(),
                    root=root,
                    fresh=False,
                )
            except (OSError, ValueError):
                continue
            return _Place(name, life, segment)
        return None

    @staticmethod
    def _claim(life: FileHandle) -> bool:
        """Lock a segment, if its worker is dead. A reader that looks at it holds it for µs."""
        for _ in range(100):
            try:
                fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                header = os.pread(life.fileno(), HEADER_BYTES, 0)
                owner = _process(header, Field.PID, Field.PROCESS_START)
                if owner is not None and owner.is_running:
                    return False
                time.sleep(0.001)
            else:
                return True
        return False

    def _is_whole(self, name: str, memory: FileMemory, now: float) -> bool:
        source = OwnSource(memory)
        period = Period(now, self._settings.step)
        try:
            reading = SegmentReading(name, source, period, NEVER, self._settings.window_seconds)
            list(reading.routes())
            list(reading.users(0.0))
        except (CorruptSegmentError, OSError, ValueError, OverflowError):
            return False
        return True

    def _create(self, root: Process, now: float) -> _Place:
        taken = set(os.listdir(self.directory))
        name = next(n for n in map(f"{PREFIX}{{}}".format, count()) if n not in taken)
        draft = self.directory / "new-worker"
        draft.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        life = FileHandle(os.open(draft, flags, 0o600))
        try:
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
            memory = FileMemory(_open_own(str(draft), os.O_RDWR))
            segment = Segment(
                memory,
                window_seconds=self._settings.window_seconds,
                now=now,
                owner=this_process(),
                root=root,
            )
            draft.rename(self.directory / name)
        finally:
            draft.unlink(missing_ok=True)
        return _Place(name, life, segment)

    # --- all segments ----------------------------------------------------------------------------

    def sources(self, complete: bool = False) -> Mapping[str, Source]:
        known = self._sources
        found: dict[str, Source] = {}
        try:
            files = _segment_files(self.directory)
        except OSError as error:  # moved away, not to be entered any more, no descriptor left
            if complete:
                raise
            found = {name: source for name, (_, source) in known.items()}
            found[self.name] = OwnSource(self.segment.memory)
            found[self.directory.name] = _Unreadable(error)
            return found
        opened = {}
        for name, status in files.items():
            if name == self.name and status.st_ino == self._inode:
                found[name] = OwnSource(self.segment.memory)
                continue
            identity = status.st_ino, status.st_uid
            before, source = known.get(name, (None, None))
            if source is None or before != identity:
                try:
                    source = _FileSource(str(self.directory / name))
                except FileNotFoundError:
                    continue
                except OSError as error:  # tried again at the next read
                    if complete and _is_own(status):
                        raise
                    found[name] = _Unreadable(error)
                    continue
            opened[name] = identity, source
            found[name] = source
        self._sources = opened
        return found

    # --- what all share --------------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        if not self._thread_lock.acquire(blocking=wait):
            yield False
            return
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            self._thread_lock.release()

    @property
    def reset(self) -> Reset:
        try:
            return self._last_reset()
        except OSError:
            return self._reset[1]  # lest what was counted before it come back

    def _last_reset(self) -> Reset:
        """What the file says. Raises OSError where there was a reset that cannot be read now."""
        seen, known = self._reset
        try:
            status = os.stat(self._reset_path, follow_symlinks=False)
        except FileNotFoundError:
            if known is NEVER:
                return NEVER
            raise
        now = status.st_ino, status.st_mtime_ns
        if now != seen:
            known = self._read_reset()
            self._reset = now, known
        return known

    def _read_reset(self) -> Reset:
        fd = _open_own(self._reset_path, os.O_RDONLY)
        try:
            with open(fd.fileno(), "rb", closefd=False) as file:
                data = zlib.decompress(file.read())  # which has a checksum
        except zlib.error as error:  # somebody else wrote there
            raise OSError(errno.EIO, "damaged") from error
        at, number = RESET_HEADER.unpack_from(data)
        states = {}
        place = RESET_HEADER.size
        for _ in range(number):
            nonce, offset, size = RESET_ENTRY.unpack_from(data, place)
            place += RESET_ENTRY.size
            states[nonce, offset] = int.from_bytes(data[place : place + size], "little")
            place += size
        return Reset(at, states)

    def write_reset(self, reset: Reset) -> None:
        data = bytearray(RESET_HEADER.pack(reset.at, len(reset.states)))
        for (nonce, offset), state in reset.states.items():
            raw = state.to_bytes(-(-state.bit_length() // 8), "little")
            data += RESET_ENTRY.pack(nonce, offset, len(raw)) + raw
        draft = self.directory / "new-reset"
        try:
            draft.write_bytes(zlib.compress(data, 1))
            # Resets follow each other within a tick of the file system's clock, and a file may have
            # the number of an earlier one: its time tells them apart.
            os.utime(draft, ns=(0, int(reset.at * 1e9)))
            draft.replace(self._reset_path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise

    def problems(self) -> list[str]:
        found = [f"{name} was replaced" for name in self._shared if not self._in_place(name)]
        try:
            self._last_reset()
        except OSError:
            found.append("the last reset cannot be read")
        if damaged := self.history.damaged():
            found.append(f"minutes of the history left out: {damaged}")
        return found

    def _in_place(self, name: str) -> bool:
        """Whether a shared file is still the one that those who join will open."""
        try:
            status = os.stat(self.directory / name, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(status, os.fstat(self._shared[name].fileno()))

    def close(self) -> None:
        if self.segment.is_whole:
            self.segment.zero_gauges()
        self.forget()

    def forget(self) -> None:
        self._sources = {}
        self._life.close()


def _remove_dead_servers(base: Path) -> None:
    """Remove the directories of servers whose root and workers have all ended."""
    for entry in os.scandir(base):
        pid, _, start = entry.name.partition("-")
        if not (pid.isdecimal() and start.isdecimal() and entry.is_dir(follow_symlinks=False)):
            continue
        try:
            if Process(int(pid), int(start)).is_running or _is_in_use(entry.path):
                continue
        except OSError:
            continue  # it cannot be told
        _remove_tree(entry.path)


def _remove_tree(path: str) -> None:
    from shutil import rmtree  # here, as it loads the compressors

    rmtree(path, ignore_errors=True)


def _is_in_use(directory: str | Path) -> bool:
    """Whether a worker with a segment there lives, or its master. Raises OSError where one may be
    there that cannot be looked at now."""
    for name, status in _segment_files(directory).items():
        if not _is_own(status):
            continue
        try:
            source = _FileSource(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        root = _process(source.read(0, HEADER_BYTES), Field.ROOT_PID, Field.ROOT_START)
        if source.alive or (root is not None and root.is_running):
            return True
    return False
