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
from pathlib import Path

from metricsmw.engine.files import open_own
from metricsmw.engine.storage.reader import NEVER, Reset

HEAD = struct.Struct("<dQ")
ENTRY = struct.Struct("<QQQ")

Seen = tuple[int, int]


class ResetFile:
    """The last reset of a server, read again when the file has changed."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "reset")
        self._draft = directory / "new-reset"
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
            status = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            if known is NEVER:
                return NEVER
            raise
        now = status.st_ino, status.st_mtime_ns
        if now != seen:
            data = self._read_file()
            if zlib.crc32(data) != checksum:  # else it was only renewed
                checksum, known = zlib.crc32(data), unpack_reset(data)
            self._known = now, checksum, known
        return known

    def _read_file(self) -> bytes:
        file = open_own(self._path, os.O_RDONLY)
        with open(file.fileno(), "rb", closefd=False) as stream:
            return stream.read()

    def write(self, reset: Reset) -> None:
        """Replace it. Raises OSError where there is no room; the file is then as it was."""
        data = bytearray(HEAD.pack(reset.at, len(reset.states)))
        for (nonce, offset), state in reset.states.items():
            raw = state.to_bytes(-(-state.bit_length() // 8), "little")
            data += ENTRY.pack(nonce, offset, len(raw)) + raw
        try:
            self._draft.write_bytes(zlib.compress(data, 1))
            # Resets follow each other within a tick of the file system's clock, and a file may have
            # the number of an earlier one: its time, to the nanosecond, tells them apart.
            os.utime(self._draft, ns=(time.time_ns(),) * 2)
            self._draft.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                self._draft.unlink()
            raise

    def renew(self) -> None:
        """Let it look used."""
        with contextlib.suppress(OSError):
            os.utime(self._path, follow_symlinks=False)


def unpack_reset(compressed: bytes) -> Reset:
    """Return the reset that a file's bytes hold. Raises OSError where they are damaged."""
    try:
        data = zlib.decompress(compressed)
    except zlib.error as error:  # somebody else wrote there
        raise OSError(errno.EIO, "damaged") from error
    at, number = HEAD.unpack_from(data)
    states = {}
    place = HEAD.size
    for _ in range(number):
        nonce, offset, size = ENTRY.unpack_from(data, place)
        place += ENTRY.size
        states[nonce, offset] = int.from_bytes(data[place : place + size], "little")
        place += size
    return Reset(at, states)
