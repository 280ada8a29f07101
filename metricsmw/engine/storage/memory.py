"""The memory of a segment: of one process alone, or a mapped file."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from metricsmw.engine.directory import Directory
from metricsmw.engine.files import FileHandle, forget_closed

Part = tuple[int, int]  # offset, size
FILL_BYTES = 4096  # of a hole, when a segment is filled

# The part of a file system that is left to other programs, whose shared memory is there, too: a
# quarter; a half when a table grows that can do without, so that later workers find room.
RESERVED_SHARE, RESERVED_SHARE_OF_GROWTH = 4, 2
MOST_RESERVED_BYTES = 256 << 20

# Mappings whose own descriptors the host has closed. They would close them as they go, and the
# numbers may be those of the host's files by now; so they never go.
_kept: list[mmap.mmap] = []


class Memory(Protocol):
    """The memory of a segment."""

    def map(self, offset: int, size: int) -> memoryview:
        """Return a writable view of newly allocated, zeroed (or, adopted, existing) bytes.

        Raises OSError where there is no room.
        """

    def map_holes(self, offset: int, size: int) -> memoryview:
        """Return a view of bytes, of which only those may be written that `allocate` was asked for.

        Raises OSError where the segment cannot be so large.
        """

    def allocate(self, parts: Sequence[Part], *, growth: bool) -> None:
        """Have memory for parts of what `map_holes` has returned.

        Args:
            parts: Offset and size of each.
            growth: They are new; the segment can do without, so more room is left to others.

        Raises:
            OSError: There is no room.
        """

    def check_growth(self, size: int) -> None:
        """Raise OSError unless there is room for so many bytes that a segment can do without."""

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of the bytes; fewer where the segment ends."""

    @property
    def is_whole(self) -> bool:
        """Whether all mapped bytes are still there, in a file that other workers can open."""


class AnonymousMemory:
    """Memory of this process alone."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, mmap.mmap | bytearray]] = []

    def map(self, offset: int, size: int) -> memoryview:
        """See `Memory`. Falls back to the heap where the system has no mapping left."""
        part: mmap.mmap | bytearray
        try:
            part = mmap.mmap(-1, size)
        except OSError:  # where the system has no mapping left, the heap may have room
            part = bytearray(size)
        self._parts.append((offset, part))
        return memoryview(part)

    map_holes = map

    def allocate(self, parts: Sequence[Part], *, growth: bool) -> None:
        """Pass: the system gives memory when it is written to."""

    def read(self, offset: int, size: int) -> bytes:
        """See `Memory`."""
        for start, part in self._parts:
            if start <= offset < start + len(part):
                return bytes(part[offset - start : offset - start + size])
        return b""

    def check_growth(self, size: int) -> None:
        """Pass: memory is the host's to limit."""

    def copy(self) -> bytes:
        """Return a copy of all mapped parts, one after the other."""
        return b"".join(bytes(part) for _, part in sorted(self._parts, key=lambda part: part[0]))

    @property
    def is_whole(self) -> bool:
        """True: no other process can remove this memory."""
        return True


class FileMemory:
    """A mapped file.

    Args:
        file: The file.
        directory: Where other workers look for it.
    """

    def __init__(self, file: FileHandle, directory: Directory) -> None:
        self._file = file
        self._directory = directory
        self._end = 0
        self._maps: list[mmap.mmap] = []

    def map(self, offset: int, size: int) -> memoryview:
        """See `Memory`."""
        fd = self._file.fileno()
        # Allocated first: a full disk is an error here, not a SIGBUS at some later store.
        allocate(fd, offset, size)
        return self._view(fd, offset, size)

    def map_holes(self, offset: int, size: int) -> memoryview:
        """See `Memory`."""
        fd = self._file.fileno()
        if os.fstat(fd).st_size < offset + size:
            os.ftruncate(fd, offset + size)
        return self._view(fd, offset, size)

    def _view(self, fd: int, offset: int, size: int) -> memoryview:
        self._end = max(self._end, offset + size)
        mapped = mmap.mmap(fd, size, offset=offset)
        self._maps.append(mapped)
        return memoryview(mapped)

    def allocate(self, parts: Sequence[Part], *, growth: bool) -> None:
        """See `Memory`."""
        fd = self._file.fileno()
        if growth:
            self.check_growth(sum(size for _, size in parts))
        for offset, size in parts:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, offset, size)
            else:
                os.pwrite(fd, os.pread(fd, size, offset), offset)

    def check_growth(self, size: int) -> None:
        """Raise OSError unless half of the file system is left to others by it."""
        check_room(self._file.fileno(), size, RESERVED_SHARE_OF_GROWTH)

    def fill(self, data: bytes) -> None:
        """Begin with these bytes, before anything is mapped; long zeros become holes.

        Raises OSError for want of room.
        """
        fd = self._file.fileno()
        parts = list(_written(data))
        check_room(fd, sum(size for _, size in parts), RESERVED_SHARE)
        os.ftruncate(fd, len(data))
        self.allocate(parts, growth=False)
        for offset, size in parts:
            rest = memoryview(data)[offset : offset + size]
            while rest:
                rest = rest[os.pwrite(fd, rest, offset + size - len(rest)) :]

    def read(self, offset: int, size: int) -> bytes:
        """See `Memory`."""
        return self._file.pread(size, offset)

    @property
    def is_whole(self) -> bool:
        """Whether the file still has a name and all bytes that were mapped."""
        try:
            status = os.fstat(self._file.fileno())
        except OSError:  # somebody has closed all files of the process
            forget_closed()
            _kept.extend(self._maps)
            self._maps.clear()
            return False
        return status.st_size >= self._end and status.st_nlink > 0 and self._directory.is_in_place


def _written(data: bytes) -> Iterator[Part]:
    """Yield the parts that are not all zeros."""
    zeros = bytes(FILL_BYTES)
    for offset in range(0, len(data), FILL_BYTES):
        piece = data[offset : offset + FILL_BYTES]
        if piece != zeros[: len(piece)]:
            yield offset, len(piece)


def check_room(fd: int, size: int, share: int) -> None:
    """Raise OSError where so many bytes more leave too little of the file system to others.

    Args:
        fd: A file.
        size: Bytes that it is to have more.
        share: 1/share of the file system is left, but 256 MiB at most.
    """
    if not hasattr(os, "fstatvfs"):
        return
    room = os.fstatvfs(fd)
    reserved = min(room.f_blocks * room.f_frsize // share, MOST_RESERVED_BYTES)
    # A file system without a size has no blocks.
    if room.f_blocks and room.f_bavail * room.f_frsize - size < reserved:
        raise OSError(errno.ENOSPC, "too little room is left for others on the file system")


def allocate(fd: int, offset: int, size: int) -> None:
    """Have room for these bytes of a file. Raises OSError where there is too little."""
    missing = offset + size - os.fstat(fd).st_size
    if missing > 0:
        check_room(fd, missing, RESERVED_SHARE)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, size)
    elif missing > 0:
        os.pwrite(fd, bytes(size), offset)
