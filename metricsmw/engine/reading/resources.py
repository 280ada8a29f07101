"""CPU and memory of the server: the sum over its live workers, sampled without ever sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import psutil

# A second reading within this time, in seconds, is answered by the first.
FRESH_SECONDS = 1.0


class Usage(NamedTuple):
    """CPU in percent of one core (as in top), resident memory in percent and in MiB."""

    cpu_pct: float
    memory_pct: float
    memory_mb: float


class _Sampled:
    """One process, and the CPU seconds it had used when it was last looked at."""

    __slots__ = ("at", "cpu_seconds", "process")

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.at = -1.0
        self.cpu_seconds = 0.0


class ResourceSampler:
    """Reads the processes of a server; CPU is the average since the reading before.

    The first reading of a process has none before it and covers its whole life.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, _Sampled] = {}
        self._pids: frozenset[int] = frozenset()
        self._at = 0.0
        self._usage = Usage(0.0, 0.0, 0.0)
        self._total_memory = 0

    def usage(self, pids: Collection[int]) -> Usage:
        """The sum over those processes; one that is gone counts as nothing."""
        now = time.perf_counter()
        wanted = frozenset(pids)
        # A thread that finds another one sampling takes the last answer: no request waits here.
        if (wanted == self._pids and now - self._at < FRESH_SECONDS) or not self._lock.acquire(
            blocking=False
        ):
            return self._usage
        try:
            cpu = 0.0
            resident = 0
            for pid in wanted:
                try:
                    sampled = self._known.get(pid) or _Sampled(pid)
                    share, rss = self._sample(sampled, now)
                except (psutil.Error, OSError):  # OSError: there is no descriptor left
                    self._known.pop(pid, None)
                    continue
                self._known[pid] = sampled
                cpu += share
                resident += rss
            for pid in self._known.keys() - wanted:
                del self._known[pid]
            if resident and not self._total_memory:
                self._total_memory = psutil.virtual_memory().total
            self._usage = Usage(
                round(cpu, 2),
                round(100 * resident / (self._total_memory or 1), 2),
                round(resident / 2**20, 2),
            )
            self._pids, self._at = wanted, now
        finally:
            self._lock.release()
        return self._usage

    def _sample(self, sampled: _Sampled, now: float) -> tuple[float, int]:
        process = sampled.process
        with process.oneshot():
            times = process.cpu_times()
            resident = process.memory_info().rss
            before = sampled.at
            elapsed = now - before if before >= 0 else time.time() - process.create_time()
        used = times.user + times.system
        share = 100 * (used - sampled.cpu_seconds) / elapsed if elapsed > 0 else 0.0
        sampled.at, sampled.cpu_seconds = now, used
        return max(share, 0.0), resident
