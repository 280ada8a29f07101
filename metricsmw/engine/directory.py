"""`Directory`: a directory of this user, opened once and used by its descriptor.

A path is looked up anew at each use, and whoever may rename in one of its folders decides then
where it leads. So the directory is opened once, links are not followed, its owner and mode are read
from the descriptor, and every file in it is opened, listed, renamed and removed relative to that
descriptor. The path is kept for messages, and to notice another directory in this one's place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from metricsmw.engine.files import FileHandle, draft_name, make_folders, open_own

# A descriptor that serves as a starting point only, for folders that may not be listed.
_START = getattr(os, "O_PATH", os.O_RDONLY)
# Folders of the system. A user namespace that has no number for root shows them as nobody's, and
# those of all other people, too.
SYSTEM_FOLDERS = frozenset(map(Path, ("/", "/dev", "/dev/shm", "/tmp", "/var", "/var/tmp")))
NOT_PRIVATE = "must be a directory of this user that only its owner can enter"
NOT_SAFE = (
    "the folder that holds it, and the one that holds that, must belong to root or this user, and "
    "be sticky where others may write to them"
)


class Directory:
    """A directory that only this user can enter.

    Args:
        handle: Its descriptor.
        path: Where it was opened.
    """

    __slots__ = ("_handle", "identity", "is_in_place", "path")

    def __init__(self, handle: FileHandle, path: Path) -> None:
        self._handle = handle
        self.path = path
        status = os.fstat(handle.fileno())
        self.identity = status.st_dev, status.st_ino
        self.is_in_place = True
        """Whether no other directory stood at the path when `look` last looked."""

    def fileno(self) -> int:
        """Return the descriptor's number. Raises OSError once it is closed, by whomever."""
        return self._handle.fileno()

    @property
    def is_found(self) -> bool:
        """Whether whoever looks up the path finds this directory."""
        return self._there() == self.identity

    def look(self) -> None:
        """Look up the path; what cannot be looked up by this process is taken to be in place.

        For whoever reads: a look-up may wait, and who records has no time for that.
        """
        self.is_in_place = self._there() in (self.identity, None)

    def _there(self) -> tuple[int, int] | None:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        return there.st_dev, there.st_ino

    # --- what is in it ---------------------------------------------------------------------------

    def open(self, name: str, flags: int) -> FileHandle:
        """Open a regular file of this user; see `open_own`. Raises OSError."""
        return open_own(name, flags, dir_fd=self.fileno())

    def read(self, name: str, most: int) -> bytes:
        """Return what a regular file of this user holds, ``most`` bytes of it. Raises OSError."""
        with contextlib.closing(self.open(name, os.O_RDONLY)) as file:
            return read_all(file, most)

    def _listing(self) -> FileHandle:
        """Return a descriptor with a position of its own, as threads list at the same time."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return FileHandle(os.open(".", flags, dir_fd=self.fileno()))

    def names(self) -> list[str]:
        """Return the names of all that is in it. Raises OSError."""
        with contextlib.closing(self._listing()) as listing:
            return os.listdir(listing.fileno())

    def files(self, prefix: str = "") -> dict[str, os.stat_result]:
        """Return the status of everything whose name begins so. Raises OSError."""
        found = {}
        with (
            contextlib.closing(self._listing()) as listing,
            os.scandir(listing.fileno()) as entries,
        ):
            for entry in entries:
                if entry.name.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):
                        found[entry.name] = entry.stat(follow_symlinks=False)
        return found

    def status(self, name: str) -> os.stat_result:
        """Return the status of a file; links are not followed. Raises OSError."""
        return os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)

    def renew(self, is_used: Callable[[str], bool]) -> None:
        """Let it look used, and the files whose names are. Raises OSError."""
        at = self.fileno()
        os.utime(at)
        for name in filter(is_used, self.names()):
            with contextlib.suppress(FileNotFoundError):
                os.utime(name, dir_fd=at, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fileno())

    def rename(self, name: str, new: str) -> None:
        """Give a file another name; a file that had it is gone. Raises OSError."""
        os.replace(name, new, src_dir_fd=self.fileno(), dst_dir_fd=self.fileno())

    def write_draft(self, name: str, data: bytes) -> str:
        """Write a file beside its place; return the draft's name, which is then to be renamed.

        Raises:
            OSError: There is no room; nothing is left behind then.
        """
        draft = draft_name(name)
        try:
            with contextlib.closing(self.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) as file:
                write_all(file, data)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(draft)
            raise
        return draft

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file as a whole. Raises OSError; the old one is then untouched."""
        draft = self.write_draft(name, data)
        try:
            self.rename(draft, name)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(draft)
            raise

    def write_first(self, name: str, data: bytes) -> None:
        """Write a file unless there is one: it appears as a whole, and of two the first stays.

        Raises:
            OSError: It cannot be written.
        """
        draft, at = self.write_draft(name, data), self.fileno()
        try:
            with contextlib.suppress(FileExistsError):
                os.link(draft, name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        finally:
            self.remove(draft)

    # --- directories in it -----------------------------------------------------------------------

    def make_directory(self, name: str) -> Directory:
        """Make a directory in it if need be, and open it. Raises OSError."""
        return _make(self.fileno(), name, self.path / name)

    def open_directory(self, name: str) -> Directory:
        """Open a directory in it. Raises OSError where it is none that only this user can enter."""
        return _open(self.fileno(), name, self.path / name)

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory. Raises OSError."""
        os.rmdir(name, dir_fd=self.fileno())


def _open(parent: int, name: str, path: Path) -> Directory:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = FileHandle(os.open(name, flags, dir_fd=parent))
    except OSError as error:
        # A file, a link, or of somebody else.
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM):
            raise
        raise PermissionError(errno.EPERM, NOT_PRIVATE, str(path)) from error
    status = os.fstat(handle.fileno())
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        handle.close()
        raise PermissionError(errno.EPERM, NOT_PRIVATE, str(path))
    return Directory(handle, path)


def _make(parent: int, name: str, path: Path) -> Directory:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    return _open(parent, name, path)


def _start(path: Path) -> FileHandle:
    """Open the folder that holds a directory of this user; links on the way are its owner's wish.

    Raises:
        OSError: It cannot be opened, or somebody else may rename in it.
    """
    folder = FileHandle(os.open(path, _START | os.O_DIRECTORY | os.O_CLOEXEC))
    above = path.parent
    if not _is_safe(path, os.fstat(folder.fileno())) or not _is_safe(above, os.stat(above)):
        folder.close()
        raise PermissionError(errno.EPERM, NOT_SAFE, str(path))
    return folder


def _is_safe(folder: Path, status: os.stat_result) -> bool:
    """Return whether nobody else may rename what root or this user has in a folder."""
    user = os.geteuid()
    # Root is in any case whoever has the root folder.
    root = os.stat("/").st_uid if folder in SYSTEM_FOLDERS else 0
    if status.st_uid not in (0, user, root):
        return False
    # Where each user has a group, it has the user's number, and nobody else is in it.
    own_group = status.st_uid == status.st_gid == user
    others = 0o002 if own_group else 0o022
    return bool(status.st_mode & stat.S_ISVTX) or not status.st_mode & others


def make_directory(path: Path) -> Directory:
    """Make a directory of this user if need be, and open it; folders on the way are made, too.

    Raises:
        OSError: It cannot be made, others can enter it, or others may rename in its folder.
    """
    make_folders(path.parent, 0o700)
    with contextlib.closing(_start(path.parent)) as folder:
        return _make(folder.fileno(), path.name, path)


def open_directory(path: Path) -> Directory:
    """Open a directory of this user. Raises OSError as `make_directory` does."""
    with contextlib.closing(_start(path.parent)) as folder:
        return _open(folder.fileno(), path.name, path)


def read_all(file: FileHandle, most: int) -> bytes:
    """Return the bytes of a file from its start, ``most`` of them. Raises OSError."""
    with open(file.fileno(), "rb", closefd=False) as stream:
        return stream.read(most)


def write_all(file: FileHandle, data: bytes) -> None:
    """Write all bytes to a file at its position. Raises OSError."""
    with open(file.fileno(), "wb", closefd=False) as stream:
        stream.write(data)
