"""`SharedGroup`: the directory of a server's workers, and this worker's part in it.

Only its owner can enter the directory (`directories` says where it is and when it goes):

    worker-N   the segment of a worker, which holds an exclusive flock on it for its life
    reset      the states of all tables at the last reset; replaced as a whole
    history-M  the minute history of the workers that keep M minutes
    lock       its flock is held by the worker that adopts a segment, resets, or writes the history

The kernel drops a dead worker's flock, also after SIGKILL, and pid reuse cannot bring it back. So a
worker is alive while its segment is locked, in whatever namespace it is. A new worker adopts the
segment of a dead one, whose counts go on: there are never more files than workers that lived at
once. Nothing here runs in the background. Each record of a new step and each read renews the times
of the files in use, because cleaners remove files that look unused.

The flock is on a second descriptor, not the mapped one. A mapping keeps its descriptor open until
the last view of it is gone, and in a forked child a view of another thread of the parent may never
go: the child would keep the lock of a worker that has died.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

from metricsmw.config import Settings
from metricsmw.engine.files import FileHandle, copies_on_write, forbid_copy_on_write, open_own
from metricsmw.engine.fork import on_fork
from metricsmw.engine.storage.memory import FileMemory
from metricsmw.engine.storage.minutes import FileBytes, History
from metricsmw.engine.storage.reader import (
    NEVER,
    Period,
    Reset,
    SegmentReading,
    SegmentSource,
)
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.storage.tables import CorruptSegmentError
from metricsmw.engine.workers.directories import (
    LOCK,
    SEGMENT,
    choose_place,
    clear,
    is_in_use,
    is_locked,
    is_of_this_clock,
    is_own,
    is_path_locked,
    making,
    open_shared,
    read_header,
    remove,
    segment_files,
    segment_names,
    this_owner,
)
from metricsmw.engine.workers.group import Mode, OwnSource, Savings
from metricsmw.engine.workers.processes import find_root
from metricsmw.engine.workers.resets import ResetFile
from metricsmw.engine.workers.sources import Sources, Unreadable
from metricsmw.engine.workers.surroundings import HERE, Surroundings
from metricsmw.engine.workers.usage import OwnUsage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CAN_SHARE = fcntl is not None
RENEW_SECONDS = 60.0


class _Berth(NamedTuple):
    """This worker's segment, its file's name, and the descriptor that holds the flock."""

    name: str
    life: FileHandle
    segment: Segment


class SharedGroup:
    """A server's directory, and this worker's place in it.

    Args:
        settings: The monitor's.
        clock: Returns monotonic seconds.
        savings: The counts of a private worker, to go on with.
        here: The system's facts about this process.

    Raises:
        OSError: There is no room, no permission or no descriptor for it now.
    """

    mode: Mode = "shared"
    failed = False

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        savings: Savings | None = None,
        here: Surroundings = HERE,
    ) -> None:
        if fcntl is None:
            raise OSError("this platform has no file locks")
        self._settings = settings
        self._clock = clock
        self._here = here
        now = clock()
        # The flock is the process's; this keeps its threads apart.
        self._thread_lock = threading.Lock()
        self._place = choose_place(here=here)
        self.reason = self._place.reason
        self.directory = self._place.directory
        self._renewed = now
        self._shared: dict[str, FileHandle] = {}
        self._owner = this_owner(here)
        self._usage = OwnUsage(here)
        with making(self._place, here):
            if copies_on_write(self.directory):
                raise OSError(errno.ENOTSUP, "the file system copies on write")
            # Cleaners such as systemd's pass by a directory that somebody has locked.
            self._directory_lock = FileHandle(os.open(self.directory, os.O_RDONLY))
            with contextlib.suppress(OSError):
                fcntl.flock(self._directory_lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._lock = self._open_shared(LOCK)
            self._resets = ResetFile(self.directory)
            self._sources = Sources(self.directory, here)
            with self.exclusive(wait=True):
                self._enter(now, savings)
        _open_groups.add(self)

    def _enter(self, now: float, savings: Savings | None) -> None:
        """Take a place in the directory; with the server's lock held."""
        if not is_of_this_clock(self.directory, now, self._here) or (
            self._place.by_hand and not is_in_use(self.directory, now, self._here)
        ):
            clear(self.directory)
        minutes = self._settings.max_history_minutes
        name = f"history-{minutes}"
        is_new = not os.path.lexists(self.directory / name)
        file = self._open_shared(name)
        if is_new:
            forbid_copy_on_write(file)
        self.history = History(FileBytes(file), minutes)
        if is_new:  # another one without an origin has been damaged
            self.history.start(now)
        berth = None if savings is not None else self._adopt(now)
        self.name, self._life, self.segment = berth or self._create(now, savings)
        self._inode = os.fstat(self._life.fileno()).st_ino
        self._usage.note(self.segment.header, now)

    def _open_shared(self, name: str) -> FileHandle:
        file = open_shared(self.directory / name)
        self._shared[name] = file
        return file

    # --- this worker's segment -------------------------------------------------------------------

    def _adopt(self, now: float) -> _Berth | None:
        """Take over the segment of a worker that has died."""
        for name in segment_names(self.directory):
            path = f"{self.directory}/{name}"
            if is_path_locked(path):
                continue
            try:
                life = open_own(path, os.O_RDWR)
                if not self._claim(life):
                    continue
                header = read_header(life)
                if header is not None and not header.has_this_clock(now, self._here):
                    os.unlink(path)  # no worker can go on with it
                    continue
                memory = FileMemory(open_own(path, os.O_RDWR))
                if not self._is_whole(name, memory, now):
                    continue
                segment = Segment(
                    memory,
                    window_seconds=self._settings.window_seconds,
                    now=now,
                    owner=self._owner,
                    fresh=False,
                )
            except (OSError, ValueError):
                continue
            return _Berth(name, life, segment)
        return None

    @staticmethod
    def _claim(life: FileHandle) -> bool:
        """Lock a segment, if its worker is dead. A reader that tests the lock holds it for µs."""
        for _ in range(100):
            try:
                fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_locked(life):  # not by a reader, whose lock is shared
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

    def _create(self, now: float, savings: Savings | None) -> _Berth:
        taken = set(os.listdir(self.directory))
        name = next(n for n in map(f"{SEGMENT}{{}}".format, count()) if n not in taken)
        draft = self.directory / "new-worker"
        draft.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        life = FileHandle(os.open(draft, flags, 0o600))
        try:
            forbid_copy_on_write(life)
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
            memory = FileMemory(open_own(str(draft), os.O_RDWR))
            if savings is not None:
                memory.fill(savings.data)
                self._keep_resets(savings)
            segment = Segment(
                memory,
                window_seconds=self._settings.window_seconds,
                now=now,
                owner=self._owner,
                fresh=savings is None,
            )
            draft.rename(self.directory / name)
        finally:
            draft.unlink(missing_ok=True)
        return _Berth(name, life, segment)

    def _keep_resets(self, savings: Savings) -> None:
        """Save a reset for the copied tables: counts from before it must not come back."""
        last = self._resets.last
        states = savings.states if last.at >= savings.since else savings.reset.states
        if states:
            self._resets.write(Reset(last.at, {**last.states, **states}))

    # --- all segments ----------------------------------------------------------------------------

    def sources(self, complete: bool = False) -> Mapping[str, SegmentSource]:
        """See `Group`."""
        own = OwnSource(self.segment.memory)
        try:
            return self._sources.find((self.name, self._inode), own, self._clock(), complete)
        except OSError as error:  # the directory is gone or closed, or no descriptor is left
            if complete:
                raise
            return {
                **self._sources.known,
                self.name: own,
                self.directory.name: Unreadable(error),
            }

    # --- what all share --------------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        """See `Group`. The flock is the process's; a lock of its own keeps its threads apart."""
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
        """See `Group`."""
        return self._resets.last

    def write_reset(self, reset: Reset) -> None:
        """See `Group`."""
        self._resets.write(reset)

    def renew(self, now: float) -> None:
        """See `Group`. Files are renewed once a minute, before a cleaner takes them for unused."""
        self._usage.note(self.segment.header, now)
        if now - self._renewed < RENEW_SECONDS:
            return
        self._renewed = now
        with contextlib.suppress(OSError):
            for file in (self._life, self._directory_lock, *self._shared.values()):
                os.utime(file.fileno())
            self._resets.renew()
            if not self._place.by_hand:
                os.utime(self.directory.parent.parent / LOCK)

    def problems(self) -> list[str]:
        """See `Group`."""
        found = [f"{name} was replaced" for name in self._shared if not self._in_place(name)]
        try:
            self._resets.read()
        except OSError:
            found.append("the last reset cannot be read")
        if damaged := self.history.damaged():
            found.append(f"minutes of the history left out: {damaged}")
        if self._place.problem:
            found.append(self._place.problem)
        return found

    def _in_place(self, name: str) -> bool:
        """Return whether a shared file is still the one that joining workers will open."""
        try:
            status = os.stat(self.directory / name, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(status, os.fstat(self._shared[name].fileno()))

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """See `Group`. The gauges of a segment that is lost are left alone."""
        if self.segment.is_whole:
            self.segment.zero_gauges()
        self.release()

    def release(self) -> None:
        """See `Group`. The kernel drops the flock, by which others see that the worker has gone."""
        self._sources.close()
        self._life.close()
        self._directory_lock.close()
        _open_groups.discard(self)

    def remove_if_last(self) -> None:
        """Remove the directory, if with this process the server ends; not one named by hand."""
        if self._place.by_hand:
            return
        with self.exclusive(wait=False) as held:
            if not held or self._is_kept():
                return
            self._life.close()
            remove(self._place)

    def _is_kept(self) -> bool:
        """Return whether another process uses the directory, or keeps it for later workers."""
        guardian = find_root(self._here).process
        if guardian.pid != os.getpid() and guardian.is_running(self._here):
            return True
        others = (
            open_own(str(self.directory / name), os.O_RDONLY)
            for name, status in segment_files(self.directory).items()
            if name != self.name and is_own(status)
        )
        return any(map(is_locked, others))


# The open groups of this process.
_open_groups: weakref.WeakSet[SharedGroup] = weakref.WeakSet()
_is_ending = False


def is_ending() -> bool:
    """Return whether the program ends: nothing is opened any more."""
    return _is_ending


def _at_exit() -> None:
    """Remove the directory of a program that ends and was alone in its server."""
    global _is_ending
    _is_ending = True
    for group in list(_open_groups):
        with contextlib.suppress(Exception):
            group.remove_if_last()


atexit.register(_at_exit)
on_fork(_open_groups.clear)
