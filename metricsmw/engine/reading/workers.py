"""The workers of a server one by one: what each does, and which of them is sick.

Everything here is read from segments and from the system, by whoever reads: a worker that hangs is
asked for nothing, and nothing waits for it. What a segment does not say, such as since when a
request is in flight, is known from the readings before, which a `WorkerWatch` remembers, and shares
with the server's other readers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from math import inf
from typing import TYPE_CHECKING, TypedDict

from metricsmw.engine.reading.counts import Counts
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.histogram import CEILING_SECONDS, FIRST, FLOOR_SECONDS, index
from metricsmw.engine.storage.lanes import in_use
from metricsmw.engine.storage.layout import Field
from metricsmw.engine.storage.reader import SegmentReading, WorkerUsage
from metricsmw.engine.storage.tables import READ_ERRORS
from metricsmw.engine.workers.sightings import (
    SHARE_SECONDS,
    Sighting,
    read_sightings,
    write_sightings,
)
from metricsmw.engine.workers.surroundings import HERE, Surroundings
from metricsmw.snapshot import iso_timestamp

if TYPE_CHECKING:
    from metricsmw.engine.directory import Directory
    from metricsmw.engine.reading.resources import WorkerKey, WorkerResources

ON_DISK = "waits for a disk"
# The kernel's letters for a process that does not go on by itself.
STATES = {
    "T": "stopped",
    "t": "traced",
    "D": ON_DISK,
    "Z": "ended",
    "X": "ended",
    "R": "running",
    "S": "running",
    "I": "running",
}
STOPPED = ("stopped", "traced")

# A worker that has requests in flight, and has finished none for so long, is said to do nothing.
QUIET_SECONDS = 5.0
# From so much of a core on such a worker spins; below it waits.
SPINS_CPU_PCT = 20.0
# The same of a worker without a request in flight, which may do work that is none: it spins where
# so many came to its siblings meanwhile.
SPINS_IDLE_CPU_PCT = 50.0
SIBLINGS_REQUESTS = 20

# So many requests a worker must have had in the window, before it is compared with its siblings,
# and so many of them must be slow, or failed.
LEAST_REQUESTS = 50
LEAST_BAD = 10
# Slow is what took so many times longer than 95 % of the siblings' requests did; and so large a
# share of a worker's requests must be slow.
SLOW_FACTOR, SLOW_SHARE = 2.0, 0.2
# So many times the siblings' share of server errors, and so much on top, is too much.
ERROR_FACTOR, ERROR_SHARE = 3.0, 0.05
# The same of memory, in bytes.
MEMORY_FACTOR, MEMORY_BYTES = 2.0, 100 * 2**20


class WorkerRow(TypedDict):
    """One living worker. Rates, shares and latencies are of the window; None: not known.

    Attributes:
        pid: Its process id.
        state: "running"; "stopped" (SIGSTOP), "traced" (a debugger holds it), "waits for a disk",
            "ended"; "spins", "waits" or "hangs" (not known which) where it finishes no request;
            "unknown" where the process is not shown.
        differs: The fields by which it differs from its siblings for the worse.
        since: When it joined the server.
        requests: What it has answered since then, or since the last reset.
        request_rate_rpm: Requests a minute.
        error_rate_pct: The share of errors.
        server_error_rate_pct: The share of those that are the server's own.
        latency_p95_ms: None of no requests.
        requests_in_flight: As it said last.
        websocket_connections: Likewise.
        cpu_pct: Of one core, since the reading before.
        memory_mb: Resident, in MiB.
        last_request_seconds: Since it finished one, known to a step of the window; None: it has
            finished none.
        seen_seconds: Since it last gave a sign of life: it records or reads.
    """

    pid: int
    state: str
    differs: list[str]
    since: str
    requests: int
    request_rate_rpm: float
    error_rate_pct: float
    server_error_rate_pct: float
    latency_p95_ms: float | None
    requests_in_flight: int
    websocket_connections: int
    cpu_pct: float | None
    memory_mb: float | None
    last_request_seconds: float | None
    seen_seconds: float | None


class WorkerWatch:
    """Remembers of each worker since when it finishes no request, from one reading to the next.

    Readers of one server share what they remember, so that a mark does not depend on who reads.

    Args:
        here: The system's facts about this process.
    """

    def __init__(self, here: Surroundings = HERE) -> None:
        self.here = here
        self._looks: dict[str, Sighting] = {}
        self._shared_at = -inf

    def learn(self, sightings: Mapping[str, Sighting], now: float) -> None:
        """Take over what other readers have seen by monotonic ``now``."""
        looks = dict(self._looks)
        for name, one in sightings.items():
            if one.at <= now + SHARE_SECONDS:  # anything else is damage
                looks[name] = one.plus(looks.get(name, one))
        self._looks = looks

    def look(self, server: ServerReading, directory: Directory | None = None) -> None:
        """Take note of a reading of now.

        Args:
            server: The reading.
            directory: Where readers share what they have seen; None: there is no such place.
        """
        now, requests = server.period.now, server.total.requests
        live = [segment for segment in server.segments if segment.alive]
        shared: Mapping[str, Sighting] | None = None
        if directory is not None and len(live) > 1 and now - self._shared_at >= SHARE_SECONDS:
            self._shared_at = now
            shared = read_sightings(directory)
            self.learn(shared, now)
        looks = {}
        for segment in live:
            counted = hash(segment.table.total)  # of a number: the same in all processes
            busy_since = now if segment.gauge(Field.IN_FLIGHT) else None
            one = Sighting(segment.pid, segment.joined, counted, now, now, busy_since, requests)
            looks[segment.name] = one.plus(self._looks.get(segment.name, one))
        self._looks = looks
        if shared is None or directory is None:
            return
        if any(one.adds_to(shared.get(name)) for name, one in looks.items()):
            write_sightings(directory, looks)

    def quiet_seconds(self, segment: SegmentReading, server: ServerReading) -> tuple[float, bool]:
        """Return for how long a worker has been seen to finish no request that it could.

        Returns:
            The seconds, and whether it has requests in flight; 0.0 where none came to it, as far
            as can be known.
        """
        look = self._looks.get(segment.name)
        now = server.period.now
        if look is None or (look.pid, look.joined) != (segment.pid, segment.joined):
            return 0.0, False
        if look.busy_since is not None:
            return now - look.busy_since, True
        if server.total.requests - look.server_requests < SIBLINGS_REQUESTS:
            return 0.0, False
        return now - look.since, False

    def rows(
        self,
        server: ServerReading,
        wall: float,
        window_seconds: int,
        resources: Mapping[WorkerKey, WorkerResources],
    ) -> list[WorkerRow]:
        """Return the living workers, by their process ids.

        Args:
            server: The reading, which `look` has seen.
            wall: Unix time of it.
            window_seconds: The length of the window.
            resources: The workers' CPU and memory, as far as they are known.
        """
        found = []
        for segment in server.segments:
            if segment.alive:
                try:
                    found.append(_Worker(segment, server))
                except READ_ERRORS as error:
                    server.damaged[segment.name] = str(error)
        for worker in found:
            worker.resources = resources.get((worker.usage.pid, worker.usage.pid_namespace))
        rows: list[WorkerRow] = []
        for worker in found:
            row = worker.row(wall, window_seconds)
            row["state"] = self._state(worker, server)
            row["differs"] = list(_differences(worker, [one for one in found if one is not worker]))
            rows.append(row)
        return sorted(rows, key=lambda row: row["pid"])

    def _state(self, worker: _Worker, server: ServerReading) -> str:
        usage = worker.usage
        letter = ""
        if usage.pid_namespace == self.here.pid_namespace:
            letter = self.here.state(usage.pid)
        state = STATES.get(letter, "unknown")
        if state not in ("running", "unknown", ON_DISK):
            return state
        quiet, is_busy = self.quiet_seconds(worker.segment, server)
        if state == ON_DISK:  # for a moment, any worker may
            return ON_DISK if quiet >= QUIET_SECONDS else "running"
        if quiet < QUIET_SECONDS:
            return state
        cpu_pct = _cpu_within(worker.resources, quiet)
        if not is_busy:
            spins = cpu_pct is not None and cpu_pct >= SPINS_IDLE_CPU_PCT
            return "spins" if spins else state
        if cpu_pct is None:  # not measured here so far; who reads is itself on a CPU
            return "spins" if letter == "R" and usage.pid != os.getpid() else "hangs"
        return "spins" if cpu_pct >= SPINS_CPU_PCT else "waits"


def _cpu_within(resources: WorkerResources | None, quiet: float) -> float | None:
    """Return the CPU that a worker used while it was quiet; None where that cannot be known."""
    if resources is None or resources.seconds is None:
        return None
    if resources.seconds <= quiet:
        return resources.cpu_pct
    # At most, as it may have used all of it before.
    most = resources.cpu_pct * resources.seconds / quiet
    return most if most < SPINS_CPU_PCT else None


class _Worker:
    """A worker's numbers in a reading."""

    resources: WorkerResources | None = None

    def __init__(self, segment: SegmentReading, server: ServerReading) -> None:
        self.segment = segment
        self.usage: WorkerUsage = segment.usage()
        self._now = server.period.now
        self._window_start = server.period.start
        self._since = max(segment.joined, server.reset.at)
        table = segment.own_table()
        self.window = Counts.of_server(table.window, table.peaks[0])
        at_reset = Counts.of_server(segment.at_reset).requests
        every = Counts.of_server(table.total).requests + at_reset
        self.requests = max(every - max(segment.taken_over, at_reset), 0)
        self._last = segment.last_counted() if self.requests else None

    def row(self, wall: float, window_seconds: int) -> WorkerRow:
        """Return the row, without what is known by comparison."""
        window, now, usage = self.window, self._now, self.usage
        age = max(now - self._since, min(60.0, window_seconds))
        used = self.resources
        cpu_pct = None if used is None else used.recent_cpu_pct
        last = None if self._last is None else max(now - self._last, 0.0)
        seen = 0.0 if usage.pid == os.getpid() else min(usage.age, inf if last is None else last)
        return {
            "pid": usage.pid,
            "state": "unknown",
            "differs": [],
            "since": iso_timestamp(wall - max(now - self.segment.joined, 0.0)),
            "requests": self.requests,
            "request_rate_rpm": window.rate_rpm(min(now - self._window_start, age)),
            "error_rate_pct": window.error_rate_pct,
            "server_error_rate_pct": window.server_error_rate_pct,
            "latency_p95_ms": window.percentiles_ms[1] if window.latency.count else None,
            "requests_in_flight": self.segment.gauge(Field.IN_FLIGHT),
            "websocket_connections": self.segment.gauge(Field.WEBSOCKETS),
            "cpu_pct": None if cpu_pct is None else round(cpu_pct, 2),
            "memory_mb": None if used is None else round(used.memory_bytes / 2**20, 2),
            "last_request_seconds": None if last is None else round(last, 1),
            "seen_seconds": round(seen, 1) if seen < inf else None,
        }


def _differences(worker: _Worker, siblings: Sequence[_Worker]) -> Iterator[str]:
    """Yield the fields by which a worker differs from its siblings for the worse.

    Rates, CPU and requests in flight are none of them: servers leave it to chance which worker gets
    how many requests.
    """
    own = worker.window
    rest = reduce(Counts.plus, (one.window for one in siblings), Counts())
    if min(own.requests, rest.requests) >= LEAST_REQUESTS:
        share = own.server_errors / own.requests
        usual = rest.server_errors / rest.requests
        if own.server_errors >= LEAST_BAD and share >= ERROR_FACTOR * usual + ERROR_SHARE:
            yield "server_error_rate_pct"
        slow = _slower_than(own, SLOW_FACTOR * rest.latency.percentile(95))
        if slow >= max(LEAST_BAD, SLOW_SHARE * own.requests):
            yield "latency_p95_ms"
    theirs = sorted(one.resources.memory_bytes for one in siblings if one.resources is not None)
    if worker.resources is not None and theirs:
        median = theirs[len(theirs) // 2]
        if worker.resources.memory_bytes >= max(MEMORY_FACTOR * median, median + MEMORY_BYTES):
            yield "memory_mb"


def _slower_than(counts: Counts, seconds: float) -> int:
    """Return how many requests took longer, to a bucket."""
    first, buckets = in_use(counts.histogram)
    limit = index(min(max(seconds, FLOOR_SECONDS), CEILING_SECONDS)) - FIRST - first
    return sum(buckets[max(limit + 1, 0) :])
