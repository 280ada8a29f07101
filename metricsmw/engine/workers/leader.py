"""Leader election for one job of the server, and the job's note.

`LeaderLock` is a worker's part in a job, known by the job's name. One worker leads: it holds the
flock of ``once-<name>.lock`` in the server's directory until it stops or dies, and then another
may lead. Only the leader writes the note ``once-<name>.json``, always as a whole, so that the next
leader goes on where this one stood; every worker may read it. A private monitor leads by itself,
in memory.

A leader may also hang: stopped, swapped out, or in a C call. Its lock is then held for ever. So a
leader with a thread writes a deadline into its lock file, on the machine's monotonic clock, and
moves it on with each run. Once the deadline has passed, another worker puts a lock file of its
own in its place. The old leader then holds a file without a name. It checks for that before it
writes a note or sends an alert, and leads no more.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from metricsmw.engine.directory import Directory
from metricsmw.engine.files import FileHandle
from metricsmw.engine.workers.directories import is_locked
from metricsmw.engine.workers.membership import ServerMember
from metricsmw.engine.workers.notes import (
    CorruptNoteError,
    Note,
    note_text,
    parse_note,
    read_note,
)

try:
    import fcntl
except ImportError:  # Windows, where every monitor is private
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("metricsmw")

NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
LOCK_FILE = re.compile(r"once-([a-z][a-z0-9_]*)\.lock")
NOTE_FILE = re.compile(r"once-([a-z][a-z0-9_]*)\.json")
# The latest deadline that a leader writes, in seconds from now; a later one is damage.
MAX_DEADLINE = 3 * 86_400.0


class LeaderLock:
    """This worker's part in one job of its server.

    Args:
        member: This process as a worker of the server.
        name: The job's name, up to 41 letters in lower case, digits and underscores.
        monotonic: The machine's monotonic clock, in seconds, on which deadlines are.

    Raises:
        ValueError: The name is another.
    """

    def __init__(
        self, member: ServerMember, name: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"name must be up to 41 letters in lower case, digits and underscores, got {name!r}"
            )
        self.name = name
        self.terms = 0
        """How often this worker has become the leader."""
        self._member = member
        self._monotonic = monotonic
        self._file: FileHandle | None = None
        self._place: tuple[int, int] | None = None  # the directory's identity
        self._lock = threading.Lock()

    def acquire(self) -> bool:
        """Take the lead, where no worker leads or the leader hangs.

        Returns:
            Whether this worker leads.

        Raises:
            OSError: The server's directory cannot be used.
        """
        directory = self._member.shared_directory
        with self._lock:
            if self._holds(directory):
                return True
            self._drop()
            if directory is None:
                leaders = self._member.jobs.leaders
                if leaders.setdefault(self.name, self) is not self:
                    return False
                self._member.jobs.deadlines.pop(self.name, None)
            else:
                file = self._lock_file(directory)
                if file is None:
                    return False
                os.ftruncate(file.fileno(), 0)
                self._file, self._place = file, directory.identity
            self.terms += 1
            return True

    def _lock_file(self, directory: Directory) -> FileHandle | None:
        """Return the lock file, locked; None where another worker leads."""
        name = f"once-{self.name}.lock"
        file = directory.open(name, os.O_RDWR | os.O_CREAT)
        if _try_lock(file):
            return file if _is_named(file) else None
        if not self._is_late(file):
            return None
        # One worker at a time: the second one finds the first one's lock, which is not late.
        turn = directory.open(f"once-{self.name}.turn", os.O_RDWR | os.O_CREAT)
        if not _try_lock(turn):
            return None
        file = directory.open(name, os.O_RDWR | os.O_CREAT)
        if _try_lock(file):
            return file
        if not self._is_late(file):
            return None
        draft = f"new-{name}"
        directory.remove(draft)
        file = directory.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        _try_lock(file)
        directory.rename(draft, name)
        logger.warning("metricsmw: the worker that leads %s hangs; this one takes over", self.name)
        return file

    def _is_late(self, file: FileHandle) -> bool:
        return read_deadline(file, self._monotonic()) < self._monotonic()

    @property
    def is_leader(self) -> bool:
        """Whether this worker leads already."""
        if not self._member.is_open:  # `shared_directory` would open it
            return False
        directory = self._member.shared_directory
        with self._lock:
            return self._holds(directory)

    def _holds(self, directory: Directory | None) -> bool:
        if directory is None:
            return self._member.jobs.leaders.get(self.name) is self
        return (
            self._file is not None and self._place == directory.identity and _is_named(self._file)
        )

    def promise(self, seconds: float) -> None:
        """Promise, as the leader, to call this again within so many seconds.

        Raises:
            OSError: The promise cannot be written.
        """
        deadline = self._monotonic() + seconds
        with self._lock:
            if self._file is not None:
                os.pwrite(self._file.fileno(), f"{deadline:020.3f}\n".encode(), 0)
            else:
                self._member.jobs.deadlines[self.name] = deadline

    def release(self) -> None:
        """Release the lead, so that another worker may take it."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # Closed, not unlocked: in a forked child the lock is still the parent's.
            file.close()
        leaders = self._member.jobs.leaders
        if leaders.get(self.name) is self:
            del leaders[self.name]

    def read(self) -> Note:
        """Return the leader's last note; an empty one where there is none.

        Raises:
            CorruptNoteError: The note is damaged.
        """
        return _read(self._member, self.name)

    def write(self, note: Mapping[str, object]) -> bool:
        """Save a note, as the leader, for all workers and for the next leader.

        Returns:
            Whether it was saved; not where another worker has taken the lead.

        Raises:
            OSError: There is no room; the note before is then untouched.
        """
        directory = self._member.shared_directory
        if directory is None:
            if is_leader := self._holds(None):
                self._member.jobs.notes[self.name] = note_text(note)
            return is_leader
        name = f"once-{self.name}.json"
        draft = directory.write_draft(name, note_text(note).encode())
        try:
            with self._lock:
                # Checked last, as this worker may have hung until now.
                if is_leader := self._holds(directory):
                    directory.rename(draft, name)
            return is_leader
        finally:
            with suppress(OSError):
                directory.remove(draft)

    def after_fork(self) -> None:
        """Release the lock file in a forked child, as the lead is the parent's."""
        self._lock = threading.Lock()
        self._drop()


def read_deadline(file: FileHandle, now: float) -> float:
    """Return the deadline in a lock file; infinite where its leader has promised nothing."""
    try:
        deadline = float(file.pread(64, 0) or "inf")
    except (OSError, ValueError):
        return math.inf
    return deadline if 0 <= deadline <= now + MAX_DEADLINE else math.inf


def _is_named(file: FileHandle) -> bool:
    """Return whether a file has still a name; not where another was put in its place."""
    try:
        return os.fstat(file.fileno()).st_nlink > 0
    except OSError:  # closed
        return False


def _try_lock(file: FileHandle) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def saved_notes(member: ServerMember) -> Iterator[tuple[str, Note | CorruptNoteError]]:
    """Yield the name of every job of the server that has a note, and the note or its damage."""
    for name in _names(member, NOTE_FILE, member.jobs.notes):
        try:
            yield name, _read(member, name)
        except CorruptNoteError as error:
            yield name, error


def _read(member: ServerMember, name: str) -> Note:
    directory = member.shared_directory
    if directory is None:
        return parse_note(member.jobs.notes.get(name, ""))
    return read_note(directory, f"once-{name}.json")


def _names(
    member: ServerMember, pattern: re.Pattern[str], in_memory: Mapping[str, object]
) -> list[str]:
    directory = member.shared_directory
    if directory is None:
        return sorted(in_memory)
    try:
        found = directory.names()
    except OSError:  # removed, or no descriptor left; `Group.problems` reports it
        found = []
    return sorted(match[1] for name in found if (match := pattern.fullmatch(name)))


def led_jobs(
    member: ServerMember, monotonic: Callable[[], float]
) -> Iterator[tuple[str, float, Note | CorruptNoteError]]:
    """Yield each job of the server that has a living leader: name, seconds late, note.

    The seconds are negative where the leader is not late. A job without a leader is left out, as
    its note is out of date.
    """
    registry = member.jobs
    directory = member.shared_directory
    for name in _names(member, LOCK_FILE, registry.leaders):
        now = monotonic()
        if directory is None:
            deadline = registry.deadlines.get(name, math.inf)
        else:
            try:
                file = directory.open(f"once-{name}.lock", os.O_RDONLY)
            except OSError:
                continue  # whether it is locked is not known
            if not is_locked(file):
                continue
            deadline = read_deadline(file, now)
        try:
            note: Note | CorruptNoteError = _read(member, name)
        except CorruptNoteError as error:
            note = error
        yield name, now - deadline, note
