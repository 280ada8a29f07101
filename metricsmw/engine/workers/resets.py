"""The file of a server's last reset: the state of each table at that moment.

Compressed, with a checksum: its time in monotonic seconds and the number of states, and for each
the segment's nonce, the table's offset, its size and the state. Replaced as a whole. Its time of
modification says only that it is in use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from collections.abc import Callable

from metricsmw.engine.directory import Directory, write_all
from metricsmw.engine.storage.reader import FUTURE_SECONDS, NEVER, Reset

NAME, DRAFT = "reset", "new-reset"
# A state is at most as large as its table; compressed it is a small part of that.
MOST_BYTES = MOST_UNPACKED_BYTES = 512 << 20
HEAD = struct.Struct("<dQ")
ENTRY = struct.Struct("<QQQ")

Seen = tuple[int, int]


class ResetFile:
    """The last reset of a server, read again when the file has changed."""

    def __init__(self, directory: Directory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        # Replaced as a whole: the file's inode and time, its bytes' checksum, and what it says.
        self._known: tuple[Seen, int | None, Reset] = (0, 0), None, NEVER

    @property
    def last(self) -> Reset:
        """The last reset that is known of: a file that cannot be read now changes nothing."""
        try:
            return self.read()
        except OSError:
            return self._known[2]  # lest what was counted before it come back

    def read(self) -> Reset:
        """Return what the file says. Raises OSError where it did once and cannot be read now."""
        seen, checksum, known = self._known
        try:
            status = self._directory.status(NAME)
        except FileNotFoundError:
            if known is NEVER:
                return NEVER
            raise
        now = status.st_ino, status.st_mtime_ns
        if now != seen:
            data = self._directory.read(NAME, MOST_BYTES)
            if zlib.crc32(data) != checksum:  # else it was only renewed
                checksum, known = zlib.crc32(data), unpack_reset(data, self._clock())
            self._known = now, checksum, known
        return known

    def write(self, reset: Reset) -> None:
        """Replace it. Raises OSError where there is no room; the file is then as it was."""
        data = bytearray(HEAD.pack(reset.at, len(reset.states)))
        for (nonce, offset), state in reset.states.items():
            raw = state.to_bytes(-(-state.bit_length() // 8), "little")
            data += ENTRY.pack(nonce, offset, len(raw)) + raw
        if len(data) > MOST_UNPACKED_BYTES:
            raise OSError(errno.EFBIG, "too many tables for one reset")
        self._directory.remove(DRAFT)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with contextlib.closing(self._directory.open(DRAFT, flags)) as file:
                write_all(file, zlib.compress(data, 1))
                # Resets follow each other within a tick of the file system's clock, and a file may
                # have the number of an earlier one: its time, to the nanosecond, tells them apart.
                os.utime(file.fileno(), ns=(time.time_ns(),) * 2)
            self._directory.rename(DRAFT, NAME)
        except OSError:
            with contextlib.suppress(OSError):
                self._directory.remove(DRAFT)
            raise

    def renew(self) -> None:
        """Let it look used."""
        with contextlib.suppress(OSError):
            os.utime(NAME, dir_fd=self._directory.fileno(), follow_symlinks=False)


def unpack_reset(compressed: bytes, now: float) -> Reset:
    """Return the reset that a file's bytes hold.

    Args:
        compressed: The bytes.
        now: Monotonic seconds; a reset is not of later.

    Raises:
        OSError: They are damaged: no worker has written them.
    """
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(compressed, MOST_UNPACKED_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("it does not end where it is to end")
        return _parse(data, now + FUTURE_SECONDS)
    except (zlib.error, struct.error, ValueError) as error:
        raise OSError(errno.EIO, "damaged") from error


def _parse(data: bytes, latest: float) -> Reset:
    """Return the reset. Raises ValueError or struct.error for what none can be."""
    at, number = HEAD.unpack_from(data)
    if not 0 <= at <= latest:  # NaN, too
        raise ValueError("at an impossible time")
    states: dict[tuple[int, int], int] = {}
    place = HEAD.size
    for _ in range(number):
        nonce, offset, size = ENTRY.unpack_from(data, place)
        place += ENTRY.size
        state = data[place : place + size]
        if len(state) != size or (nonce, offset) in states:
            raise ValueError("no states")
        states[nonce, offset] = int.from_bytes(state, "little")
        place += size
    if place != len(data):
        raise ValueError("more than the states")
    return Reset(at, states)
