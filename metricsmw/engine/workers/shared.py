"""`SharedGroup`: the directory of a server's workers, and this worker's part in it.

Only its owner can enter the directory (`directories` says where it is and when it goes):

    worker-N   the segment of a worker, which holds an exclusive flock on it for its life
    token      what lets in where nobody has set a token; `token`
    reset      the states of all tables at the last reset; replaced as a whole
    events     what happened to the server; replaced as a whole, as `sightings` of the workers is
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
from math import inf
from typing import NamedTuple

from metricsmw.config import Settings
from metricsmw.engine.directory import Directory, open_directory
from metricsmw.engine.files import FileHandle, copies_on_write, forbid_copy_on_write
from metricsmw.engine.fork import on_fork
from metricsmw.engine.storage.layout import Field
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
from metricsmw.engine.storage.tables import READ_ERRORS
from metricsmw.engine.workers.directories import (
    HELD,
    LOCK,
    SEGMENT,
    Place,
    choose_places,
    clear,
    is_in_use,
    is_inhabited,
    is_lasting,
    is_locked,
    is_name_locked,
    is_of_this_clock,
    lock_within,
    making,
    open_shared,
    read_header,
    remove,
    remove_own,
    segment_names,
    this_owner,
)
from metricsmw.engine.workers.events import note_leaving
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
# A process that is stopped (SIGSTOP) keeps its locks: whoever waits for one gives up then.
WAIT_SECONDS = 5.0
# A segment that is being made, with the server's lock held.
DRAFT = "new-worker"


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
        patience: Seconds to wait for a lock that another process holds; None: `WAIT_SECONDS`.

    Raises:
        OSError: There is no room, no permission or no descriptor for it now.
    """

    mode: Mode = "shared"
    failed = False
    directory: Directory

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        savings: Savings | None = None,
        here: Surroundings = HERE,
        patience: float | None = None,
    ) -> None:
        if fcntl is None:
            raise OSError("this platform has no file locks")
        self._settings = settings
        self._clock = clock
        self._here = here
        now = clock()
        # The flock is the process's; this keeps its threads apart.
        self._thread_lock = threading.Lock()
        self._patience = WAIT_SECONDS if patience is None else patience
        self._denied_since = inf  # monotonic time since when the server's lock could not be had
        self._renewed = now
        self._owner = this_owner(here)
        self._usage = OwnUsage(here)
        self._places = choose_places(here=here)
        preferred, why = self._places[0], ""
        if len(self._places) > 1:  # where a worker of this server lives, the others go, too
            self._places = sorted(self._places, key=is_inhabited, reverse=True)
        for place in self._places:
            try:
                self._join(place, now, savings)
            except OSError as error:
                if place is self._places[-1] or is_inhabited(place):
                    raise
                why = f", as of the first: {error.strerror or error}"
                continue
            break
        self.reason = place.reason
        if place is not preferred:
            self.reason += f", in the second place{why}"
        _open_groups.add(self)

    def _join(self, place: Place, now: float, savings: Savings | None) -> None:
        """Join the workers of a place. Raises OSError."""
        self._place = place
        self._shared: dict[str, FileHandle] = {}
        with making(place, self._patience, self._here) as self.directory:
            if copies_on_write(self.directory.path):
                raise OSError(errno.ENOTSUP, "the file system copies on write")
            # Cleaners such as systemd's pass by a directory that somebody has locked.
            with contextlib.suppress(OSError):
                fcntl.flock(self.directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._lock = self._open_shared(LOCK)
            self._resets = ResetFile(self.directory, self._clock)
            self._sources = Sources(self.directory, self._here)
            with self.exclusive(wait=True):
                self._enter(now, savings)

    def _enter(self, now: float, savings: Savings | None) -> None:
        """Take a place in the directory; with the server's lock held."""
        if not is_of_this_clock(self.directory, now, self._here) or (
            self._place.by_hand and not is_in_use(self.directory, now, self._here)
        ):
            clear(self.directory)
        minutes = self._settings.max_history_minutes
        name = f"history-{minutes}"
        is_new = name not in self.directory.files(name)
        file = self._open_shared(name)
        if is_new:
            forbid_copy_on_write(file)
        self.history = History(FileBytes(file), minutes)
        if is_new:  # another one without an origin has been damaged
            self.history.start(now)
        berth = None if savings is not None else self._adopt(now)
        self.name, self._life, self.segment = berth or self._create(now, savings)
        self._inode = os.fstat(self._life.fileno()).st_ino
        self.segment.header[Field.USER_TIMEOUT] = float(self._settings.user_timeout_seconds)
        self.segment.header[Field.MAX_ROUTES] = float(self._settings.max_routes)
        self._usage.note(self.segment.header, now)

    def _open_shared(self, name: str) -> FileHandle:
        file = open_shared(self.directory, name)
        self._shared[name] = file
        return file

    # --- this worker's segment -------------------------------------------------------------------

    def _adopt(self, now: float) -> _Berth | None:
        """Take over the segment of a worker that has died."""
        for name in segment_names(self.directory):
            if is_name_locked(self.directory, name):
                continue
            try:
                life = self.directory.open(name, os.O_RDWR)
                if not self._claim(life):
                    continue
                header = read_header(life)
                if header is not None and not header.has_this_clock(now, self._here):
                    self.directory.remove(name)  # no worker can go on with it
                    continue
                memory = FileMemory(self.directory.open(name, os.O_RDWR), self.directory)
                if not self._is_whole(name, memory, now):
                    continue
                segment = Segment(
                    memory,
                    window_seconds=self._settings.window_seconds,
                    now=now,
                    owner=self._owner,
                    fresh=False,
                )
            except READ_ERRORS:
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
        except READ_ERRORS:
            return False
        return True

    def _create(self, now: float, savings: Savings | None) -> _Berth:
        directory = self.directory
        taken = set(directory.names())
        name = next(n for n in map(f"{SEGMENT}{{}}".format, count()) if n not in taken)
        directory.remove(DRAFT)
        life = directory.open(DRAFT, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            forbid_copy_on_write(life)
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
            memory = FileMemory(directory.open(DRAFT, os.O_RDWR), directory)
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
            directory.rename(DRAFT, name)
        finally:
            directory.remove(DRAFT)
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
                self.directory.path.name: Unreadable(error),
            }

    # --- what all share --------------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        """See `Group`. The flock is the process's; a lock of its own keeps its threads apart."""
        held = self._acquire(self._patience if wait else 0.0)
        if held:
            self._denied_since = inf
        elif self._denied_since == inf:
            self._denied_since = self._clock()
        if wait and not held:
            raise TimeoutError(errno.ETIMEDOUT, HELD)
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):  # it was closed, and with it unlocked
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                self._thread_lock.release()

    def _acquire(self, seconds: float) -> bool:
        """Take both locks within so many seconds; return whether that went."""
        if not self._thread_lock.acquire(timeout=seconds):
            return False
        try:
            lock_within(self._lock, fcntl.LOCK_EX, seconds)
        except BaseException as error:
            self._thread_lock.release()
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def _is_denied(self) -> bool:
        """Return whether the server's lock has not been had for long, and still is not."""
        if self._clock() - self._denied_since < WAIT_SECONDS:
            return False
        with self.exclusive(wait=False) as held:
            return not held

    @property
    def reset(self) -> Reset:
        """See `Group`."""
        return self._resets.last

    def write_reset(self, reset: Reset) -> None:
        """See `Group`."""
        self._resets.write(reset)

    def renew(self, now: float) -> None:
        """See `Group`. Files are renewed once a minute, before a cleaner takes them for unused."""
        self.directory.look()
        self._usage.note(self.segment.header, now)
        if now - self._renewed < RENEW_SECONDS:
            return
        self._renewed = now
        with contextlib.suppress(OSError):
            # Those of dead workers, too, whose counts go on; a history only where it is kept here.
            self.directory.renew(lambda name: name in self._shared or is_lasting(name))
            if not self._place.by_hand:
                open_directory(self._place.directory.parent.parent).renew(lambda name: name == LOCK)

    def problems(self) -> list[str]:
        """See `Group`."""
        found = [f"{name} was replaced" for name in self._shared if not self._in_place(name)]
        if not self.directory.is_found:
            found.append("the directory is not where joining workers look for it")
        try:
            self._resets.read()
        except OSError:
            found.append("the last reset cannot be read")
        if damaged := self.history.damaged():
            found.append(f"minutes of the history left out: {damaged}")
        if self._is_denied():
            found.append(HELD)
        if self._place.problem:
            found.append(self._place.problem)
        if any(place is not self._place and is_inhabited(place) for place in self._places):
            found.append("other workers of this server have their files in another place")
        return found

    def _in_place(self, name: str) -> bool:
        """Return whether a shared file is still the one that joining workers will open."""
        with contextlib.suppress(OSError):
            known = os.fstat(self._shared[name].fileno())
            return os.path.samestat(self.directory.status(name), known)
        return False

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """See `Group`. The gauges of a segment that is lost are left alone."""
        if self.segment.is_whole:
            self.segment.zero_gauges()
        note_leaving(self)
        self.release()

    def release(self) -> None:
        """See `Group`. The kernel drops the flock, by which others see that the worker has gone."""
        self._sources.close()
        self._life.close()
        _open_groups.discard(self)

    def remove_if_last(self) -> None:
        """Remove the directory, if with this process the server ends; not one named by hand."""
        if not self._place.by_hand:
            with self.exclusive(wait=False) as held:
                if held and not self._is_kept():
                    self._life.close()
                    remove(self._place)
                    return
        note_leaving(self)

    def _is_kept(self) -> bool:
        """Return whether another process uses the directory, or keeps it for later workers."""
        guardian = find_root(self._here).process
        if guardian.pid != os.getpid() and guardian.is_running(self._here):
            return True
        names = set(segment_names(self.directory)) - {group.name for group in _open_groups}
        return any(is_name_locked(self.directory, name) for name in names)


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
    for end in (*(group.remove_if_last for group in list(_open_groups)), remove_own):
        with contextlib.suppress(Exception):
            end()


atexit.register(_at_exit)
on_fork(_open_groups.clear)
