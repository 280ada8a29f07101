"""The workers of one server: where their segments lie, who is alive, and what they share.

`PrivateGroup` is a process alone. `SharedGroup` is a directory that only its owner can enter:

    worker-N   the segment of a worker, which holds an exclusive flock on it for its life
    reset      the states of all tables at the last reset; replaced as a whole
    history    the minute history
    lock       its flock is held by whoever adopts a segment, resets, or writes the history

The kernel drops a dead worker's flock, also after SIGKILL, and pid reuse cannot bring it back:
so a lock tells who is alive. A new worker adopts a dead one's segment, whose counts go on; there
are never more files than workers that lived at once. Nothing here runs in the background.

What is locked is another opening of the file than what is mapped: a mapping keeps its own open
until the last view of it is gone, and a forked child can lose track of views that other threads
of its parent had in hand. It would keep the lock of a worker that has died.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, Protocol
from zlib import crc32

from metricsmw.config import Settings
from metricsmw.descriptor import Descriptor
from metricsmw.history import FileBytes, History, MemoryBytes
from metricsmw.merge import NEVER, DamagedError, Period, Reset, SegmentReading, Source
from metricsmw.segment import HEADER_BYTES, AnonymousMemory, Field, FileMemory, Memory, Segment
from metricsmw.server import Process, root_process, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Mode = Literal["private", "shared"]

PREFIX = "worker-"
RESET_CHECK = struct.Struct("<I")
RESET_HEADER = struct.Struct("<dQ")
RESET_ENTRY = struct.Struct("<QQQ")


class Group(Protocol):
    """What a monitor needs of the place where its server's segments lie."""

    mode: Mode
    reason: str
    history: History
    segment: Segment

    @property
    def reset(self) -> Reset:
        """The last reset of the server."""

    def sources(self) -> Mapping[str, Source]:
        """The segments of all workers, dead ones included, by name."""

    def write_reset(self, reset: Reset) -> None: ...

    def exclusive(self, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Hold the server's lock; yields whether it is held. Never waits unless told to."""

    def close(self) -> None:
        """Leave the group: gauges go, counts stay."""

    def forget(self) -> None:
        """Let go of a segment that is lost, or in a forked child the parent's; change nothing."""


class _OwnSource:
    """This process's own segment, read through its own memory."""

    alive = True

    def __init__(self, memory: Memory) -> None:
        self.read = memory.read


class PrivateGroup:
    """A process alone."""

    mode: Mode = "private"

    def __init__(self, settings: Settings, reason: str, created: float) -> None:
        self.reason = reason
        self.history = History(MemoryBytes(), settings.max_history_minutes)
        self._thread_lock = threading.Lock()
        self.reset: Reset = NEVER
        me = this_process()
        self.segment = Segment(
            AnonymousMemory(), window_seconds=settings.window_seconds, now=created, owner=me
        )

    def sources(self) -> Mapping[str, Source]:
        return {"own": _OwnSource(self.segment.memory)}

    def write_reset(self, reset: Reset) -> None:
        self.reset = reset

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        held = self._thread_lock.acquire(blocking=wait)
        try:
            yield held
        finally:
            if held:
                self._thread_lock.release()

    def close(self) -> None:
        self.segment.silence()

    def forget(self) -> None:
        pass


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


def _open_own(path: str, flags: int) -> Descriptor:
    """Open a regular file that belongs to this user, following no link. Raises OSError."""
    file = Descriptor(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError("not a regular file of this user")
    return file


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
        raise PermissionError(f"{path} must be a directory that only its owner can enter")


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
    life: Descriptor
    segment: Segment


class SharedGroup:
    """A server's directory, and this worker's place in it. Raises OSError where it cannot be."""

    mode: Mode = "shared"

    def __init__(self, settings: Settings, now: float) -> None:
        if fcntl is None:
            raise OSError("this platform has no file locks")
        self._settings = settings
        # With the file's inode and owner, as a name may come to stand for another file.
        self._sources: dict[str, tuple[tuple[int, int], _FileSource | _Unreadable]] = {}
        self._sources_lock = threading.Lock()
        # The flock is the process's; this keeps its threads apart.
        self._thread_lock = threading.Lock()
        self._reset = NEVER
        self._reset_seen = (0, 0)
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
        self._pid = os.getpid()
        self._lock = self._open_shared("lock")
        with self.exclusive(wait=True):
            if by_hand:
                self._clear_if_dead()
            self._history_file = self._open_shared("history")
            self.history = History(FileBytes(self._history_file), settings.max_history_minutes)
            place = self._adopt(root, now) or self._create(root, now)
        self.name, self._life, self.segment = place
        self._inode = os.fstat(self._life.fileno()).st_ino

    def _open_shared(self, name: str) -> Descriptor:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        return Descriptor(os.open(self.directory / name, flags, 0o600))

    # --- this worker's segment -------------------------------------------------------------------

    def _files(self) -> list[str]:
        return sorted(
            (entry.name for entry in os.scandir(self.directory) if entry.name.startswith(PREFIX)),
            key=lambda name: (len(name), name),
        )

    def _clear_if_dead(self) -> None:
        """Start clean where all that is there belongs to servers that have ended."""
        for name in self._files():
            try:
                source = _FileSource(str(self.directory / name))
            except OSError:
                continue
            root = _process(source.read(0, HEADER_BYTES), Field.ROOT_PID, Field.ROOT_START)
            if source.alive or (root is not None and root.is_running):
                return
        for entry in os.scandir(self.directory):
            if entry.name.startswith((PREFIX, "once-")) or entry.name in ("reset", "history"):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)

    def _adopt(self, root: Process, now: float) -> _Place | None:
        """Take over the segment of a worker that has died."""
        for name in self._files():
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
    def _claim(life: Descriptor) -> bool:
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
        source = _OwnSource(memory)
        period = Period(now, self._settings.step)
        try:
            reading = SegmentReading(name, source, period, NEVER, self._settings.window_seconds)
            list(reading.routes())
            list(reading.users(0.0))
        except (DamagedError, OSError, ValueError, OverflowError):
            return False
        return True

    def _create(self, root: Process, now: float) -> _Place:
        taken = set(os.listdir(self.directory))
        name = next(n for n in map(f"{PREFIX}{{}}".format, count()) if n not in taken)
        draft = self.directory / "new-worker"
        draft.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        life = Descriptor(os.open(draft, flags, 0o600))
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

    def sources(self) -> Mapping[str, Source]:
        found: dict[str, Source] = {}
        try:
            entries = list(os.scandir(self.directory))
        except OSError as error:  # moved away, or not to be entered any more
            own = _OwnSource(self.segment.memory)
            return {self.name: own, self.directory.name: _Unreadable(error)}
        with self._sources_lock:
            for entry in entries:
                name = entry.name
                if not name.startswith(PREFIX):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if name == self.name and status.st_ino == self._inode:
                    found[name] = _OwnSource(self.segment.memory)
                    continue
                identity = status.st_ino, status.st_uid
                before, source = self._sources.get(name, (None, None))
                if source is None or before != identity:
                    try:
                        source = _FileSource(entry.path)
                    except OSError as error:
                        source = _Unreadable(error)
                    self._sources[name] = identity, source
                found[name] = source
            for name in self._sources.keys() - found.keys():
                del self._sources[name]
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
            status = os.stat(self._reset_path, follow_symlinks=False)
        except OSError:
            return NEVER
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._reset_seen:
            self._reset = self._read_reset()
            self._reset_seen = seen
        return self._reset

    def _read_reset(self) -> Reset:
        try:
            fd = _open_own(self._reset_path, os.O_RDONLY)
            with open(fd.fileno(), "rb", closefd=False) as file:
                check, data = file.read(RESET_CHECK.size), file.read()
        except OSError:
            return NEVER
        if len(data) < RESET_HEADER.size or check != RESET_CHECK.pack(crc32(data)):
            return NEVER  # somebody else wrote there
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
        draft.write_bytes(RESET_CHECK.pack(crc32(data)) + data)
        # Resets follow each other within a tick of the file system's clock, and a file may have
        # the number of an earlier one: its time tells them apart.
        os.utime(draft, ns=(0, int(reset.at * 1e9)))
        draft.replace(self._reset_path)

    def close(self) -> None:
        if self.segment.is_whole:
            self.segment.silence()
        self.forget()

    def forget(self) -> None:
        self._sources.clear()
        self._life.close()
        if self._pid != os.getpid():
            # In a fork there is no other thread that could use them, nor any to let go of them.
            self._lock.close()
            self._history_file.close()
            self.segment.memory.close()


def _remove_dead_servers(base: Path) -> None:
    """Remove the directories of servers whose root and workers have all ended."""
    for entry in os.scandir(base):
        pid, _, start = entry.name.partition("-")
        if not (pid.isdecimal() and start.isdecimal() and entry.is_dir(follow_symlinks=False)):
            continue
        if Process(int(pid), int(start)).is_running or _has_live_worker(entry.path):
            continue
        from shutil import rmtree  # here, as it loads the compressors

        rmtree(entry.path, ignore_errors=True)


def _has_live_worker(directory: str) -> bool:
    try:
        paths = [entry.path for entry in os.scandir(directory) if entry.name.startswith(PREFIX)]
    except OSError:
        return False
    for path in paths:
        try:
            if _FileSource(path).alive:
                return True
        except OSError:
            continue
    return False
