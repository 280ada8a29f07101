"""`AttachedServer`: a server's numbers, read from its shared memory by a process that is no worker.

It builds the same `Reading` that a worker builds, over a group in which nothing can be changed: no
segment is opened for writing, no minute is written, no lock is taken, no file is renewed. So a
reading is possible while every worker hangs, and leaves no trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from metricsmw.clock import SYSTEM_CLOCK, Clock
from metricsmw.config import CAPTURE, RANGES, Settings
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.reading.health import OPERATIONAL, ServerHealth
from metricsmw.engine.reading.moment import Reader, Reading
from metricsmw.engine.reading.workers import STOPPED, WorkerRow
from metricsmw.engine.storage.layout import HEADER_BYTES, LAYOUT, MAGIC, Field
from metricsmw.engine.workers.catalog import FoundServer
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.membership import Membership
from metricsmw.engine.workers.outside import CopiedJobs, OutsideGroup, OutsideSegment
from metricsmw.engine.workers.sightings import read_sightings
from metricsmw.engine.workers.surroundings import HERE, Surroundings

# The settings that the header of a segment says.
SETTINGS = {
    "window_seconds": Field.WINDOW,
    "user_timeout_seconds": Field.USER_TIMEOUT,
    "max_routes": Field.MAX_ROUTES,
}


class UnreadableServerError(Exception):
    """A server whose segments cannot be read; the message says why."""


class AttachedServer:
    """A server that this process is no worker of: what a `Reader` takes in a monitor's place.

    Args:
        found: The server.
        clock: The clock of the times in its segments.
        here: The system's facts about this process.
    """

    directory = None  # what the server keeps in files is copied, see `CopiedJobs`
    shared_directory = None
    lasting = None
    is_open = True
    is_serving = False
    is_closed = False
    events = None  # reading leaves no trace

    def __init__(
        self, found: FoundServer, clock: Clock = SYSTEM_CLOCK, here: Surroundings = HERE
    ) -> None:
        self.found = found
        self.faults = FaultLog()
        self.jobs = CopiedJobs()
        self._clock = clock
        self._here = here
        self._group: OutsideGroup | None = None
        self._reader: Reader | None = None

    def opened(self) -> Group:
        """Return the group of the last reading."""
        assert self._group is not None
        return self._group

    def read(self) -> Reading:
        """Return a reading of this moment, the table of routes included.

        Raises:
            OSError: The directory cannot be read, or is gone as the server has ended.
            UnreadableServerError: No segment can be read.
        """
        now = self._clock.monotonic()
        with contextlib.closing(self.found.open()) as folder:
            group = self._group = OutsideGroup(folder, now, self.found.reason, self._here)
            self.jobs.copy(folder, group.flocks, now)
            sightings = read_sightings(folder)
        settings = self._settings(group)
        if self._reader is None or self._reader.settings != settings:
            never = Membership(settings, self._clock, self.faults, lambda: None)
            never.is_measured = True  # whether it is cannot be seen from outside
            self._reader = Reader(settings, self._clock, never, self, self._here)
        self._reader.workers.learn(sightings, now)
        reading = self._reader.read(routes=True)
        server = reading.server
        if server.damaged and not any(segment.alive for segment in server.segments):
            reasons = sorted(set(server.damaged.values()))
            raise UnreadableServerError(
                f"none of its {len(server.damaged)} segments can be read: {'; '.join(reasons)}"
            )
        return reading

    @staticmethod
    def _settings(group: OutsideGroup) -> Settings:
        """Return the server's settings, as far as its files tell them."""
        living = [segment for segment in group.segments.values() if segment.alive]
        newest = sorted(living or group.segments.values(), key=lambda segment: segment.created)
        told: dict[str, int] = {}
        for segment in newest:  # later ones have the last word
            told |= _settings_in(segment)
        default = Settings()
        return Settings(
            window_seconds=told.get("window_seconds", default.window_seconds),
            user_timeout_seconds=told.get("user_timeout_seconds", default.user_timeout_seconds),
            max_routes=told.get("max_routes", default.max_routes),
            max_history_minutes=group.minutes,
            capture=CAPTURE,  # workers have written down what they may tell, and nothing else
        )

    def health(self, reading: Reading) -> ServerHealth:
        """Return the state of the measuring, and of the workers, as seen from outside."""
        health = reading.health
        state = _state_of(reading.workers)
        status = health["status"] if state == OPERATIONAL else "degraded"
        return {
            **health,
            "status": status,
            "components": {**health["components"], "workers": state},
        }


def _state_of(workers: Sequence[WorkerRow]) -> str:
    """Return whether workers can work, as one component of health."""
    if not workers:
        return "no worker lives"
    stopped = sum(row["state"] in STOPPED for row in workers)
    if stopped == len(workers):
        return "the worker looks stopped" if stopped == 1 else f"all {stopped} workers look stopped"
    if stopped:
        return f"{stopped} of {len(workers)} workers look stopped"
    return OPERATIONAL


def _settings_in(segment: OutsideSegment) -> dict[str, int]:
    """Return the settings that a segment's header says; none where it is another's or damaged."""
    page = segment.read(0, HEADER_BYTES)
    if len(page) < HEADER_BYTES or not page.startswith(MAGIC):
        return {}
    numbers = memoryview(page).cast("d")
    found = {}
    for name, field in SETTINGS.items():
        number, (lowest, highest) = numbers[field], RANGES[name]
        if lowest <= number <= highest and number == int(number):
            found[name] = int(number)
    return found if numbers[Field.LAYOUT] == LAYOUT else {}
