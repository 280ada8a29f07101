"""CPU and memory of the server: the sum over its live workers, sampled without ever sleeping.

A worker's process is measured where this process can see it. A worker in another container
measures itself and writes that into its segment. Percentages are of the limit of the reader's
container, where it has one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from math import inf
from typing import NamedTuple

import psutil

from metricsmw.engine.reading.limits import Limits, read_limits, usable_cores
from metricsmw.engine.storage.reader import WorkerUsage
from metricsmw.engine.workers.surroundings import HERE, Surroundings

# A second reading within this time, in seconds, is answered by the first.
FRESH_SECONDS = 1.0
# A worker that has said nothing for so long is idle, or nearly so.
TOLD_SECONDS = 120.0
# The limits of a container may be changed as it runs.
LIMITS_SECONDS = 60.0


class Usage(NamedTuple):
    """CPU and memory of the workers.

    Attributes:
        cpu_pct: Of the container's CPU; of one core (as in top) where nothing limits it.
        cpu_share_pct: Of all cores that the server may use: the container's CPU, or the cores that
            its processes may run on.
        memory_pct: Of the container's memory, or the machine's.
        memory_mb: In MiB.
        unknown: Workers of which nothing is known: the sums are without them.
    """

    cpu_pct: float
    cpu_share_pct: float
    memory_pct: float
    memory_mb: float
    unknown: int = 0


class WorkerResources(NamedTuple):
    """CPU and memory of one worker.

    Attributes:
        cpu_pct: In percent of one core; of its whole life where nothing else is known.
        memory_bytes: Resident.
        recent_cpu_pct: The same of late; None where it is not known.
        seconds: This process measured that over the last so many seconds; None: it did not.
    """

    cpu_pct: float
    memory_bytes: int
    recent_cpu_pct: float | None = None
    seconds: float | None = None


# A worker: its process id, and the namespace of that.
WorkerKey = tuple[int, int]


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

    def __init__(self, here: Surroundings = HERE) -> None:
        self._here = here
        self._lock = threading.Lock()
        self._known: dict[int, _Sampled] = {}
        self._workers: frozenset[WorkerKey] = frozenset()
        self._each: Mapping[WorkerKey, WorkerResources] = {}
        self._at = -inf
        self._usage = Usage(0.0, 0.0, 0.0, 0.0)
        self._limits: tuple[float, Limits] | None = None  # when they were found

    def limits(self) -> Limits:
        """Return what percentages are of, as it was found within the last minute."""
        now = time.perf_counter()
        if self._limits is None or now - self._limits[0] >= LIMITS_SECONDS:
            try:
                memory = psutil.virtual_memory().total
            except Exception:  # less of /proc is shown than psutil reads
                memory = 0
            self._limits = now, read_limits(memory)
        return self._limits[1]

    def usage(self, workers: Collection[WorkerUsage]) -> Usage:
        """Return the sum over those workers; one that is gone counts as nothing."""
        self._sample_all(workers)
        return self._usage

    def each(self, workers: Collection[WorkerUsage]) -> Mapping[WorkerKey, WorkerResources]:
        """Return the CPU and memory of each of those workers of which they are known."""
        self._sample_all(workers)
        return self._each

    def _sample_all(self, workers: Collection[WorkerUsage]) -> None:
        now = time.perf_counter()
        wanted = frozenset((worker.pid, worker.pid_namespace) for worker in workers)
        # A thread that finds another one sampling takes the last answer: no request waits here.
        if (wanted == self._workers and now - self._at < FRESH_SECONDS) or not self._lock.acquire(
            blocking=False
        ):
            return
        try:
            self._usage = self._add_up(workers, now)
            self._workers, self._at = wanted, now
        finally:
            self._lock.release()

    def _add_up(self, workers: Collection[WorkerUsage], now: float) -> Usage:
        cpu = 0.0
        resident = unknown = 0
        namespace = self._here.pid_namespace
        pids = set()
        each: dict[WorkerKey, WorkerResources] = {}
        for worker in workers:
            found = None
            if worker.pid_namespace == namespace:
                found = self._look(worker.pid, now)
                pids.add(worker.pid)
            if found is None and worker.memory_bytes:
                told = worker.cpu_pct if worker.age < TOLD_SECONDS else None
                found = WorkerResources(told or 0.0, worker.memory_bytes, told)
            if found is None:
                unknown += 1
                continue
            each[worker.pid, worker.pid_namespace] = found
            cpu += found.cpu_pct
            resident += found.memory_bytes
        self._each = each
        for pid in self._known.keys() - pids:
            del self._known[pid]
        limits = self.limits()
        return Usage(
            round(cpu / (limits.cpu_cores or 1), 2),
            round(cpu / (limits.cpu_cores or usable_cores()), 2),
            round(100 * resident / (limits.memory_bytes or 1), 2) if limits.memory_bytes else 0.0,
            round(resident / 2**20, 2),
            unknown,
        )

    def _look(self, pid: int, now: float) -> WorkerResources | None:
        """Return what a process uses; None where it is not shown."""
        try:
            sampled = self._known.get(pid) or _Sampled(pid)
            found = self._sample(sampled, now)
        except Exception:  # gone, hidden, no descriptor left, or psutil needs more of /proc
            self._known.pop(pid, None)
            return None
        self._known[pid] = sampled
        return found

    def _sample(self, sampled: _Sampled, now: float) -> WorkerResources:
        process = sampled.process
        with process.oneshot():
            times = process.cpu_times()
            resident = process.memory_info().rss
            before = sampled.at
            elapsed = now - before if before >= 0 else time.time() - process.create_time()
        used = times.user + times.system
        share = 100 * (used - sampled.cpu_seconds) / elapsed if elapsed > 0 else 0.0
        sampled.at, sampled.cpu_seconds = now, used
        if before < 0:
            return WorkerResources(max(share, 0.0), resident)
        return WorkerResources(max(share, 0.0), resident, max(share, 0.0), elapsed)
