"""Files: `FileHandle`, closed when its last user drops it, and `replace_file`.

A thread may be about to read or write while another one leaves the group. If the file were closed
then, its descriptor's number could already be a file that the host has opened since. It could, too,
where the host closes all files of its process, as what becomes a daemon does: a handle knows which
file it has opened, and never writes to, locks or closes another one.

A forked child closes all file handles of its parent, those included that another thread was just
opening: a lock would else outlive its owner.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from metricsmw.engine.fork import Stage, on_fork

# The names of drafts, as a pattern, around that of their file's name.
DRAFT = r"\.{}\.[0-9a-f]{{16}}"
# Whether others may read an export is the user's choice, by the umask; they never may write.
EXPORT_MODE, EXPORT_FOLDER_MODE = 0o664, 0o775

_all: weakref.WeakSet[FileHandle] = weakref.WeakSet()


class FileHandle:
    """Owns ``fd``; `fcntl.flock` and the like take it as it is."""

    __slots__ = ("__weakref__", "_fd", "_identity")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._identity = _identity(fd)
        _all.add(self)

    def fileno(self) -> int:
        """Return its number. Raises OSError once it is closed, by whomever."""
        fd = self._fd
        if _identity(fd) != self._identity:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def pread(self, size: int, offset: int) -> bytes:
        """Return the bytes at an offset, fewer where the file ends. Raises OSError."""
        return os.pread(self._fd, size, offset)  # of another file they are no bytes of ours

    def close(self) -> None:
        """Close it now: for what no other thread uses. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0 and _identity(fd) == self._identity:
            os.close(fd)

    __del__ = close


def forget_closed() -> None:
    """Have handles that the host has closed never close their numbers, which may be used again."""
    for handle in list(_all):
        if _identity(handle._fd) != handle._identity:
            handle._fd = -1


def _identity(fd: int) -> tuple[int, int] | None:
    """Return which file a descriptor is of; None where it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# What other systems have of these.
_SAFELY = 0
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _SAFELY |= getattr(os, _name, 0)
# Where there are no user ids (Windows), all files have the same.
this_user: Callable[[], int] = getattr(os, "geteuid", lambda: 0)


def open_own(
    path: str | os.PathLike[str], flags: int, *, dir_fd: int | None = None, mode: int = 0o600
) -> FileHandle:
    """Open a regular file of this user; links, FIFOs and devices are refused, never waited for.

    Args:
        path: The file.
        flags: Those of `os.open`.
        dir_fd: The directory that a relative path begins in; None: the working directory.
        mode: The mode of a file that is made: for its owner only.

    Raises:
        OSError: It cannot be opened, or is no regular file of this user.
    """
    file = FileHandle(os.open(path, flags | _SAFELY, mode, dir_fd=dir_fd))
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != this_user():
        file.close()
        raise PermissionError(errno.EPERM, "not a regular file of this user")
    return file


def make_folders(path: Path, mode: int) -> None:
    """Make a folder and those on the way to it, where they are missing. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            try:
                folder.mkdir(mode)
            except FileExistsError:
                if not folder.is_dir():  # not made by another process meanwhile
                    raise


def draft_name(name: str) -> str:
    """Return a name for a draft of a file, which nobody can guess."""
    return f".{name}.{os.urandom(8).hex()}"


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file as a whole: a reader sees the old one or the new one.

    A file of this user keeps its mode; a new one is for all to read, as far as the umask lets it.
    Raises OSError where that cannot be; the old file is then untouched.
    """
    target = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(target)
    draft = os.path.join(folder, draft_name(name))
    mode = _mode_of(target)
    # A link or a file that waits under the draft's name is not written to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
    try:
        with open(os.open(draft, flags, EXPORT_MODE if mode is None else mode), "wb") as file:
            if mode is not None:  # whatever the umask is
                os.chmod(file.fileno() if os.chmod in os.supports_fd else draft, mode)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(draft)
        if isinstance(error, OSError) and error.filename == draft:
            error.filename = target  # nobody else knows the draft's name
        raise


def _mode_of(path: str) -> int | None:
    """Return the permissions that this user gave a regular file; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    # Somebody else may have put a file there, for all to read or write.
    own = stat.S_ISREG(status.st_mode) and status.st_uid == this_user()
    return stat.S_IMODE(status.st_mode) & 0o777 if own else None


# File systems, by their number in statfs(2), where an allocation does not reserve room for later
# writes, because each write is a copy: on a full disk a write to mapped memory ends the process.
# btrfs is not one of them, because `forbid_copy_on_write` works there.
COPYING = {0x2FC12FC1: "ZFS", 0xCA451A4E: "bcachefs"}
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_NOCOW_FL = 0x00800000


def forbid_copy_on_write(file: FileHandle) -> None:
    """Have an empty file rewritten in place, where its file system would copy (btrfs)."""
    flags = bytearray(8)
    with suppress(OSError, ImportError):
        import fcntl

        fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
        number = int.from_bytes(flags, sys.byteorder) | FS_NOCOW_FL
        fcntl.ioctl(file, FS_IOC_SETFLAGS, number.to_bytes(8, sys.byteorder))


def copies_on_write(directory: Path) -> str | None:
    """Return the name of a file system that rewrites nothing in place; None where it does."""
    if sys.platform != "linux" or directory.is_relative_to("/dev/shm"):
        return None
    with suppress(Exception):
        import ctypes  # for those who use another place than /dev/shm only

        words = (ctypes.c_long * 32)()
        if not ctypes.CDLL(None).statfs(os.fsencode(directory), words):
            return COPYING.get(words[0] & 0xFFFFFFFF)
    return None


def _after_fork() -> None:
    for descriptor in list(_all):
        descriptor.close()


on_fork(_after_fork, Stage.FILES)
