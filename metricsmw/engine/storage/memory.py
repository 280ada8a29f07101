"""Where a segment lives: memory of one process, or a mapped file."""

from __future__ import annotations

import mmap
import os
from typing import Protocol

from metricsmw.engine.files import FileHandle


class Memory(Protocol):
    """Where a segment lives."""

    def map(self, offset: int, size: int) -> memoryview:
        """A writable view of newly allocated, zeroed (or, adopted, existing) bytes.

        Raises OSError where there is no room.
        """

    def read(self, offset: int, size: int) -> bytes:
        """A copy of the bytes; shorter where the segment ends."""

    @property
    def is_whole(self) -> bool:
        """Whether all that was mapped is still there, where others look for it."""


class AnonymousMemory:
    """Memory of this process alone."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, mmap.mmap]] = []

    def map(self, offset: int, size: int) -> memoryview:
        part = mmap.mmap(-1, size)
        self._parts.append((offset, part))
        return memoryview(part)

    def read(self, offset: int, size: int) -> bytes:
        for start, part in self._parts:
            if start <= offset < start + len(part):
                return part[offset - start : offset - start + size]
        return b""

    @property
    def is_whole(self) -> bool:
        return True


class FileMemory:
    """A mapped file."""

    def __init__(self, file: FileHandle) -> None:
        self._file = file
        self._end = 0

    def map(self, offset: int, size: int) -> memoryview:
        fd = self._file.fileno()
        # Allocated first: a full disk is an error here, not a SIGBUS at some later store.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, size)
        elif os.fstat(fd).st_size < offset + size:
            os.pwrite(fd, bytes(size), offset)
        self._end = max(self._end, offset + size)
        return memoryview(mmap.mmap(fd, size, offset=offset))

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    @property
    def is_whole(self) -> bool:
        status = os.fstat(self._file.fileno())
        return status.st_size >= self._end and status.st_nlink > 0
