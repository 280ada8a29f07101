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
MOST_BYTES = 256 << 20
# No server has more tables, and no table a larger state.
MOST_STATES, MOST_STATE_BYTES = 1 << 16, 64 << 20
BLOCK_BYTES = 1 << 20
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
        self._damaged: Seen | None = None  # a file that is not read again

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
        if now == self._damaged or status.st_size > MOST_BYTES:
            raise OSError(errno.EIO, "damaged")
        if now != seen:
            data = self._directory.read(NAME, MOST_BYTES)
            if zlib.crc32(data) != checksum:  # else it was only renewed
                try:
                    known = unpack_reset(data, self._clock())
                except OSError:
                    self._damaged = now
                    raise
                checksum = zlib.crc32(data)
            self._known = now, checksum, known
        return known

    def write(self, reset: Reset) -> None:
        """Replace it. Raises OSError where there is no room; the file is then as it was."""
        data = bytearray(HEAD.pack(reset.at, len(reset.states)))
        for (nonce, offset), state in reset.states.items():
            raw = state.to_bytes(-(-state.bit_length() // 8), "little")
            data += ENTRY.pack(nonce, offset, len(raw)) + raw
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


def unpack_reset(compressed: bytes, now: float) -> Reset:
    """Return the reset that a file's bytes hold.

    Args:
        compressed: The bytes.
        now: Monotonic seconds; a reset is not of later.

    Raises:
        OSError: They are damaged: no worker has written them.
    """
    try:
        return _parse(_Unpacker(compressed), now + FUTURE_SECONDS)
    except (zlib.error, struct.error, ValueError) as error:
        raise OSError(errno.EIO, "damaged") from error


class _Unpacker:
    """The bytes of a reset, unpacked as they are asked for: a file may claim gigabytes."""

    def __init__(self, compressed: bytes) -> None:
        self._rest = compressed
        self._unpacker = zlib.decompressobj()
        self._ready = b""

    def take(self, size: int) -> bytes:
        """Return the next bytes, so many. Raises ValueError or zlib.error where there are fewer."""
        parts = [self._ready]
        missing = size - len(self._ready)
        while missing > 0:
            part = self._unpacker.decompress(self._rest, max(missing, BLOCK_BYTES))
            self._rest = self._unpacker.unconsumed_tail
            if not part:
                raise ValueError("fewer bytes than it says")
            parts.append(part)
            missing -= len(part)
        found = b"".join(parts)
        self._ready = found[size:]
        return found[:size]

    def end(self) -> None:
        """Raise ValueError or zlib.error where it does not end here."""
        more = self._ready or self._unpacker.decompress(self._rest, BLOCK_BYTES)
        if more or not self._unpacker.eof or self._unpacker.unused_data:
            raise ValueError("it does not end where it is to end")


def _parse(data: _Unpacker, latest: float) -> Reset:
    """Return the reset. Raises ValueError, zlib.error or struct.error for what none can be."""
    at, number = HEAD.unpack(data.take(HEAD.size))
    if not 0 <= at <= latest or number > MOST_STATES:  # NaN, too
        raise ValueError("impossible time or number of states")
    states: dict[tuple[int, int], int] = {}
    for _ in range(number):
        nonce, offset, size = ENTRY.unpack(data.take(ENTRY.size))
        if size > MOST_STATE_BYTES or (nonce, offset) in states:
            raise ValueError("impossible state")
        states[nonce, offset] = int.from_bytes(data.take(size), "little")
    data.end()
    return Reset(at, states)
