"""`MetricsMonitor`, the façade of the engine, and `get_metrics_monitor`, the server-wide one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from metricsmw.asked import warn_of_others
from metricsmw.clock import SYSTEM_CLOCK, Clock
from metricsmw.config import Settings, Shared
from metricsmw.engine.faults import FaultLog
from metricsmw.engine.fork import Stage, on_fork
from metricsmw.engine.reading.health import HealthRules, check_health, check_thresholds
from metricsmw.engine.workers.registry import JobRegistry
from metricsmw.formats import csv_text, export_document, json_text
from metricsmw.getters import Getters
from metricsmw.snapshot import SnapshotDict

if TYPE_CHECKING:
    from pathlib import Path

    from metricsmw.engine.directory import Directory
    from metricsmw.engine.reading.counts import Counts
    from metricsmw.engine.reading.health import HealthCheck, ServerHealth
    from metricsmw.engine.reading.moment import Reading, Statistics
    from metricsmw.engine.reading.route_minutes import RouteTotals
    from metricsmw.engine.workers.group import Group
    from metricsmw.history import SQLiteHistory


class MetricsMonitor(Getters):
    """Live request metrics over a sliding window, in bounded memory.

    A monitor made here is private to its process; `get_metrics_monitor` gives the one that all
    workers of a server share.

    - ``window_seconds``: length of the window, a whole number from 10 to 3600.
    - ``user_timeout_seconds``: a user is active for so long after being seen, 1 to 86400.
    - ``max_history_minutes``: minutes of history kept, 1 to 1440.
    - ``max_routes``: rows of the per-route table, 1 to 10000; further routes share ``<other>``.
    - ``max_users``: users a worker counts exactly, 1 to 1000000; beyond, it estimates.
    - ``shared``: False, or True / "auto" for one truth with the other workers of the server.
    - ``history``: an SQLite file, in a folder that exists, which keeps minutes across restarts, see
      `SQLiteHistory`; ``history_days``: for how long, 1 to 3650.
    - ``name``: the application's name, which alerts say; up to 100 characters.
    - ``errors_from``: the lowest status that counts as an error, 400 or 500.
    - ``event_streams``: content types, and templates of routes, whose streams are event streams as
      those of ``text/event-stream`` are: their latency is the time to first byte.
    - ``capture``: what may hold secrets and is told all the same: any of "path", "query" and "user"
      of captured requests, see `get_slowest`; "message" of exceptions, see `get_errors`.
    - ``capture_threshold_seconds``: a request that took longer is captured, 0.001 to 3600, beside
      those that are among the slowest of their route.

    Raises `ValueError` for a setting out of its range, `TypeError` for one of another type. Safe to
    use from any number of threads.
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
        name: str = "",
        errors_from: Literal[400, 500] = 400,
        event_streams: Iterable[str] = (),
        capture: tuple[str, ...] = (),
        capture_threshold_seconds: float = 1.0,
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
            name=name,
            errors_from=errors_from,
            event_streams=event_streams,
            capture=capture,
            capture_threshold_seconds=capture_threshold_seconds,
        )
        self.clock = clock
        self.faults = FaultLog()
        self.jobs = JobRegistry()
        # Loaded here: importing the package is to cost next to nothing.
        from metricsmw.engine.reading.moment import Reader
        from metricsmw.engine.recording.instruments import Instruments
        from metricsmw.engine.recording.recorder import Recorder
        from metricsmw.engine.workers.events import EventLog
        from metricsmw.engine.workers.membership import Membership

        self.membership = Membership(self.settings, clock, self.faults, self._rejoined)
        self.lasting: SQLiteHistory | None = None
        self._history: SQLiteHistory | None = None  # made by `history=`, so closed here
        self.events = EventLog(clock, self.faults)
        self._reader = Reader(self.settings, clock, self.membership, self)
        self.recorder = Recorder(
            self.settings, clock, self.membership, self.faults, self._reader.minutes.catch_up
        )
        self.instruments = Instruments(self.recorder, self.settings.step)
        self.counter, self.gauge = self.instruments.counter, self.instruments.gauge
        self.histogram = self.instruments.histogram
        self.health_rules = HealthRules({}, 503)
        # Straight to the recorder, which saves a call, unless a subclass has its own.
        if type(self).record_request is MetricsMonitor.record_request:
            self.record_request = self.recorder.record_request  # type: ignore[method-assign]
        if history is not None:
            from metricsmw.history import SQLiteHistory  # and sqlite3, for those who use it only

            self._history = SQLiteHistory(self, history, self.settings.history_days)

    @property
    def is_open(self) -> bool:
        """Whether this process takes part in the measuring: it has recorded, read or registered."""
        return self.membership.group is not None

    @property
    def is_serving(self) -> bool:
        """Whether this process serves or records, and has not only imported the app, or read."""
        return self.recorder.is_serving

    @property
    def is_closed(self) -> bool:
        """Whether the monitor was closed, and not used since."""
        return self.membership.is_closed

    @property
    def directory(self) -> Path | None:
        """The directory of the server's workers; None where this monitor is private."""
        return getattr(self.shared_directory, "path", None)

    @property
    def shared_directory(self) -> Directory | None:
        """The same, by its descriptor: where files of the server are read and written."""
        return self.opened().directory

    def opened(self) -> Group:
        """Return the group of this process, joined if need be."""
        # The recorder opens it, and adds the gauges it has counted so far to the segment.
        self.recorder.open()
        while (group := self.membership.group) is None:  # another thread replaces a lost one
            self.recorder.open()
        return group

    def _rejoined(self) -> None:
        if self._history is not None:
            self._history.start(everywhere=False)

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

        ``latency_ms`` is in milliseconds, >= 0; values below 1 µs or above 1 hour are counted
        at the ends. A ``status`` from 100 to 599 makes it an error from ``errors_from`` on. With a
        ``route`` (a template such as ``/items/{id}``) or a ``method`` it also counts in the
        per-route table.

        Raises `TypeError` or `ValueError` for bad input, which records nothing.
        """
        self.recorder.record_request(
            latency_ms, is_error, user_id, method=method, route=route, status=status
        )

    def record_user_activity(self, user_id: object) -> None:
        """Record that the user, known by ``str(user_id)``, was active now."""
        self.recorder.user(user_id)

    def increment_websocket_connections(self) -> None:
        """Count one more open WebSocket connection."""
        self.recorder.websocket_opened()

    def decrement_websocket_connections(self) -> None:
        """Count one open WebSocket connection less; never below 0."""
        self.recorder.websocket_closed()

    # --- reading ---------------------------------------------------------------------------------

    def read(self, *, routes: bool = False) -> Reading:
        """Return a reading: every number of the moment at which it is first asked.

        Each getter reads anew. Ask one reading for all parts of an answer.

        Args:
            routes: the per-route table will be asked for beside the totals; it is then never ahead
                of them.
        """
        return self._reader.read(routes=routes)

    @property
    def window_seconds(self) -> int:
        """Length of the window."""
        return self.settings.window_seconds

    def get_custom(self) -> list[dict[str, object]]:
        """Return a row for each series of the app's own numbers, over all workers."""
        from metricsmw.engine.reading.instruments import as_rows

        self.instruments.show()
        return as_rows(self.read().server.instruments(), self.instruments.help_of)

    def get_statistics(self) -> Statistics:
        """Return the current snapshot, the totals, and the settings in force.

        ``current`` also has the time to first byte (``latency_ttfb_p50_ms`` and so on); where only
        some workers or users are known ``workers_unmeasured`` and ``active_users_error_pct``.
        """
        return self.read().statistics

    def get_health(self) -> ServerHealth:
        """Return the state of the measuring itself: its components, workers, mode."""
        return self.read().health

    def check_health(self, thresholds: Mapping[str, float]) -> HealthCheck:
        """Return which snapshot fields are below their thresholds; see `reading.health`."""
        return check_health(self.read().snapshot, thresholds)

    def set_health_thresholds(self, thresholds: Mapping[str, float], status: int = 503) -> None:
        """Have `GET /health` hold these thresholds from now on; none where it is empty.

        While a field is not below its threshold, the answer is ``degraded``, with that HTTP
        status: 200 or 503. Call it in each worker of the server. Raises `ValueError` or
        `TypeError` for a field that does not exist, a threshold that is no number, another status.
        """
        check_thresholds(thresholds)
        if status not in (200, 503):
            raise ValueError(f"status must be 200 or 503, got {status!r}")
        self.health_rules = HealthRules(dict(thresholds), status)

    # --- history, reset, exports -----------------------------------------------------------------

    def get_metrics_history(self, minutes: int = 60, step_minutes: int = 1) -> list[SnapshotDict]:
        """Return the snapshots of the last ``minutes`` (at least 1), oldest first.

        A `SQLiteHistory` lets it go back further, and ``step_minutes`` (at least 1) joins so many
        minutes to one entry; see `SQLiteHistory.rows`.

        Raises:
            TypeError: one of them is no whole number.
            ValueError: one of them is below 1, or there is no `SQLiteHistory` to join minutes.
        """
        return self.read().history(minutes, step_minutes)

    def use_history(self, history: SQLiteHistory) -> None:
        """Read minutes that are older than those in memory from this history."""
        self.lasting = history

    @property
    def longest_history(self) -> int:
        """How many minutes back the history may reach."""
        kept = self.settings.max_history_minutes
        return kept if self.lasting is None else max(kept, self.lasting.max_minutes)

    def read_counts(self) -> tuple[Counts, SnapshotDict, float, RouteTotals]:
        """Return all counts since the last reset, the snapshot, when they began, and the routes."""
        reading = self.read()
        server = reading.server
        return server.total, reading.snapshot.to_dict(), reading.origin, server.route_counts()

    @property
    def reset_at(self) -> float:
        """Monotonic time of the server's last reset; 0.0 where there was none."""
        return self.opened().reset.at

    def save_snapshot_to_history(self) -> None:
        """Add a snapshot to the history now, beside those of each minute."""
        self._reader.save_snapshot()

    def reset_statistics(self) -> None:
        """Start over, for the whole server: counts, window, routes, users, history.

        Gauges stay, because what they count is still open. Raises OSError where there is no room
        to note the reset, or a segment that cannot be opened now; nothing is then reset.
        """
        self.recorder.start_over(self._reader.reset())

    def export_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write statistics and history as JSON; a reader never sees half a file.

        Raises OSError where it cannot be written; a file that was there is then untouched.
        """
        from metricsmw.engine.files import replace_file

        reading = self.read()
        history = reading.history(self.settings.max_history_minutes)
        replace_file(path, json_text(export_document(reading.statistics, history)))

    def export_to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the history as CSV, one row a minute; as `export_to_json` does."""
        from metricsmw.engine.files import replace_file

        replace_file(path, csv_text(self.get_metrics_history(self.settings.max_history_minutes)))

    def close(self) -> None:
        """Leave the server: gauges are zeroed, counts stay for the others. May be repeated.

        Another worker goes on with its alerts, exports and lasting history. A monitor that is used
        afterwards opens itself again.
        """
        if self._history is not None:
            self._history.stop()
        self.recorder.close()
        self.jobs.release()

    def __enter__(self) -> MetricsMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_singleton: MetricsMonitor | None = None
_singleton_lock = threading.Lock()


def _after_fork() -> None:
    global _singleton_lock
    _singleton_lock = threading.Lock()  # another thread of the parent may have held it


on_fork(_after_fork, Stage.LOCKS)


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
    name: str = "",
    errors_from: Literal[400, 500] = 400,
    event_streams: Iterable[str] = (),
    capture: tuple[str, ...] = (),
    capture_threshold_seconds: float = 1.0,
) -> MetricsMonitor:
    """Return the monitor of this process: one per process, one truth per server.

    The first call makes it, with a window of 300 s by default; later ones return it.
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
                name=name,
                errors_from=errors_from,
                event_streams=event_streams,
                capture=capture,
                capture_threshold_seconds=capture_threshold_seconds,
            )
            return _singleton
    kept = getattr(_singleton.lasting, "path", None)
    warn_of_others(_singleton.window_seconds, window_seconds, kept, history)
    return _singleton
