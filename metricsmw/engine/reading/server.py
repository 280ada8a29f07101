"""`ServerReading`: all segments of a server, read once, without disturbing any writer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.reading.counts import Counts
from metricsmw.engine.reading.errors import ErrorKind, join_errors
from metricsmw.engine.reading.instruments import InstrumentSeries, join
from metricsmw.engine.reading.lazy import lazy
from metricsmw.engine.reading.routes import (
    RouteLanes,
    RouteRow,
    route_counts,
    route_row,
    seconds_spent,
)
from metricsmw.engine.storage.captures import Capture
from metricsmw.engine.storage.header import OtherVersionError
from metricsmw.engine.storage.histogram import (
    ROUTE_FIRST,
    ROUTE_SCALE,
    Distribution,
)
from metricsmw.engine.storage.keys import (
    KEY_BITS,
    AnswerName,
    Name,
    Times,
)
from metricsmw.engine.storage.layout import (
    Field,
)
from metricsmw.engine.storage.reader import (
    NOTHING_KEPT,
    Period,
    Reset,
    SegmentReading,
    SegmentSource,
    WorkerUsage,
    table_states,
)
from metricsmw.engine.storage.routes import RouteCounts, RouteTotal
from metricsmw.engine.storage.tables import READ_ERRORS, Kept
from metricsmw.engine.workers.group import Group

logger = logging.getLogger("metricsmw")

T = TypeVar("T")


class ServerReader:
    """Reads all segments of a server; logs each one that is left out, once."""

    def __init__(self, settings: Settings) -> None:
        self._window_seconds = settings.window_seconds
        self._logged: set[str] = set()
        # Of the last reading. Replaced as a whole: threads share it.
        self._kept: Mapping[int, Kept] = {}

    def read(self, group: Group, period: Period, *, routes: bool = False) -> ServerReading:
        """Return a reading of the group's segments. Opens nothing, so it takes no lock.

        Args:
            group: the group to read.
            period: the window, and the moment at which it ends.
            routes: read the tables of routes before the totals; see `ServerReading`.
        """
        # The reset goes first: states read after it can only be later ones.
        reset = group.reset
        reading = ServerReading(
            group.sources(), period, reset, self._window_seconds, routes=routes, kept=self._kept
        )
        self._kept = reading.kept
        for name, reason in reading.damaged.items():
            if name not in self._logged:
                self._logged.add(name)
                logger.warning("metricsmw: segment %s is left out: %s", name, reason)
        return reading

    def reset(self, group: Group, clock: Clock) -> float:
        """Reset the server: from now on no reading has earlier counts.

        Returns:
            The monotonic time of the reset.

        Raises:
            OSError: there is no room to note the reset, or a segment cannot be opened now; nothing
                is then reset.
        """
        with group.exclusive(wait=True):
            now = clock.monotonic()
            # What was left out here would come back with its next reading.
            sources = group.sources(complete=True)
            group.write_reset(Reset(now, table_states_of(sources)))
            group.history.start(now)
        return now


class ServerReading:
    """All segments of a server, read once: every number of one moment comes from here.

    Attributes:
        window: the counts of the window.
        total: the counts since the start or the last reset.
        damaged: segments that cannot be right and are left out, with the reason.
        period: the window, and the moment at which it ends.
        reset: the server's last reset.
        kept: what the next reading may be given, by the nonces of the segments.
    """

    def __init__(
        self,
        sources: Mapping[str, SegmentSource],
        period: Period,
        reset: Reset,
        window_seconds: int,
        *,
        routes: bool = False,
        kept: Mapping[int, Kept] = NOTHING_KEPT,
    ) -> None:
        """Read them.

        Args:
            sources: the segments by name.
            period: the window, and the moment at which it ends.
            reset: the last reset, read before the sources; earlier counts are left out.
            window_seconds: the length of the window.
            routes: read the tables of routes now, before the totals. A request is counted in the
                totals first, so no sum over routes is then ahead of them. Otherwise these tables
                are read when they are asked for.
            kept: what an earlier reading has kept.
        """
        self.period = period
        self.reset = reset
        self.damaged: dict[str, str] = {}
        self._sources = sources
        self._window_seconds = window_seconds
        self.segments: list[SegmentReading] = []
        for name, source in sources.items():
            try:
                segment = SegmentReading(
                    name, source, period, reset, window_seconds, routes=routes, kept=kept
                )
            except OtherVersionError as error:
                if source.alive:  # else it is left by workers from before a reload
                    self.damaged[name] = str(error)
            except READ_ERRORS as error:
                self.damaged[name] = str(error)
            else:
                self.segments.append(segment)
        self.kept: dict[int, Kept] = {
            s.nonce: s.table.kept for s in self.segments if s.table.kept is not None
        }
        window = sum(s.table.window for s in self.segments)
        total = sum(s.table.total for s in self.segments)
        peak = max((s.table.peaks[0] for s in self.segments), default=0.0)
        self.window = Counts.of_server(window, peak)
        self.total = Counts.of_server(total)

    @property
    def created(self) -> float:
        """Monotonic time of the server's start."""
        return min((segment.created for segment in self.segments), default=self.period.now)

    @property
    def started(self) -> float:
        """Monotonic time since when there are numbers: the server's start or the last reset."""
        return max(self.created, self.reset.at)

    @property
    def workers(self) -> int:
        """How many workers live."""
        return sum(segment.alive for segment in self.segments)

    def pids(self) -> set[int]:
        """Return the ids of the live workers' processes."""
        return {segment.pid for segment in self.segments if segment.alive}

    def live_workers(self) -> list[WorkerUsage]:
        """Return the live workers' processes, and what each said last of its CPU and memory."""
        return [segment.usage() for segment in self.segments if segment.alive]

    def faults(self) -> int:
        """Return the number of failures inside the metrics, over all workers."""
        return sum(int(segment.header[Field.FAULTS]) for segment in self.segments)

    def gauge(self, field: Field) -> int:
        """Return the sum of a gauge over the live workers."""
        return sum(segment.gauge(field) for segment in self.segments)

    def covered(self, window_seconds: int) -> float:
        """Return the seconds that the window's counts cover.

        The window with its step in progress, or the server's age where that is less, but at
        least a minute (or the window, where that is shorter).
        """
        now = self.period.now
        age = now - self.started
        return min(now - self.period.start, max(age, min(60.0, window_seconds)))

    def active_users(self, timeout: float) -> tuple[int, float]:
        """Return how many users were active within ``timeout`` seconds.

        Returns:
            The count, and its relative standard error: 0.0 where it is exact.
        """
        oldest = self._oldest(timeout)

        def active(segment: SegmentReading) -> Iterable[tuple[int, list[int]]]:
            k, keys = segment.active(oldest, timeout)
            # Of a dead worker's sample nothing is left, once no user in it is active.
            if keys or segment.alive:
                yield k, keys

        found = list(self._gather(active))
        k = max((k for k, _ in found), default=0)
        keys = set().union(*(keys for _, keys in found))
        if not k:
            return len(keys), 0.0
        limit = 1 << KEY_BITS - k
        kept = sum(key < limit for key in keys)
        return kept << k, max(kept, 1) ** -0.5

    def user_ids(self, timeout: float) -> list[str]:
        """Return the ids of the active users that are kept by name, sorted."""
        oldest = self._oldest(timeout)
        return sorted(set(self._gather(lambda segment: segment.user_ids(oldest))))

    def _oldest(self, timeout: float) -> float:
        return max(self.period.now - timeout, self.reset.at)

    def _gather(self, read: Callable[[SegmentReading], Iterable[T]]) -> Iterable[T]:
        """Yield what ``read`` finds in each segment; of one that turns out damaged, nothing."""
        for segment in self.segments:
            try:
                found = list(read(segment))
            except READ_ERRORS as error:
                self.damaged[segment.name] = str(error)
                continue
            yield from found

    def steps(self, first: int) -> dict[int, int]:
        """Return what all workers counted in each step from ``first`` on, as lanes."""
        return self._add_up(lambda segment: segment.steps(first).items())

    def route_steps(self, name: Name, first: int) -> dict[int, int]:
        """Return what all workers counted of one route in each of the routes' steps, as lanes."""
        return self._add_up(lambda segment: segment.route_steps(name, first))

    def stream_steps(self, first: int, name: Name | None = None) -> dict[int, dict[Times, int]]:
        """Return what all workers counted of streams in each of the routes' steps, as lanes.

        Args:
            first: The number of the first step.
            name: Of that route only; None: of all.
        """
        found: dict[int, dict[Times, int]] = {}
        for step, times, lanes in self._gather(lambda segment: segment.stream_steps(first, name)):
            counted = found.setdefault(step, {})
            counted[times] = counted.get(times, 0) + lanes
        return found

    def _add_up(
        self, read: Callable[[SegmentReading], Iterable[tuple[int, int]]]
    ) -> dict[int, int]:
        counts: dict[int, int] = {}
        for number, count in self._gather(read):
            counts[number] = counts.get(number, 0) + count
        return counts

    @lazy
    def _route_rows(self) -> list[RouteCounts]:
        return list(self._gather(SegmentReading.routes))

    def routes(self, max_routes: int) -> list[RouteRow]:
        """Return the rows of the window, busiest first; past ``max_routes``: ``<other>``."""
        routes = RouteLanes(self._route_rows)
        # Each worker holds to the maximum; together they may know more.
        routes.hold_to(max_routes)
        names = routes.names()
        covered = self.covered(self._window_seconds)
        spent = {name: seconds_spent(routes.lanes[name]) for name in names}
        total = sum(spent.values())
        found = [route_row(name, routes, covered, spent[name], total) for name in names]
        return sorted(found, key=lambda row: (-row["requests"], row["route"], row["method"]))

    @lazy
    def captures(self) -> list[Capture]:
        """Return the captured requests of all workers, of the per-route table's window."""
        return list(self._gather(SegmentReading.captures))

    def route_window(self, name: Name, max_routes: int) -> Counts:
        """Return what a row of the table of routes has counted in the window."""
        routes = RouteLanes(self._route_rows)
        routes.hold_to(max_routes)
        return Counts.of_route(routes.lanes.get(name, 0), routes.peaks.get(name, 0.0))

    @lazy
    def traced(self) -> list[Capture]:
        """Return those of them that have a trace id."""
        return list(self._gather(lambda segment: segment.captures(traced=True)))

    def instruments(self) -> list[InstrumentSeries]:
        """Return the app's own numbers, over all workers, since the start or the last reset."""
        return self._instruments

    @lazy
    def _instruments(self) -> list[InstrumentSeries]:
        return join(self._gather(SegmentReading.instruments))

    @lazy
    def errors(self) -> list[ErrorKind]:
        """Return the kinds of error since the reset, those that were seen last first."""
        return join_errors(self._gather(SegmentReading.errors))

    def route_totals(self) -> Sequence[RouteTotal]:
        """Return what was counted since the reset, by route and answer; each only grows.

        No row is ever joined to ``<other>`` here, so that there may be more than ``max_routes``.
        """
        return self._route_totals

    @lazy
    def _route_totals(self) -> list[RouteTotal]:
        totals: dict[tuple[Name, AnswerName], RouteTotal] = {}
        for total in self._gather(SegmentReading.route_totals):
            key = total.name, total.answer
            totals[key] = total.plus(totals[key]) if key in totals else total
        return [totals[key] for key in sorted(totals)]

    def route_counts(self) -> dict[Name, Counts]:
        """Return what each route has counted since the reset."""
        return route_counts(self.route_totals())

    def first_bytes(self) -> Distribution:
        """Return the times to first byte of all requests with a route, over the routes' window."""
        routes = RouteLanes(self._route_rows)
        return Distribution(routes.all_first_bytes(), ROUTE_FIRST, ROUTE_SCALE)


def table_states_of(sources: Mapping[str, SegmentSource]) -> dict[tuple[int, int], int]:
    """Return every table's state as it is now, for a reset.

    Of damaged segments too, as what is wrong with their window passes with it.
    """
    states: dict[tuple[int, int], int] = {}
    for source in sources.values():
        with suppress(*READ_ERRORS):
            states.update(table_states(source.read))
    return states
