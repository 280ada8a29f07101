"""A group: where the segments of a server lie, and what its workers share.

`PrivateGroup` is a process alone; `SharedGroup` (`shared`) a directory that all workers use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from metricsmw.config import Settings
from metricsmw.engine.storage.memory import AnonymousMemory, Memory
from metricsmw.engine.storage.minutes import History, MemoryBytes
from metricsmw.engine.storage.reader import NEVER, Reset, Source
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.processes import this_process

Mode = Literal["private", "shared"]


class Group(Protocol):
    """What a monitor needs of the place where its server's segments lie."""

    mode: Mode
    reason: str
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

    def __init__(self, settings: Settings, reason: str, created: float) -> None:
        self.reason = reason
        self.history = History(MemoryBytes(), settings.max_history_minutes)
        self.history.start(created)
        self._thread_lock = threading.Lock()
        self.reset: Reset = NEVER
        me = this_process()
        self.segment = Segment(
            AnonymousMemory(), window_seconds=settings.window_seconds, now=created, owner=me
        )

    def sources(self, complete: bool = False) -> Mapping[str, Source]:
        return {"own": OwnSource(self.segment.memory)}

    def write_reset(self, reset: Reset) -> None:
        self.reset = reset

    def problems(self) -> list[str]:
        return []

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
