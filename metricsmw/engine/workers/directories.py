"""Where the servers of a user have their directories, and when one of these may be cleared.

    /dev/shm/metricsmw-<user id>/        the temporary folder where there is no /dev/shm
        lock                             shared to make a directory, exclusive to clear one
        <boot>-<pid namespace>/          servers whose processes have ids of the same kind
            <process id>-<start>/        a server, named after its root

With `METRICSMW_DIR` the one directory of all processes is ``<METRICSMW_DIR>/metricsmw-<user id>``.

A server lives while one of its workers holds the flock of its segment, in whatever namespace, or
while a process runs that keeps it alive between workers. Such a process is visible in its own
namespace only, so a directory of another namespace is cleared when all its files are long unused. A
directory of another boot is cleared at once; so is one with times in the future, which another boot
has written. The lock file is never removed, so that clearing and making exclude each other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

from metricsmw.engine.directory import Directory, make_directory, open_directory
from metricsmw.engine.files import FileHandle
from metricsmw.engine.storage.layout import (
    BIAS,
    HEADER_BYTES,
    MAGIC,
    OWNER_FIELDS,
    Field,
    Owner,
)
from metricsmw.engine.storage.reader import FUTURE_SECONDS
from metricsmw.engine.workers.processes import (
    Process,
    find_root,
    server_root,
    site,
    this_process,
)
from metricsmw.engine.workers.surroundings import HERE, Surroundings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SEGMENT = "worker-"
LOCK = "lock"
# All that workers write into the directory of a server; nothing else is ever removed from it.
_NAME = (
    r"(worker-\d+|history-\d+|reset|lock|events|sightings|(once|sent)-\w+\.(lock|turn|json)"
    r"|started-[\d.e+-]+|token|told-\w+)"
)
OUR_NAMES = re.compile(rf"{_NAME}|\.{_NAME}\.[0-9a-f]{{16}}|new-(worker|reset|once-\w+\.lock)")
# Drafts, and histories of so many minutes as perhaps nobody keeps any more.
_PASSING = (".", "new-", "history-")
HELD = "another process holds the server's lock for too long"
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.02
# A worker renews its files each minute in which it is asked for something.
LONG_UNUSED_SECONDS = 3600.0

# The folder that `METRICSMW_DIR` named when it was first asked for: a later chdir moves nothing.
_by_hand: dict[str, Path] = {}


def folder_by_hand() -> Path | None:
    """Return the folder that `METRICSMW_DIR` names; None where it names none."""
    name = os.environ.get("METRICSMW_DIR")
    if not name:
        return None
    if name not in _by_hand:
        _by_hand[name] = Path(name).absolute()
    return _by_hand[name]


def user_directory(base: Path | None = None) -> Path:
    """Return the folder of all servers of this user in a base; in the first one by default."""
    return (base or next(iter(bases()), Path("/tmp"))) / f"metricsmw-{os.geteuid()}"


def bases() -> list[Path]:
    """Return the folders that may hold those of the users, the best one first."""
    shm = Path("/dev/shm")
    found = [shm] if shm.is_dir() and os.access(shm, os.W_OK) else []
    # As `tempfile` chooses it, which loads a random generator.
    for name in (*map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp"):
        if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            folder = Path(name).absolute()
            return found if folder in found else [*found, folder]
    return found


def base_directory(here: Surroundings = HERE, base: Path | None = None) -> Path:
    """Return the folder of this user's servers that this process can judge."""
    return user_directory(base) / f"{here.boot:012x}-{here.pid_namespace}"


class Place(NamedTuple):
    """A server's directory.

    Attributes:
        directory: The directory.
        reason: Why processes share it.
        problem: What may be wrong with the choice, for `/health`; empty where nothing is.
        by_hand: Whether `METRICSMW_DIR` named it.
    """

    directory: Path
    reason: str
    problem: str
    by_hand: bool


def choose_places(here: Surroundings = HERE) -> list[Place]:
    """Return where this process's server may have its directory, the best place first.

    None of the directories may be there yet. `METRICSMW_DIR` leaves one place.
    """
    if (folder := folder_by_hand()) is not None:
        return [Place(folder / f"metricsmw-{os.geteuid()}", "METRICSMW_DIR", "", True)]
    root = server_root()
    name = f"{root.process.pid}-{root.process.start}"
    if part := site():
        name += f"-{zlib.crc32(part.encode()):08x}"
    return [
        Place(base_directory(here, base) / name, "workers of one server", root.problem, False)
        for base in bases() or [Path("/tmp")]
    ]


@contextlib.contextmanager
def making(place: Place, patience: float, here: Surroundings = HERE) -> Iterator[Directory]:
    """Make a place and use it in the block, in which no start can clear it.

    Clears first what dead servers have left, unless another process makes or clears just now.

    Args:
        place: The place.
        patience: Seconds to wait for a process that clears.
        here: The system's facts about this process.

    Raises:
        OSError: The place cannot be made, belongs to somebody else, or is being cleared for long.
    """
    if place.by_hand:
        yield make_directory(place.directory)
        return
    folder = place.directory.parent
    user = make_directory(folder.parent)
    with contextlib.closing(open_shared(user, LOCK)) as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_dead_servers(user, here)
        lock_within(lock, fcntl.LOCK_SH, patience)
        yield user.make_directory(folder.name).make_directory(place.directory.name)


def is_inhabited(place: Place) -> bool:
    """Return whether a worker lives there, as far as can be told."""
    if os.path.lexists(place.directory):
        with contextlib.suppress(OSError):
            directory = open_directory(place.directory)
            return any(is_name_locked(directory, name) for name in segment_names(directory))
    return False


def remove(place: Place) -> None:
    """Remove a directory in which no worker lives, unless another process makes one just now.

    The caller knows that none will come back to it.
    """
    folder = place.directory.parent
    user = open_directory(folder.parent)
    with contextlib.closing(open_shared(user, LOCK)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not is_inhabited(place):
            _remove_server(user.open_directory(folder.name), place.directory.name)
        with contextlib.suppress(OSError):  # other servers are in it
            user.remove_directory(folder.name)


def remove_own(here: Surroundings = HERE) -> None:
    """Remove what this process's server has left, where it ends with this process, its root.

    Its monitors may have been closed, and its children have ended without being told.
    """
    if folder_by_hand() is None and server_root().process.pid == os.getpid():
        for place in choose_places(here):
            if os.path.lexists(place.directory):
                remove(place)


# --- files ----------------------------------------------------------------------------------------


def open_shared(directory: Directory, name: str) -> FileHandle:
    """Open a file that all workers use, and make it if need be. Raises OSError."""
    return directory.open(name, os.O_RDWR | os.O_CREAT)


def is_lasting(name: str) -> bool:
    """Return whether a name is of a file that stays for the server's life."""
    return bool(OUR_NAMES.fullmatch(name)) and not name.startswith(_PASSING)


def is_own(status: os.stat_result) -> bool:
    """Return whether it is a regular file of this user; nothing else is a segment."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def segment_names(directory: Directory) -> list[str]:
    """Return the names of segments there, the oldest first. Raises OSError."""
    names = [name for name in directory.names() if name.startswith(SEGMENT)]
    return sorted(names, key=lambda name: (len(name), name))


def clear(directory: Directory, *, keep_lock: bool = True) -> None:
    """Remove all files of servers that have ended; with the server's lock held.

    Files of other names, and folders that hold anything, are somebody else's and stay.
    """
    for name in directory.names():
        if OUR_NAMES.fullmatch(name) and not (keep_lock and name == LOCK):
            with contextlib.suppress(OSError):
                try:
                    directory.remove(name)
                except IsADirectoryError:
                    directory.remove_directory(name)


def _remove_server(folder: Directory, name: str) -> None:
    """Remove a dead server's directory; one with other files than ours stays, without ours."""
    with contextlib.suppress(OSError):
        clear(folder.open_directory(name), keep_lock=False)
        folder.remove_directory(name)


# --- who lives ------------------------------------------------------------------------------------


def lock_within(file: FileHandle, kind: int, seconds: float) -> None:
    """Lock a file, and wait for no longer: a process that is stopped keeps its locks.

    Args:
        file: The file.
        kind: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
        seconds: How long to wait for other processes.

    Raises:
        TimeoutError: Another process holds it.
    """
    deadline = time.monotonic() + seconds
    pause = SHORTEST_PAUSE
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, HELD) from None
        else:
            return
        time.sleep(pause)  # so that greenlets go on, which a wait by the system would hold up
        pause = min(2 * pause, LONGEST_PAUSE)


def is_locked(file: FileHandle) -> bool:
    """Return whether the worker whose segment it is lives: it holds an exclusive flock."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def this_owner(here: Surroundings = HERE) -> Owner:
    """Return this process as the owner of a segment."""
    me, root = this_process(here), find_root(here)
    return Owner(
        *me, *root.process, *root.parent, here.boot, here.time_namespace, here.pid_namespace
    )


def is_name_locked(directory: Directory, name: str) -> bool:
    """Return whether the worker whose segment has this name lives; False where it cannot be opened.

    It is quick, as a joining worker asks it of all workers under the server's lock.
    """
    try:
        file = directory.open(name, os.O_RDONLY)
    except OSError:
        return False
    # Unlocked by name, not by closing alone: a child that another thread forks just now has the
    # file open, too.
    with contextlib.closing(file):
        return is_locked(file)


class OwnerHeader(NamedTuple):
    """The part of a segment's header that says which worker owns it, and since when.

    Attributes:
        owner: The worker.
        created: Monotonic seconds at which the segment was made.
    """

    owner: Owner
    created: float

    def has_this_clock(self, now: float, here: Surroundings) -> bool:
        """Return whether its times are of the monotonic clock that says ``now``."""
        return (
            _may_be_equal(self.owner.boot, here.boot)
            and _may_be_equal(self.owner.time_namespace, here.time_namespace)
            and self.created <= now + FUTURE_SECONDS
        )

    def is_guarded(self, now: float, here: Surroundings) -> bool | None:
        """Return whether a process keeps the server alive between workers; None: not known."""
        owner = self.owner
        if not _may_be_equal(owner.boot, here.boot):
            return False
        if owner.time_namespace == here.time_namespace and self.created > now + FUTURE_SECONDS:
            return False
        if owner.pid_namespace != here.pid_namespace:
            return None
        guardians = (owner.root_pid, owner.root_start), (owner.parent_pid, owner.parent_start)
        return any(Process(*guardian).is_running(here) for guardian in guardians)


def _may_be_equal(one: int, other: int) -> bool:
    return one == other or 0 in (one, other)


def read_header(file: FileHandle) -> OwnerHeader | None:
    """Return the owner that a segment's header names; None where the header is damaged."""
    page = file.pread(HEADER_BYTES, 0)
    if len(page) < HEADER_BYTES or page[: len(MAGIC)] != MAGIC:
        return None
    numbers = memoryview(page).cast("d")
    found = [numbers[field] for field in OWNER_FIELDS]
    created = numbers[Field.CREATED]
    if not all(0 <= number < BIAS and not number % 1 for number in found) or not 0 <= created < inf:
        return None
    return OwnerHeader(Owner(*map(int, found)), created)


def _headers(directory: Directory) -> Iterator[tuple[bool, OwnerHeader | None]]:
    """Yield for each segment whether its worker lives, and the owner that its header names.

    Raises OSError where a segment may be there that cannot be opened now.
    """
    for name in segment_names(directory):
        try:
            if not is_own(directory.status(name)):
                continue
            file = directory.open(name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        yield is_locked(file), read_header(file)


def is_in_use(directory: Directory, now: float, here: Surroundings = HERE) -> bool:
    """Return whether a server may live there, also one whose processes cannot be seen from here.

    ``now`` is in monotonic seconds. Raises OSError where it cannot be told now.
    """
    unknown = False
    for alive, header in _headers(directory):
        guarded = alive or (header is not None and header.is_guarded(now, here))
        if guarded:
            return True
        unknown |= guarded is None
    return unknown and not _is_long_unused(directory)


def is_of_this_clock(directory: Directory, now: float, here: Surroundings = HERE) -> bool:
    """Return whether something there can be gone on with: its times can be compared with ``now``.

    Raises OSError where it cannot be told now.
    """
    return any(
        alive or header is None or header.has_this_clock(now, here)
        for alive, header in _headers(directory)
    )


def _is_long_unused(directory: Directory) -> bool:
    """Whether nothing in a directory was renewed lately."""
    times = [os.fstat(directory.fileno()).st_mtime]
    times += [status.st_mtime for status in directory.files().values()]
    return max(times) < time.time() - LONG_UNUSED_SECONDS


def remove_dead_servers(user: Directory, here: Surroundings = HERE) -> None:
    """Remove the directories of servers that have ended; with the user's lock held exclusively."""
    own = base_directory(here).name
    for folder in _folders(user, "[0-9a-f]{12}-[0-9]+"):
        boot = int(folder.path.name[:12], 16)
        for server in _folders(folder, "[0-9]+-[0-9]+(-[0-9a-f]{8})?"):
            name = server.path.name
            with contextlib.suppress(OSError):  # it cannot be told
                root = Process(*map(int, name.split("-")[:2])) if folder.path.name == own else None
                if not _is_alive(server, root, boot, here):
                    _remove_server(folder, name)
        with contextlib.suppress(OSError):  # servers are in it
            user.remove_directory(folder.path.name)


def _is_alive(directory: Directory, root: Process | None, boot: int, here: Surroundings) -> bool:
    """Whether a server may live, whose root this is where its namespace is that of this process."""
    if (root is not None and root.is_running(here)) or is_in_use(directory, time.monotonic(), here):
        return True
    if root is not None or (_may_be_equal(boot, here.boot) and segment_names(directory)):
        return False
    # Its first worker may be about to come, or it may be of a container with a boot id of its own.
    return not _is_long_unused(directory)


def _folders(directory: Directory, name: str) -> Iterator[Directory]:
    """Yield the directories of this user in another one whose names match."""
    for found in directory.names():
        if re.fullmatch(name, found):
            with contextlib.suppress(OSError):  # none of ours, or gone
                yield directory.open_directory(found)
