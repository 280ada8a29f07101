"""An open file that is closed when nobody uses it any more.

A thread may be about to read or write while another one leaves the group. With the number of a
file that has been closed it would meet whatever the host opened next.
"""

from __future__ import annotations

import os


class Descriptor:
    """Owns ``fd``; `fcntl.flock` and the like take it as it is."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Its number; -1 once it is closed, which the system refuses."""
        return self._fd

    def close(self) -> None:
        """Close it now: for what no other thread uses. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close
