"""The segments of a server's other workers, as a reader finds them in the directory."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping

from metricsmw.engine.directory import Directory
from metricsmw.engine.files import FileHandle
from metricsmw.engine.storage.reader import SegmentSource
from metricsmw.engine.workers.directories import (
    SEGMENT,
    is_locked,
    is_own,
    read_header,
)
from metricsmw.engine.workers.surroundings import Surroundings

# Files of so many workers stay open between reads, but no more than that share of the descriptors
# that the process may have; others are opened each time, so that the app is left its descriptors.
MOST_OPEN = 64
SHARE_OPEN = 16


class FileSource:
    """Another worker's segment. Read by `pread`: a truncated file is a short read, no SIGBUS.

    ``size`` is that of the last look at the directory.

    Args:
        directory: The server's directory.
        name: The file's name.
        stays_open: Whether its descriptor is kept between reads.
    """

    def __init__(self, directory: Directory, name: str, stays_open: bool) -> None:
        self._directory = directory
        self._name = name
        self._file: FileHandle | None = None
        file = self._open()
        status = os.fstat(file.fileno())
        self.identity = status.st_ino, status.st_uid
        self.size = status.st_size
        self.header = read_header(file)
        if stays_open:
            self._file = file

    def _open(self) -> FileHandle:
        return self._file or self._directory.open(self._name, os.O_RDONLY)

    @property
    def stays_open(self) -> bool:
        """Whether its descriptor is kept between reads."""
        return self._file is not None

    @property
    def alive(self) -> bool:
        """Whether its worker lives."""
        return is_locked(self._open())

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; shorter where the file ends."""
        return self.opened().read(offset, size)

    def opened(self) -> _OpenFile:
        """Return it for several reads in a row. Raises OSError."""
        file = self._open()
        if file is not self._file and os.fstat(file.fileno()).st_ino != self.identity[0]:
            raise OSError(errno.ESTALE, "replaced while it was read")
        return _OpenFile(file)


class _OpenFile:
    """Another worker's segment, by a descriptor."""

    size = 0

    def __init__(self, file: FileHandle) -> None:
        self._file = file

    @property
    def alive(self) -> bool:
        """Whether its worker lives."""
        return is_locked(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; shorter where the file ends."""
        return self._file.pread(size, offset)

    def opened(self) -> _OpenFile:
        """Return itself: it is open."""
        return self


class Unreadable:
    """A file in the directory that is no segment of this server; reading it says why."""

    alive = False
    size = 0

    def __init__(self, error: OSError) -> None:
        self._error = error

    def read(self, offset: int, size: int) -> bytes:
        """Raise the error."""
        raise self._error

    def opened(self) -> Unreadable:
        """Return itself."""
        return self


class Sources:
    """The segments in a directory; those of other workers are opened as they are found."""

    def __init__(self, directory: Directory, here: Surroundings) -> None:
        self._directory = directory
        self._here = here
        # By name, of which another file may come to stand for it. Replaced as a whole: threads
        # share it.
        self._known: dict[str, FileSource] = {}
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most == resource.RLIM_INFINITY:
            most = MOST_OPEN * SHARE_OPEN
        self._most_open = min(MOST_OPEN, most // SHARE_OPEN)

    def close(self) -> None:
        """Keep none open."""
        self._known = {}

    @property
    def known(self) -> Mapping[str, SegmentSource]:
        """What the last look has found."""
        return self._known

    def find(
        self, own: tuple[str, int], own_source: SegmentSource, now: float, complete: bool
    ) -> dict[str, SegmentSource]:
        """Return all segments by name.

        Args:
            own: The name and the inode of this worker's file.
            own_source: What stands for it.
            now: Monotonic seconds, by which a segment of another clock is told.
            complete: Whether one that may be there and cannot be opened now is an OSError.
        """
        found: dict[str, SegmentSource] = {}
        opened: dict[str, FileSource] = {}
        number_open = sum(source.stays_open for source in self._known.values())
        own_name, own_inode = own
        seen: set[int] = set()
        for name, status in self._directory.files(SEGMENT).items():
            if status.st_ino == own_inode:
                found[own_name] = own_source
                continue
            if status.st_ino in seen:  # another name of the same file
                continue
            seen.add(status.st_ino)
            source = self._known.get(name)
            if source is None or source.identity != (status.st_ino, status.st_uid):
                try:
                    source = FileSource(self._directory, name, number_open < self._most_open)
                except FileNotFoundError:
                    continue
                except OSError as error:  # tried again at the next read
                    if complete and is_own(status):
                        raise
                    found[name] = Unreadable(error)
                    continue
                number_open += source.stays_open
                header = source.header
                if header is not None and not header.has_this_clock(now, self._here):
                    found[name] = Unreadable(OSError(errno.EXDEV, "of another boot or clock"))
                    continue
            source.size = status.st_size
            opened[name] = source
            found[name] = source
        self._known = opened
        return found
