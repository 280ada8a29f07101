"""An open file that is closed when nobody uses it any more.

A thread may be about to read or write while another one leaves the group. With the number of a
file that has been closed it would meet whatever the host opened next.

A forked child has no such threads, and is to keep none of them open: a lock would then outlive its
owner. So it closes all of its parent's, those included that another thread was just opening.
"""

from __future__ import annotations

import os
import weakref

from metricsmw.engine.fork import on_fork

_all: weakref.WeakSet[Descriptor] = weakref.WeakSet()


class Descriptor:
    """Owns ``fd``; `fcntl.flock` and the like take it as it is."""

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _all.add(self)

    def fileno(self) -> int:
        """Its number; -1 once it is closed, which the system refuses."""
        return self._fd

    def close(self) -> None:
        """Close it now: for what no other thread uses. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def _after_fork() -> None:
    for descriptor in list(_all):
        descriptor.close()


on_fork(_after_fork)
