"""A group: the workers of one server, their segments, and the files that they share.

`PrivateGroup` is one process with a segment in memory. `SharedGroup` (`shared`) is a directory that
all workers use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from metricsmw.config import Settings
from metricsmw.engine.directory import Directory
from metricsmw.engine.storage.layout import Owner
from metricsmw.engine.storage.memory import AnonymousMemory, Memory
from metricsmw.engine.storage.minutes import History, MemoryBytes
from metricsmw.engine.storage.reader import NEVER, Reset, SegmentSource, table_states
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.processes import this_process
from metricsmw.engine.workers.surroundings import HERE

Mode = Literal["private", "shared"]


class Savings(NamedTuple):
    """The counts of a private worker, which it takes along when it joins a shared group.

    Attributes:
        data: The worker's segment, byte for byte.
        states: The state of each of its tables at that moment, by (nonce, offset).
        reset: The last reset of this worker.
        since: Monotonic time since when the worker is private.
    """

    data: bytes
    states: Mapping[tuple[int, int], int]
    reset: Reset
    since: float


class Group(Protocol):
    """The workers of one server, and the place of their segments.

    Attributes:
        mode: "private" or "shared".
        reason: Why it is this mode, or this directory.
        failed: The last attempt to join a shared group failed.
        history: The server's minute history.
        segment: This worker's segment.
    """

    mode: Mode
    reason: str
    failed: bool
    history: History
    segment: Segment

    @property
    def directory(self) -> Directory | None:
        """The directory of the server's workers; None where there is none."""

    @property
    def reset(self) -> Reset:
        """The last reset of the server."""

    def sources(self, complete: bool = False) -> Mapping[str, SegmentSource]:
        """Return the segments of all workers, dead ones included, by name.

        Args:
            complete: Raise where a segment may be left out.

        Raises:
            OSError: With ``complete``: a segment may be there that cannot be opened now.
        """

    def write_reset(self, reset: Reset) -> None:
        """Save a reset for all workers. Raises OSError where it cannot be saved."""

    def renew(self, now: float) -> None:
        """Renew the times of the files in use, and note this worker's CPU and memory.

        The segment must be whole.

        Args:
            now: Monotonic seconds.
        """

    def problems(self) -> list[str]:
        """Return the faults of shared files but segments; the text is safe to show to anyone."""

    def exclusive(self, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Hold the server's lock.

        Args:
            wait: Wait for the lock, for a few seconds; else it is only tried.

        Yields:
            Whether the lock is held.

        Raises:
            OSError: The lock was waited for in vain.
        """

    def close(self) -> None:
        """Leave the group: its gauges are zeroed, its counts stay."""

    def release(self) -> None:
        """Release the files of a lost segment, or of the parent in a fork; change no bytes."""


class OwnSource:
    """This process's own segment, read through its own memory."""

    alive = True
    size = 0

    def __init__(self, memory: Memory) -> None:
        self.read = memory.read

    def opened(self) -> OwnSource:
        """Return itself: it is open."""
        return self


class PrivateGroup:
    """A process alone."""

    mode: Mode = "private"
    directory: Directory | None = None

    def __init__(
        self, settings: Settings, reason: str, created: float, *, failed: bool = False
    ) -> None:
        self.reason = reason
        self.failed = failed
        self._created = created
        self.history = History(MemoryBytes(), settings.max_history_minutes)
        self.history.start(created)
        self._thread_lock = threading.Lock()
        self.reset: Reset = NEVER
        self._memory = AnonymousMemory()
        self.segment = Segment(
            self._memory,
            window_seconds=settings.window_seconds,
            now=created,
            owner=Owner(*this_process(), pid_namespace=HERE.pid_namespace),
        )

    def sources(self, complete: bool = False) -> Mapping[str, SegmentSource]:
        """See `Group`: the one segment there is."""
        return {"own": OwnSource(self.segment.memory)}

    def write_reset(self, reset: Reset) -> None:
        """See `Group`."""
        self.reset = reset

    def renew(self, now: float) -> None:
        """Do nothing: there is no file that a cleaner might take."""

    def problems(self) -> list[str]:
        """See `Group`."""
        return [f"this worker's numbers are its own only: {self.reason}"] if self.failed else []

    def savings(self) -> Savings:
        """Return a copy of the counts so far."""
        data = self._memory.copy()

        def read(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        return Savings(data, dict(table_states(read)), self.reset, self._created)

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        """See `Group`: the lock is one of this process's threads."""
        held = self._thread_lock.acquire(blocking=wait)
        try:
            yield held
        finally:
            if held:
                self._thread_lock.release()

    def close(self) -> None:
        """See `Group`."""
        self.segment.zero_gauges()

    def release(self) -> None:
        """Do nothing: there is no file to release."""
