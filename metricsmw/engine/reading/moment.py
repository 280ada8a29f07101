"""`Reading`: every answer about one moment, from one reading of all segments.

Every answer asks one `Reading` only, so that its parts agree with each other.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.reading.captures import USUAL_SLOWEST, SlowRequest, slowest
from metricsmw.engine.reading.counts import Counts, percentiles_ms
from metricsmw.engine.reading.errors import DEFAULT_LIMIT, NEW_SECONDS, ErrorRow, Sort, error_rows
from metricsmw.engine.reading.first_bytes import first_bytes, of_route, of_server
from metricsmw.engine.reading.health import ServerHealth
from metricsmw.engine.reading.heatmap import Heatmap, heatmap_of
from metricsmw.engine.reading.lazy import lazy
from metricsmw.engine.reading.limits import LimitFields
from metricsmw.engine.reading.measuring import server_health
from metricsmw.engine.reading.minutes import MINUTE, LongHistory, MinuteHistory, before
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.series import (
    RouteSeries,
    Series,
    Steps,
    clamp_seconds,
    route_steps,
    server_steps,
)
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.reading.snapshots import Snapshots
from metricsmw.engine.reading.spans import StepTable
from metricsmw.engine.reading.workers import WorkerRow, WorkerWatch
from metricsmw.engine.storage.keys import Name
from metricsmw.engine.storage.layout import STEP_RATIO, Field
from metricsmw.engine.storage.reader import Period
from metricsmw.engine.workers.events import EventLog
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.membership import Membership, ServerMember
from metricsmw.engine.workers.surroundings import HERE, Surroundings
from metricsmw.snapshot import FIRST_BYTE_FIELDS, MetricsSnapshot, SnapshotDict
from metricsmw.validation import whole

if TYPE_CHECKING:
    from metricsmw.engine.reading.resources import Usage


class Totals(TypedDict):
    """Counts since the start or the last reset."""

    total_requests: int
    total_errors: int
    total_error_rate_pct: float


class Configuration(LimitFields):
    """The settings in force, and the limits that percentages of CPU and memory are of."""

    window_seconds: int
    user_timeout_seconds: int
    max_history_minutes: int


class Statistics(TypedDict):
    """What `MetricsMonitor.get_statistics` returns."""

    current: SnapshotDict
    totals: Totals
    configuration: Configuration


class Member(ServerMember, Protocol):
    """The monitor, as a `Reader` needs it."""

    @property
    def lasting(self) -> LongHistory | None:
        """A history that goes back further than the one in memory; None: there is none."""

    @property
    def events(self) -> EventLog | None:
        """Where what happens to the server is noted; None: who reads is no worker of it."""

    def opened(self) -> Group:
        """Return the group of this process, joined if need be."""


class Reader:
    """Reads the server that a member is one of.

    Attributes:
        minutes: the minute history, which a reading catches up with.
        workers: what was seen of each worker in the readings before.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        membership: Membership,
        member: Member,
        here: Surroundings = HERE,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.member = member
        self.membership = membership
        self.server = ServerReader(settings)
        self.workers = WorkerWatch(here)
        self.snapshots = Snapshots(settings, clock)
        self.minutes = MinuteHistory(
            settings, clock, membership, self.server, self.snapshots, member.faults
        )

    def read(self, *, routes: bool = False) -> Reading:
        """Return a reading; see `Reading`."""
        return Reading(self, routes=routes)

    def save_snapshot(self) -> None:
        """Add a snapshot to the history now, beside those of each minute.

        Raises:
            OSError: there is no room, or the server's lock cannot be had.
        """
        group = self.member.opened()
        self.minutes.catch_up(self.clock.monotonic())
        self.minutes.save(group)

    def reset(self) -> float:
        """Reset the server, and return the monotonic time of that; see `ServerReader.reset`."""
        return self.server.reset(self.member.opened(), self.clock)


class Moment(NamedTuple):
    """The group that is read, and the time: monotonic seconds, Unix time."""

    group: Group
    now: float
    wall: float


class Reading:
    """The numbers of the moment of the first question; each is worked out once and kept."""

    def __init__(self, reader: Reader, *, routes: bool = False) -> None:
        """Read nothing yet.

        Args:
            reader: reads the server.
            routes: the table of routes will be asked for beside the totals; it is then read before
                them, so that no sum over routes is ahead of the totals.
        """
        self._reader = reader
        self._with_routes = routes

    @lazy
    def _moment(self) -> Moment:
        group = self._reader.member.opened()
        clock = self._reader.clock
        now = clock.monotonic()
        self._reader.minutes.catch_up(now)
        group.renew(now)
        return Moment(group, now, clock.time())

    @property
    def group(self) -> Group:
        """The workers that are read."""
        return self._moment.group

    @lazy
    def server(self) -> ServerReading:
        """All segments, read once."""
        group, now, _ = self._moment
        period = Period(now, self._reader.settings.step)
        server = self._reader.server.read(group, period, routes=self._with_routes)
        self._reader.workers.look(server, group.directory)
        events = self._reader.member.events
        if events is not None:
            events.look(group, server.pids())
        return server

    # --- numbers ---------------------------------------------------------------------------------

    @lazy
    def snapshot(self) -> MetricsSnapshot:
        """Return the numbers of this moment, over all workers of the server."""
        group, _, wall = self._moment
        return self._reader.snapshots.take(self.server, group, wall, self.active_users)

    @property
    def request_rate_rpm(self) -> float:
        """Requests per minute over the window."""
        covered = self.server.covered(self._reader.settings.window_seconds)
        return self.server.window.rate_rpm(covered)

    @lazy
    def _users(self) -> tuple[int, float]:
        return self.server.active_users(self._reader.settings.user_timeout_seconds)

    @property
    def active_users(self) -> int:
        """How many users were active within the timeout, each counted once."""
        return self._users[0]

    @property
    def active_user_ids(self) -> list[str]:
        """The active users' ids, sorted."""
        return self.server.user_ids(self._reader.settings.user_timeout_seconds)

    @property
    def websocket_connections(self) -> int:
        """WebSocket connections open on the live workers."""
        return self.server.gauge(Field.WEBSOCKETS)

    @property
    def usage(self) -> Usage:
        """CPU and memory of the live workers."""
        return self._reader.snapshots.usage(self.server)

    @property
    def reset_at(self) -> float:
        """Monotonic time of the server's last reset; 0.0 where there was none."""
        return self.server.reset.at

    @property
    def now(self) -> float:
        """Monotonic time of the reading."""
        return self._moment.now

    @property
    def wall(self) -> float:
        """Unix time of the reading."""
        return self._moment.wall

    @property
    def origin(self) -> float:
        """Monotonic time that the counts, and the history's minutes, began."""
        return self._moment.group.history.origin

    # --- tables ----------------------------------------------------------------------------------

    @lazy
    def routes(self) -> list[RouteRow]:
        """Return the per-route table of the window, busiest first."""
        return self.server.routes(self._reader.settings.max_routes)

    @lazy
    def workers(self) -> list[WorkerRow]:
        """Return the living workers, by their process ids."""
        reader, server = self._reader, self.server
        resources = reader.snapshots.resources(server)
        return reader.workers.rows(server, self.wall, reader.settings.window_seconds, resources)

    def errors(
        self, limit: int = DEFAULT_LIMIT, sort: Sort = "last_seen", new_seconds: int = NEW_SECONDS
    ) -> list[ErrorRow]:
        """Return the kinds of error since the reset; see `MetricsMonitor.get_errors`."""
        told = "message" in self._reader.settings.capture
        kinds, now, wall = self.server.errors, self.now, self.wall
        return error_rows(kinds, now, wall, limit, sort, new_seconds, messages=told)

    def series(self, seconds: int | None = None) -> Series:
        """Return the counts of each step of the last ``seconds`` of the window.

        Args:
            seconds: at least 1, held to the window; None: all of it.

        Raises:
            TypeError: it is no whole number.
            ValueError: it is below 1.
        """
        settings = self._reader.settings
        asked = clamp_seconds(seconds, settings.window_seconds)
        group, _, wall = self._moment
        steps = Steps(self.server, asked, settings.step, wall)
        return {
            "seconds": asked,
            "step_seconds": settings.step,
            "started": steps.started,
            "reset": steps.reset,
            "series": server_steps(self.server, steps, group.history.gauge_samples.get),
        }

    def route_series(self, method: str, route: str, seconds: int | None = None) -> RouteSeries:
        """Return the same of one row of the per-route table, in tenths of the window.

        Args:
            method: the row's method, as `routes` names it.
            route: the row's template, as `routes` names it. One that is not there has idle steps.
            seconds: as for `series`.

        Raises:
            TypeError: ``seconds`` is no whole number.
            ValueError: ``seconds`` is below 1.
        """
        settings = self._reader.settings
        asked = clamp_seconds(seconds, settings.window_seconds)
        step = settings.step * STEP_RATIO
        steps = Steps(self.server, asked, step, self._moment.wall)
        return {
            "seconds": asked,
            "step_seconds": step,
            "started": steps.started,
            "reset": steps.reset,
            "method": method,
            "route": route,
            "series": route_steps(self.server, steps, method, route),
        }

    def heatmap(
        self, method: str | None = None, route: str | None = None, seconds: int | None = None
    ) -> Heatmap:
        """Return the latencies over time, and their distribution over the window.

        Args:
            method: as for `route_series`; None: of all requests.
            route: likewise.
            seconds: as for `series`.

        Raises:
            TypeError: ``seconds`` is no whole number.
            ValueError: ``seconds`` is below 1, or only one of method and route is given.
        """
        return heatmap_of(self.server, self._reader.settings, self.wall, method, route, seconds)

    def slowest(
        self,
        route: str | None = None,
        method: str | None = None,
        limit: int = USUAL_SLOWEST,
        least_ms: float = 0.0,
        most_ms: float = inf,
    ) -> list[SlowRequest]:
        """Return the captured requests of the window, slowest first; see `captures.slowest`."""
        told, captures = self._reader.settings.capture, self.server.captures
        wanted = route, method, limit, least_ms, most_ms
        return slowest(captures, told, self.now, self.wall, *wanted)

    @lazy
    def step_table(self) -> StepTable:
        """Return the counts of the window's steps, for spans of them."""
        settings = self._reader.settings
        steps = Steps(self.server, settings.window_seconds, settings.step, self._moment.wall)
        lanes = self.server.steps(steps.first)
        return StepTable(lanes, Counts.of_server, steps.first, steps.last, settings.step)

    def route_step_table(self, method: str, route: str) -> StepTable:
        """Return the same of one row of the per-route table, in tenths of the window."""
        settings = self._reader.settings
        step = settings.step * STEP_RATIO
        steps = Steps(self.server, settings.window_seconds, step, self._moment.wall)
        lanes = self.server.route_steps(Name(method, route), steps.first)
        return StepTable(lanes, Counts.of_route, steps.first, steps.last, step)

    def first_byte_table(self, method: str | None = None, route: str | None = None) -> StepTable:
        """Return the times to first byte, in tenths of the window.

        Args:
            method: that of one row of the per-route table; None: of all requests.
            route: that row's template.
        """
        settings = self._reader.settings
        step = settings.step * STEP_RATIO
        steps = Steps(self.server, settings.window_seconds, step, self._moment.wall)
        tenths = range(steps.first, steps.last + 1)
        if method is not None and route is not None:
            lanes = of_route(self.server, Name(method, route), tenths)
        else:
            found = self.server.steps((steps.first - 1) * STEP_RATIO + 1)
            lanes = of_server(self.server, found, tenths)
        return StepTable(lanes, first_bytes, steps.first, steps.last, step)

    def history(self, minutes: int = 60, step_minutes: int = 1) -> list[SnapshotDict]:
        """Return the snapshots of the last ``minutes``, oldest first.

        Args:
            minutes: at least 1.
            step_minutes: join so many minutes to one entry, at least 1; above 1 it needs a
                `SQLiteHistory`, see its `rows`.

        Raises:
            TypeError: one of them is no whole number.
            ValueError: one of them is below 1, or there is no `SQLiteHistory` to join minutes.
        """
        whole("minutes", minutes, 1)
        whole("step_minutes", step_minutes, 1)
        long = self._reader.member.lasting
        if step_minutes > 1 and long is None:
            raise ValueError("step_minutes above 1 needs a SQLiteHistory")
        recent = [] if step_minutes > 1 else self.recent_history(minutes)
        if long is None or len(recent) >= minutes:
            return recent
        now = self._moment.wall
        try:
            return long.rows(now - minutes * MINUTE, before(recent, now), step_minutes) + recent
        except Exception:
            self._reader.member.faults.report("reading the lasting history")
            return recent

    def recent_history(self, minutes: int) -> list[SnapshotDict]:
        """Return the snapshots of the last ``minutes`` that are kept in memory, oldest first."""
        group, now, _ = self._moment
        # A worker that is killed as it resets leaves the rows from before; they count no more.
        return group.history.rows(now - minutes * MINUTE, group.reset.at)

    @lazy
    def first_bytes_ms(self) -> SnapshotDict:
        """Return the percentiles of the time to first byte, over the routes' window."""
        values = percentiles_ms(self.server.first_bytes())
        return dict(zip(FIRST_BYTE_FIELDS, values, strict=True))

    # --- documents -------------------------------------------------------------------------------

    @lazy
    def statistics(self) -> Statistics:
        """Return the current snapshot, the totals, and the settings in force."""
        settings, server = self._reader.settings, self.server
        current = self.snapshot.to_dict()
        if error := self._users[1]:
            current["active_users_error_pct"] = round(100 * error, 2)
        if unknown := self.usage.unknown:
            current["workers_unmeasured"] = unknown
        current |= self.first_bytes_ms
        total = server.total
        return {
            "current": current,
            "totals": {
                "total_requests": total.requests,
                "total_errors": total.errors,
                "total_error_rate_pct": total.error_rate_pct,
            },
            "configuration": {
                "window_seconds": settings.window_seconds,
                "user_timeout_seconds": settings.user_timeout_seconds,
                "max_history_minutes": settings.max_history_minutes,
                **self._reader.snapshots.limits().describe(),
            },
        }

    @lazy
    def health(self) -> ServerHealth:
        """Return the state of the measuring itself: components, workers, mode. Never raises."""
        return server_health(self, self._reader.member, self._reader.membership.is_measured)
