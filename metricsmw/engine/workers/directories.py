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

from metricsmw.engine.files import FileHandle, open_own
from metricsmw.engine.storage.layout import (
    BIAS,
    HEADER_BYTES,
    MAGIC,
    OWNER_FIELDS,
    Field,
    Owner,
)
from metricsmw.engine.workers.processes import (
    Process,
    Root,
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
# A worker renews its files each minute in which it is asked for something.
LONG_UNUSED_SECONDS = 3600.0
# Clocks of processes on several cores agree to far less.
FUTURE_SECONDS = 1.0

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


def user_directory() -> Path:
    """Return the folder of all servers of this user."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK):
        base = shm
    else:
        from tempfile import gettempdir  # here, as it loads a random generator

        base = Path(gettempdir())
    return base / f"metricsmw-{os.geteuid()}"


def base_directory(here: Surroundings = HERE) -> Path:
    """Return the folder of this user's servers that this process can judge."""
    return user_directory() / f"{here.boot:012x}-{here.pid_namespace}"


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


def choose_place(root: Root | None = None, here: Surroundings = HERE) -> Place:
    """Return the directory of this process's server, which may not be there yet."""
    if (folder := folder_by_hand()) is not None:
        return Place(folder / f"metricsmw-{os.geteuid()}", "METRICSMW_DIR", "", True)
    root = root or server_root()
    name = f"{root.process.pid}-{root.process.start}"
    if part := site():
        name += f"-{zlib.crc32(part.encode()):08x}"
    return Place(base_directory(here) / name, "workers of one server", root.problem, False)


@contextlib.contextmanager
def making(place: Place, here: Surroundings = HERE) -> Iterator[None]:
    """Make a place and use it in the block, in which no start can clear it.

    Clears first what dead servers have left, unless another process makes or clears just now.
    Raises OSError where the place cannot be made, or belongs to somebody else.
    """
    if place.by_hand:
        place.directory.parent.mkdir(parents=True, exist_ok=True)
        make_private_directory(place.directory)
        yield
        return
    base = place.directory.parent
    make_private_directory(base.parent)
    with contextlib.closing(open_shared(base.parent / LOCK)) as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_dead_servers(base.parent, here)
        fcntl.flock(lock, fcntl.LOCK_SH)
        make_private_directory(base)
        make_private_directory(place.directory)
        yield


def remove(place: Place) -> None:
    """Remove the directory of a server that has ended, unless another process makes one just now.

    The caller knows that it is dead.
    """
    base = place.directory.parent
    with contextlib.closing(open_shared(base.parent / LOCK)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _remove_tree(str(place.directory))
        with contextlib.suppress(OSError):  # other servers are in it
            base.rmdir()


# --- files ----------------------------------------------------------------------------------------


def open_shared(path: Path) -> FileHandle:
    """Open a file that all workers use, and make it if need be. Raises OSError."""
    return open_own(path, os.O_RDWR | os.O_CREAT)


def is_own(status: os.stat_result) -> bool:
    """Return whether it is a regular file of this user; nothing else is a segment."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def segment_names(directory: str | Path) -> list[str]:
    """Return the names of segments there, the oldest first. Raises OSError."""
    names = [name for name in os.listdir(directory) if name.startswith(SEGMENT)]
    return sorted(names, key=lambda name: (len(name), name))


def segment_files(directory: str | Path) -> dict[str, os.stat_result]:
    """Return the files in a directory that are named as segments, with their status.

    Raises OSError where the directory cannot be read.
    """
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(SEGMENT):
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def make_private_directory(path: Path) -> None:
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


def _remove_tree(path: str) -> None:
    from shutil import rmtree  # here, as it loads the compressors

    rmtree(path, ignore_errors=True)


def clear(directory: Path) -> None:
    """Start clean, as all that is there belongs to servers that have ended; with its lock held."""
    for entry in os.scandir(directory):
        if entry.name == LOCK:
            continue
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(entry.path)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


# --- who lives ------------------------------------------------------------------------------------


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


def is_path_locked(path: str) -> bool:
    """Return the same of a file; False where it cannot be opened.

    It is quick, as a joining worker asks it of all workers under the server's lock.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Not by closing alone: a child that another thread forks just now has the file open, too.
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


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
    page = os.pread(file.fileno(), HEADER_BYTES, 0)
    if len(page) < HEADER_BYTES or page[: len(MAGIC)] != MAGIC:
        return None
    numbers = memoryview(page).cast("d")
    found = [numbers[field] for field in OWNER_FIELDS]
    created = numbers[Field.CREATED]
    if not all(0 <= number < BIAS and not number % 1 for number in found) or not 0 <= created < inf:
        return None
    return OwnerHeader(Owner(*map(int, found)), created)


def _headers(directory: str | Path) -> Iterator[tuple[bool, OwnerHeader | None]]:
    """Yield for each segment whether its worker lives, and the owner that its header names.

    Raises OSError where a segment may be there that cannot be opened now.
    """
    for name in segment_names(directory):
        path = os.path.join(directory, name)
        try:
            if not is_own(os.stat(path, follow_symlinks=False)):
                continue
            file = open_own(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        yield is_locked(file), read_header(file)


def is_in_use(directory: str | Path, now: float, here: Surroundings = HERE) -> bool:
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


def is_of_this_clock(directory: str | Path, now: float, here: Surroundings = HERE) -> bool:
    """Return whether something there can be gone on with: its times can be compared with ``now``.

    Raises OSError where it cannot be told now.
    """
    return any(
        alive or header is None or header.has_this_clock(now, here)
        for alive, header in _headers(directory)
    )


def _is_long_unused(directory: str | Path) -> bool:
    """Whether nothing in a directory was renewed lately."""
    times = [os.stat(directory, follow_symlinks=False).st_mtime]
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                times.append(entry.stat(follow_symlinks=False).st_mtime)
    return max(times) < time.time() - LONG_UNUSED_SECONDS


def remove_dead_servers(base: Path, here: Surroundings = HERE) -> None:
    """Remove the directories of servers that have ended; with the user's lock held exclusively."""
    own = base_directory(here).name
    for folder in _folders(base, "[0-9a-f]{12}-[0-9]+"):
        boot = int(folder.name[:12], 16)
        for server in _folders(folder.path, "[0-9]+-[0-9]+(-[0-9a-f]{8})?"):
            with contextlib.suppress(OSError):  # it cannot be told
                root = None
                if folder.name == own:
                    root = Process(*map(int, server.name.split("-")[:2]))
                if not _is_alive(server.path, root, boot, here):
                    _remove_tree(server.path)
        with contextlib.suppress(OSError):  # servers are in it
            os.rmdir(folder.path)


def _is_alive(directory: str, root: Process | None, boot: int, here: Surroundings) -> bool:
    """Whether a server may live, whose root this is where its namespace is that of this process."""
    if (root is not None and root.is_running(here)) or is_in_use(directory, time.monotonic(), here):
        return True
    if root is not None or not _may_be_equal(boot, here.boot) or segment_names(directory):
        return False
    return not _is_long_unused(directory)  # its first worker may be about to come


def _folders(base: str | Path, name: str) -> list[os.DirEntry[str]]:
    """Return the folders in another one whose names match."""
    with os.scandir(base) as entries:
        return [
            entry
            for entry in entries
            if re.fullmatch(name, entry.name) and entry.is_dir(follow_symlinks=False)
        ]
