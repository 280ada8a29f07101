"""The two clocks that everything here runs on, and one that a test moves by hand.

Windows, ages and latencies run on the monotonic clock, which all processes of a machine share;
the wall clock only labels results. ``time.perf_counter`` is that monotonic clock: the same as
``time.monotonic`` on Linux and macOS, and the finer of the two on Windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """What tells the time; both are plain callables, so that a hot path can bind them."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """Seconds that never go back, from an arbitrary start >= 0."""

    @property
    def time(self) -> Callable[[], float]:
        """Unix time in seconds."""


class SystemClock(NamedTuple):
    """The machine's clocks."""

    monotonic: Callable[[], float] = time.perf_counter
    time: Callable[[], float] = time.time


SYSTEM_CLOCK: Clock = SystemClock()


class ManualClock:
    """A clock that stands still until it is told to move; for tests.

    ``start`` is the monotonic reading and ``wall`` the Unix time it begins with, in seconds.
    """

    def __init__(self, start: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self.now = start
        self.wall = wall

    def monotonic(self) -> float:
        """Return the monotonic time in seconds."""
        return self.now

    def time(self) -> float:
        """Return the Unix time in seconds."""
        return self.wall

    def advance(self, seconds: float) -> None:
        """Move both clocks on by ``seconds`` >= 0."""
        if seconds < 0:
            raise ValueError(f"seconds must be >= 0, got {seconds!r}: this clock is monotonic")
        self.now += seconds
        self.wall += seconds
