"""A group: where the segments of a server lie, and what its workers share.

`PrivateGroup` is a process alone; `SharedGroup` (`shared`) a directory that all workers use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from metricsmw.config import Settings
from metricsmw.engine.storage.layout import Owner
from metricsmw.engine.storage.memory import AnonymousMemory, Memory
from metricsmw.engine.storage.minutes import History, MemoryBytes
from metricsmw.engine.storage.reader import NEVER, Reset, Source, table_states
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.processes import this_process
from metricsmw.engine.workers.surroundings import HERE

Mode = Literal["private", "shared"]


class Savings(NamedTuple):
    """What a private worker has counted, for a place among the others.

    Attributes:
        data: Its segment, byte for byte.
        states: What each of its tables had counted by then.
        reset: The last reset that was made here.
        since: Monotonic time since when it is private.
    """

    data: bytes
    states: Mapping[tuple[int, int], int]
    reset: Reset
    since: float


class Group(Protocol):
    """What a monitor needs of the place where its server's segments lie.

    ``failed``: sharing was wanted, and could not be had when it was tried last.
    """

    mode: Mode
    reason: str
    failed: bool
    history: History
    segment: Segment

    @property
    def reset(self) -> Reset:
        """The last reset of the server."""

    def sources(self, complete: bool = False) -> Mapping[str, Source]:
        """The segments of all workers, dead ones included, by name.

        With ``complete`` it raises OSError where one may be there that cannot be opened now.
        """

    def write_reset(self, reset: Reset) -> None: ...

    def renew(self, now: float) -> None:
        """Let what is in use look so, and say what this worker uses; at monotonic ``now``.

        The segment must be whole.
        """

    def problems(self) -> list[str]:
        """What is wrong with what the workers share, beside segments; safe to show to anyone."""

    def exclusive(self, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Hold the server's lock; yields whether it is held. Never waits unless told to."""

    def close(self) -> None:
        """Leave the group: gauges go, counts stay."""

    def forget(self) -> None:
        """Let go of a segment that is lost, or in a forked child the parent's; change nothing."""


class OwnSource:
    """This process's own segment, read through its own memory."""

    alive = True

    def __init__(self, memory: Memory) -> None:
        self.read = memory.read


class PrivateGroup:
    """A process alone."""

    mode: Mode = "private"

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

    def sources(self, complete: bool = False) -> Mapping[str, Source]:
        return {"own": OwnSource(self.segment.memory)}

    def write_reset(self, reset: Reset) -> None:
        self.reset = reset

    def renew(self, now: float) -> None:
        pass

    def problems(self) -> list[str]:
        return [f"this worker's numbers are its own only: {self.reason}"] if self.failed else []

    def savings(self) -> Savings:
        """Return what was counted so far."""
        data = self._memory.copy()

        def read(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        return Savings(data, dict(table_states(read)), self.reset, self._created)

    @contextlib.contextmanager
    def exclusive(self, wait: bool) -> Iterator[bool]:
        held = self._thread_lock.acquire(blocking=wait)
        try:
            yield held
        finally:
            if held:
                self._thread_lock.release()

    def close(self) -> None:
        self.segment.zero_gauges()

    def forget(self) -> None:
        pass
