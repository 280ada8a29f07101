"""`MetricsMonitor`, the façade of the engine, and `get_metrics_monitor`, the server-wide one."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

from metricsmw.clock import SYSTEM_CLOCK, Clock
from metricsmw.config import Settings, Shared
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.files import write_atomically
from metricsmw.engine.fork import on_fork
from metricsmw.engine.reading.health import (
    OPERATIONAL,
    HealthCheck,
    HealthRules,
    ServerHealth,
    check_health,
    check_thresholds,
)
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.series import (
    RouteSeries,
    Series,
    Steps,
    clamp_seconds,
    route_steps,
    server_steps,
)
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.recording.recorder import Recorder
from metricsmw.engine.storage.layout import STEP_RATIO, STEPS_PER_WINDOW, Field, step_number
from metricsmw.engine.storage.minutes import GaugeSample
from metricsmw.engine.storage.reader import Period, Reset
from metricsmw.engine.storage.segment import Segment
from metricsmw.engine.workers.group import Group, PrivateGroup
from metricsmw.engine.workers.leader import let_go, problems
from metricsmw.engine.workers.processes import is_worker
from metricsmw.engine.workers.shared import SharedGroup
from metricsmw.formats import csv_text, json_text
from metricsmw.snapshot import NUMERIC_FIELDS, MetricsSnapshot, iso_timestamp

if TYPE_CHECKING:
    from metricsmw.engine.reading.resources import ResourceSampler
    from metricsmw.history import Counts, Row, SQLiteHistory

logger = logging.getLogger("metricsmw")

MINUTE = 60.0

# Where there is none (Windows), a process has one user for its life.
_effective_user: Callable[[], int] = getattr(os, "geteuid", lambda: 0)


class Totals(TypedDict):
    """Since the start or the last reset."""

    total_requests: int
    total_errors: int
    total_error_rate_pct: float


class Statistics(TypedDict):
    """What `MetricsMonitor.get_statistics` returns."""

    current: dict[str, str | float | int]
    totals: Totals
    configuration: dict[str, int]


class MetricsMonitor:
    """Live request metrics over a sliding window, in bounded memory.

    A monitor made here is private to its process; `get_metrics_monitor` gives the one that all
    workers of a server share.

    - ``window_seconds``: length of the window, a whole number from 10 to 3600.
    - ``user_timeout_seconds``: a user is active for so long after being seen, 1 to 86400.
    - ``max_history_minutes``: minutes of history kept, 1 to 1440.
    - ``max_routes``: rows of the per-route table, 1 to 10000; further routes share ``<other>``.
    - ``max_users``: users a worker counts exactly, 1 to 1000000; beyond, it estimates.
    - ``shared``: False, or True / "auto" for one truth with the other workers of the server.
    - ``history``: an SQLite file, in a folder that exists, that keeps the minutes beyond that and
      across restarts; see `SQLiteHistory`.
    - ``history_days``: for how long, 1 to 3650.

    Raises `ValueError` for a setting out of its range, `TypeError` for one of another type.
    Safe to use from any number of threads.
    """

    def __init__(
        self,
        window_seconds: int = 300,
        *,
        user_timeout_seconds: int = 300,
        max_history_minutes: int = 60,
        max_routes: int = 200,
        max_users: int = 10_000,
        shared: Shared = False,
        history: str | os.PathLike[str] | None = None,
        history_days: int = 30,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = Settings(
            window_seconds=window_seconds,
            user_timeout_seconds=user_timeout_seconds,
            max_history_minutes=max_history_minutes,
            max_routes=max_routes,
            max_users=max_users,
            shared=shared,
            history_days=history_days,
        )
        self._clock = clock
        self._created = clock.monotonic()
        self._group: Group | None = None
        self._owner_uid = -1  # whose the group is
        self.is_closed = False  # by `close`, and not used since
        self._resources = _new_sampler()
        self._logged_damage: set[str] = set()
        self.health_rules = HealthRules({}, 503)
        self.lasting: SQLiteHistory | None = None
        self._history: SQLiteHistory | None = None  # that of `history`, which is closed here
        self.faults = FaultLog()
        self.recorder = Recorder(self.settings, clock, self, self.faults)
        # Straight to the recorder, which saves a call, unless a subclass has its own.
        if type(self).record_request is MetricsMonitor.record_request:
            self.record_request = self.recorder.record_request  # type: ignore[method-assign]
        if history is not None:
            from metricsmw.history import SQLiteHistory  # and sqlite3, for those who use it only

            self._history = SQLiteHistory(self, history, self.settings.history_days)

    # --- the recorder's host ---------------------------------------------------------------------

    def attach(self) -> Segment:
        """This process's segment, opened if need be; for the recorder."""
        if self._group is not None and self._owner_uid != _effective_user():
            self.detach(forked=False)  # opened by a worker that has dropped its privileges since
        if self._group is None:
            self._owner_uid = _effective_user()
            self._group = self._open_group()
            if self.is_closed and self._history is not None:
                self._history.start()
            self.is_closed = False
        return self._group.segment

    def _open_group(self) -> Group:
        if self.settings.shared is False:
            return PrivateGroup(self.settings, "asked for", self._created)
        if os.environ.get("METRICSMW_SHARED", "").lower() in ("off", "0", "false", "no"):
            return PrivateGroup(self.settings, "METRICSMW_SHARED is off", self._created)
        try:
            return SharedGroup(self.settings, self._clock.monotonic())
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("metricsmw: this worker's numbers are its own only: %s", error)
            return PrivateGroup(self.settings, reason, self._created)

    def detach(self, forked: bool) -> bool:
        """Leave the segment, if there is one; for the recorder. Returns whether there was one."""
        group, self._group = self._group, None
        if forked:
            self._created = self._clock.monotonic()
            self._resources = _new_sampler()
        if group is not None:
            group.forget() if forked else group.close()
        return group is not None

    @property
    def is_open(self) -> bool:
        """Whether this process takes part in the measuring: it has recorded, read or announced."""
        return self._group is not None

    @property
    def directory(self) -> Path | None:
        """The directory of the server's workers; None where this monitor is private."""
        return getattr(self._opened(), "directory", None)

    @property
    def clock(self) -> Clock:
        """The clock that it runs on."""
        return self._clock

    def is_worker(self) -> bool:
        """Whether a server has made this process to serve; for the recorder."""
        return self.settings.shared is not False and is_worker()

    def last_reset(self) -> float:
        """Monotonic time of the server's last reset, 0.0 where there was none; for the recorder.

        Opens nothing.
        """
        group = self._group
        return group.reset.at if group is not None else 0.0

    def on_minute(self, now: float) -> float:
        """Write the snapshots of the minutes that have passed, unless another worker does.

        Returns when there is more to do; for the recorder.
        """
        group = self._group
        assert group is not None
        history = group.history
        origin = history.origin
        if not origin:
            with group.exclusive(wait=False) as held:
                if held and not history.origin:
                    history.start(now)
                    raise OSError("the minute history was damaged; it begins anew")
            return now + MINUTE
        minutes = int((now - origin) // MINUTE)
        if history.minutes < minutes:
            with group.exclusive(wait=False) as held:
                if held and history.origin == origin:
                    self._write_minutes(group, minutes, now)
            if history.minutes < minutes:
                return now + self.settings.step  # whoever has the lock may be about something else
        return origin + (minutes + 1) * MINUTE

    def _write_minutes(self, group: Group, minutes: int, now: float) -> None:
        """Write what is missing of the minutes since the history's origin; with the lock held."""
        history = group.history
        first = max(history.minutes, minutes - self.settings.max_history_minutes)
        idle: MetricsSnapshot | None = None
        for minute in range(first + 1, minutes + 1):
            at = history.origin + minute * MINUTE
            wall = self._clock.time() - (now - at)
            if idle is not None:
                self._keep_sample(at, idle)
                self._append(group, idle, at, wall, minute)
                continue
            reading = self._read_group(group, Period(at, self.settings.step, past=True))
            snapshot = self._snapshot(reading, wall)
            self._append(group, snapshot, at, wall, minute)
            if minute < minutes and not reading.requests and not snapshot.active_users:
                latest = self._read_group(group, Period(now, self.settings.step))
                if latest.total_requests == reading.total_requests:
                    idle = snapshot  # as all later minutes are

    # --- recording -------------------------------------------------------------------------------

    def record_request(
        self,
        latency_ms: float,
        is_error: bool = False,
        user_id: object = None,
        *,
        method: str | None = None,
        route: str | None = None,
        status: int | None = None,
    ) -> None:
        """Record one request, or any other unit of work.

        ``latency_ms`` is in milliseconds, >= 0; values from 1 µs to 1 hour are told apart, others
        are counted at the ends. A ``status`` from 100 to 599 makes it an error from 400 on.
        With a ``route`` (a template such as ``/items/{id}``) or a ``method`` it also counts in
        the per-route table.

        Raises `TypeError` or `ValueError` for bad input, which records nothing.
        """
        self.recorder.record_request(
            latency_ms, is_error, user_id, method=method, route=route, status=status
        )

    def record_user_activity(self, user_id: object) -> None:
        """The user, known by ``str(user_id)``, was active now."""
        self.recorder.user(user_id)

    def increment_websocket_connections(self) -> None:
        """One more WebSocket connection is open."""
        self.recorder.websocket_opened()

    def decrement_websocket_connections(self) -> None:
        """One WebSocket connection less; never below 0."""
        self.recorder.websocket_closed()

    # --- reading ---------------------------------------------------------------------------------

    def _opened(self) -> Group:
        self.recorder.open()
        while (group := self._group) is None:  # another thread is about to replace a lost one
            self.recorder.open()
        return group

    def _read(self) -> ServerReading:
        group = self._opened()
        now = self._clock.monotonic()
        self._catch_up(now)
        return self._read_group(group, Period(now, self.settings.step))

    def _read_group(self, group: Group, period: Period) -> ServerReading:
        """Read without opening anything: for whoever holds the server's lock.

        Opening takes the recorder's lock and then the server's; the other way round two threads
        would wait for each other.
        """
        # The reset goes first: states read after it can only be later ones.
        reset = group.reset
        reading = ServerReading(group.sources(), period, reset, self.settings.window_seconds)
        self._log_damage(reading)
        return reading

    def _catch_up(self, now: float) -> None:
        try:
            self.on_minute(now)
        except Exception:
            self.faults.report("the minute history")

    def _log_damage(self, reading: ServerReading) -> None:
        for name, reason in reading.damaged.items():
            if name not in self._logged_damage:
                self._logged_damage.add(name)
                logger.warning("metricsmw: segment %s is left out: %s", name, reason)

    def _snapshot(self, reading: ServerReading, wall: float) -> MetricsSnapshot:
        window = self.settings.window_seconds
        latency = reading.latency
        users, _ = reading.active_users(self.settings.user_timeout_seconds)
        usage = self._resources.usage(reading.pids())
        snapshot = MetricsSnapshot(
            timestamp=iso_timestamp(wall),
            request_rate_rpm=round(60 * reading.requests / reading.covered(window), 2),
            error_rate_pct=_percent(reading.errors, reading.requests),
            latency_p50_ms=_milliseconds(latency.percentile(50)),
            latency_p95_ms=_milliseconds(latency.percentile(95)),
            latency_p99_ms=_milliseconds(latency.percentile(99)),
            active_users=users,
            memory_usage_pct=usage.memory_pct,
            memory_usage_mb=usage.memory_mb,
            cpu_usage_pct=usage.cpu_pct,
            websocket_connections=reading.gauge(Field.WEBSOCKETS),
            total_requests=reading.total_requests,
            total_errors=reading.total_errors,
            latency_max_ms=_milliseconds(latency.max),
            requests_in_flight=reading.gauge(Field.IN_FLIGHT),
            workers=reading.workers,
        )
        self._keep_sample(reading.period.now, snapshot)
        return snapshot

    def _keep_sample(self, at: float, seen: MetricsSnapshot) -> None:
        """Leave what was seen for the series; a minute caught up with long after saw nothing."""
        step = self.settings.step
        group = self._group
        if group is not None and self._clock.monotonic() - at < step * STEPS_PER_WINDOW:
            sample = GaugeSample(seen.requests_in_flight, seen.cpu_usage_pct, seen.memory_usage_mb)
            group.history.samples.put(step_number(at, step), sample)

    def get_current_snapshot(self) -> MetricsSnapshot:
        """The numbers of this moment, over all workers of the server."""
        return self._snapshot(self._read(), self._clock.time())

    def get_request_rate_rpm(self) -> float:
        """Requests per minute over the window."""
        reading = self._read()
        return round(60 * reading.requests / reading.covered(self.settings.window_seconds), 2)

    def get_error_rate_pct(self) -> float:
        """Share of errors among the window's requests, 0 to 100."""
        reading = self._read()
        return _percent(reading.errors, reading.requests)

    def get_latency_percentiles(self) -> tuple[float, float, float]:
        """(p50, p95, p99) of the window in milliseconds; 0.0 where it is empty."""
        latency = self._read().latency
        p50, p95, p99 = (_milliseconds(latency.percentile(p)) for p in (50, 95, 99))
        return p50, p95, p99

    def get_active_users(self) -> int:
        """How many users were active within the timeout, each counted once."""
        return self._read().active_users(self.settings.user_timeout_seconds)[0]

    def get_active_user_ids(self) -> list[str]:
        """The active users' ids, sorted; past `max_users`, those of the sample."""
        return self._read().user_ids(self.settings.user_timeout_seconds)

    def get_websocket_connections(self) -> int:
        """WebSocket connections open on the live workers."""
        return self._read().gauge(Field.WEBSOCKETS)

    def get_memory_usage(self) -> tuple[float, float]:
        """Resident memory of the live workers: (percent of the machine's, MiB)."""
        usage = self._resources.usage(self._read().pids())
        return usage.memory_pct, usage.memory_mb

    def get_cpu_usage(self) -> float:
        """CPU of the live workers in percent of one core, since the reading before."""
        return self._resources.usage(self._read().pids()).cpu_pct

    @property
    def total_requests(self) -> int:
        """Requests since the start or the last reset."""
        return self._read().total_requests

    @property
    def total_errors(self) -> int:
        """Errors since the start or the last reset."""
        return self._read().total_errors

    _total_requests = total_requests
    _total_errors = total_errors

    @property
    def window_seconds(self) -> int:
        """Length of the window."""
        return self.settings.window_seconds

    def get_routes(self) -> list[RouteRow]:
        """The per-route table of the window, busiest first."""
        return self._read().routes(self.settings.max_routes)

    def get_series(self, seconds: int | None = None) -> Series:
        """What was counted in each step of the window that ended in the last ``seconds``.

        Steps are sixtieths of the window, whose length is also the most that can be asked for and
        the default. Raises `ValueError` or `TypeError` for seconds that are no whole number >= 1.
        """
        asked = clamp_seconds(seconds, self.settings.window_seconds)
        reading = self._read()
        assert self._group is not None
        steps = Steps(reading, asked, self.settings.step, self._clock.time())
        return {
            "seconds": asked,
            "step_seconds": self.settings.step,
            "started": steps.wall_time(reading.created),
            "reset": steps.wall_time(reading.reset.at) if reading.reset.at else None,
            "series": server_steps(reading, steps, self._group.history.samples.get),
        }

    def get_route_series(self, method: str, route: str, seconds: int | None = None) -> RouteSeries:
        """The same of one row of the per-route table, in tenths of the window.

        ``method`` and ``route`` as `get_routes` names them; one that is not there has idle steps.
        """
        asked = clamp_seconds(seconds, self.settings.window_seconds)
        reading = self._read()
        step = self.settings.step * STEP_RATIO
        steps = Steps(reading, asked, step, self._clock.time())
        return {
            "seconds": asked,
            "step_seconds": step,
            "started": steps.wall_time(reading.created),
            "reset": steps.wall_time(reading.reset.at) if reading.reset.at else None,
            "method": method,
            "route": route,
            "series": route_steps(reading, steps, method, route),
        }

    def get_statistics(self) -> Statistics:
        """The current snapshot, the totals, and the settings in force.

        ``current`` also has the time to first byte of the requests in the per-route table,
        ``latency_ttfb_p50_ms`` and so on, and, where ``active_users`` is an estimate, its relative
        standard error, ``active_users_error_pct``.
        """
        reading = self._read()
        settings = self.settings
        snapshot = self._snapshot(reading, self._clock.time())
        _, error = reading.active_users(settings.user_timeout_seconds)
        current = snapshot.to_dict()
        if error:
            current["active_users_error_pct"] = round(100 * error, 2)
        first = reading.first_bytes()
        for percent in (50, 95, 99):
            current[f"latency_ttfb_p{percent}_ms"] = _milliseconds(first.percentile(percent))
        return {
            "current": current,
            "totals": {
                "total_requests": reading.total_requests,
                "total_errors": reading.total_errors,
                "total_error_rate_pct": _percent(reading.total_errors, reading.total_requests),
            },
            "configuration": {
                "window_seconds": settings.window_seconds,
                "user_timeout_seconds": settings.user_timeout_seconds,
                "max_history_minutes": settings.max_history_minutes,
            },
        }

    def get_health(self) -> ServerHealth:
        """The state of the measuring itself: its components, workers, mode."""
        components = dict.fromkeys(
            ("metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"),
            OPERATIONAL,
        )
        workers = left_out = faults = 0
        try:
            reading = self._read()
            left_out = len(reading.damaged)
            workers = reading.workers
            faults = reading.faults()
            shared = self._opened().problems()
        except Exception:
            self.faults.report("reading the metrics")
            components["metrics_monitor"] = components["request_tracking"] = "unavailable"
            components["websocket_tracking"] = "unavailable"
        else:
            if left_out:
                components["request_tracking"] = f"{left_out} damaged segments left out"
            if shared:
                components["metrics_monitor"] = "; ".join(shared)
            try:
                if workers and not self._resources.usage(reading.pids()).memory_mb:
                    components["resource_monitoring"] = "unavailable"
            except Exception:
                self.faults.report("reading CPU and memory")
                components["resource_monitoring"] = "unavailable"
            try:
                for work, problem in problems(self).items():
                    components[work] = problem or OPERATIONAL
                if self.lasting is not None and self.lasting.damaged is not None:
                    components["lasting_history"] = f"failing: {self.lasting.damaged}"
            except Exception:
                self.faults.report("reading what is done once for the server")
        group = self._group
        healthy = all(state == OPERATIONAL for state in components.values())
        return {
            "status": "healthy" if healthy else "degraded",
            "components": components,
            "workers": workers,
            "mode": group.mode if group else "private",
            "mode_reason": group.reason if group else "not open",
            "segments_left_out": left_out,
            "faults": faults,
        }

    def check_health(self, thresholds: Mapping[str, float]) -> HealthCheck:
        """Which snapshot fields are below their thresholds; see `reading.health`."""
        return check_health(self.get_current_snapshot(), thresholds)

    def set_health_thresholds(self, thresholds: Mapping[str, float], status: int = 503) -> None:
        """From now on `GET /health` holds these thresholds, too; none of them where it is empty.

        While a field is not below its threshold, the answer is ``degraded``, with that HTTP
        status: 200 or 503. Each worker of the server has to be told. Raises `ValueError` or
        `TypeError` for a field that does not exist, a threshold that is no number, another status.
        """
        check_thresholds(thresholds)
        if status not in (200, 503):
            raise ValueError(f"status must be 200 or 503, got {status!r}")
        self.health_rules = HealthRules(dict(thresholds), status)

    # --- history, reset, exports -----------------------------------------------------------------

    def get_metrics_history(
        self, minutes: int = 60, step_minutes: int = 1
    ) -> list[dict[str, str | float | int]]:
        """The snapshots of the last ``minutes`` (at least 1), oldest first.

        A `SQLiteHistory` lets it go back further, and ``step_minutes`` (at least 1) joins so many
        minutes to one entry; see `SQLiteHistory.rows`.

        Raises `ValueError` or `TypeError` for minutes that are no whole number >= 1.
        """
        check_minutes("minutes", minutes)
        check_minutes("step_minutes", step_minutes)
        lasting = self.lasting
        if step_minutes > 1:
            if lasting is None:
                raise ValueError("step_minutes above 1 needs a SQLiteHistory")
            now = self._clock.time()
            return self._lasting_rows(now - minutes * MINUTE, now, step_minutes)
        recent = self.get_recent_history(minutes)
        if lasting is None or len(recent) >= minutes:
            return recent
        now = self._clock.time()
        seam = now
        if recent:
            # Not the same minute from both.
            seam = datetime.fromisoformat(str(recent[0]["timestamp"])).timestamp() - MINUTE / 2
        return self._lasting_rows(now - minutes * MINUTE, seam, 1) + recent

    def _lasting_rows(self, since: float, until: float, step_minutes: int) -> list[Row]:
        assert self.lasting is not None
        try:
            return self.lasting.rows(since, until, step_minutes)
        except Exception:
            self.faults.report("reading the lasting history")
            return []

    @property
    def longest_history(self) -> int:
        """How many minutes back the history may reach."""
        kept = self.settings.max_history_minutes
        return kept if self.lasting is None else max(kept, self.lasting.max_minutes)

    def get_recent_history(self, minutes: int) -> list[dict[str, str | float | int]]:
        """The snapshots of this server that are kept in memory, as `get_metrics_history`."""
        group = self._opened()
        now = self._clock.monotonic()
        self._catch_up(now)
        # A worker that is killed as it resets leaves the rows from before; they count no more.
        return group.history.rows(now - minutes * MINUTE, group.reset.at)

    def read_counts(self) -> tuple[Counts, dict[str, str | float | int], float]:
        """All counts since the start or the last reset, the snapshot of the same moment, and the
        monotonic time that the counts began; for a `SQLiteHistory`."""
        from metricsmw.history import Counts

        group = self._opened()
        reading = self._read()
        counts = Counts(reading.total_requests, reading.total_errors, reading.total_histogram)
        snapshot = self._snapshot(reading, self._clock.time()).to_dict()
        return counts, snapshot, group.history.origin

    @property
    def reset_at(self) -> float:
        """Monotonic time of the server's last reset; 0.0 where there was none."""
        return self._opened().reset.at

    def save_snapshot_to_history(self) -> None:
        """Add a snapshot to the history now, beside those of each minute."""
        group = self._opened()
        self._catch_up(self._clock.monotonic())
        # Read under the lock: another worker's reset may not come between.
        with group.exclusive(wait=True):
            now = self._clock.monotonic()
            wall = self._clock.time()
            snapshot = self._snapshot(
                self._read_group(group, Period(now, self.settings.step)), wall
            )
            self._append(group, snapshot, now, wall)

    def _append(
        self,
        group: Group,
        snapshot: MetricsSnapshot,
        at: float,
        wall: float,
        minute: int | None = None,
    ) -> None:
        values = [getattr(snapshot, name) for name in NUMERIC_FIELDS]
        group.history.append(at, wall, values, minute)

    def reset_statistics(self) -> None:
        """Start over, for the whole server: counts, window, routes, users, history.

        Gauges stay, as what they count still is. Nothing recorded before is reported after.
        Raises OSError where there is no room to note the reset, or a segment that cannot be opened
        now; nothing is then reset.
        """
        group = self._opened()
        with group.exclusive(wait=True):
            now = self._clock.monotonic()
            # What was left out here would come back with its next reading.
            sources = group.sources(complete=True)
            period = Period(now, self.settings.step)
            reading = ServerReading(sources, period, group.reset, self.settings.window_seconds)
            group.write_reset(Reset(now, reading.states()))
            group.history.start(now)
        self.recorder.start_over(now)

    def export_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write statistics and history as JSON; a reader never sees half a file.

        Raises OSError where it cannot be written; a file that was there is then untouched.
        """
        write_atomically(path, json_text(self))

    def export_to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the history as CSV, one row a minute; as `export_to_json` does."""
        rows = self.get_metrics_history(self.settings.max_history_minutes)
        write_atomically(path, csv_text(rows))

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the server: gauges go, counts stay with the other workers. May be repeated.

        Its alerts, exports and lasting history are left to another worker. A monitor that is used
        again afterwards opens itself again.
        """
        if self._history is not None:
            self._history.stop()
        self.recorder.close()
        self.is_closed = True
        let_go(self)

    def __enter__(self) -> MetricsMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _new_sampler() -> ResourceSampler:
    # Imported here for psutil's sake: importing this package is to cost next to nothing.
    from metricsmw.engine.reading.resources import ResourceSampler

    return ResourceSampler()


def check_minutes(name: str, minutes: int) -> None:
    """Raise `ValueError` or `TypeError` unless it is a whole number >= 1."""
    if isinstance(minutes, bool) or not isinstance(minutes, int):
        raise TypeError(f"{name} must be a whole number >= 1, got {minutes!r}")
    if minutes < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {minutes!r}")


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


_singleton: MetricsMonitor | None = None
_singleton_lock = threading.Lock()


def _after_fork() -> None:
    global _singleton_lock
    _singleton_lock = threading.Lock()  # another thread of the parent may have held it


on_fork(_after_fork)


def get_metrics_monitor(
    window_seconds: int | None = None,
    *,
    user_timeout_seconds: int = 300,
    max_history_minutes: int = 60,
    max_routes: int = 200,
    max_users: int = 10_000,
    shared: Shared = "auto",
    history: str | os.PathLike[str] | None = None,
    history_days: int = 30,
) -> MetricsMonitor:
    """The monitor of this process: one per process, one truth per server.

    The first call makes it, with a window of 300 s unless told otherwise; later ones return it.
    A later call that names another window or history warns (`RuntimeWarning`). Settings are those
    of `MetricsMonitor`, with ``shared="auto"``.
    """
    global _singleton
    with _singleton_lock:
        if _singleton is None:
            _singleton = MetricsMonitor(
                300 if window_seconds is None else window_seconds,
                user_timeout_seconds=user_timeout_seconds,
                max_history_minutes=max_history_minutes,
                max_routes=max_routes,
                max_users=max_users,
                shared=shared,
                history=history,
                history_days=history_days,
            )
            return _singleton
    if window_seconds is not None and window_seconds != _singleton.window_seconds:
        warnings.warn(
            f"get_metrics_monitor(window_seconds={window_seconds!r}): the monitor of this process "
            f"has a window of {_singleton.window_seconds} s already, which stays",
            RuntimeWarning,
            stacklevel=2,
        )
    lasting = _singleton.lasting
    if history is not None and (lasting is None or lasting.path != Path(history).absolute()):
        warnings.warn(
            f"get_metrics_monitor(history={os.fspath(history)!r}): the monitor of this process is "
            f"there already and has {'none' if lasting is None else 'another one'}, which stays so",
            RuntimeWarning,
            stacklevel=2,
        )
    return _singleton
