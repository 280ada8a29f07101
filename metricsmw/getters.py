"""The getters of a monitor that are one line over a reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metricsmw.engine.reading.captures import SlowRequest
    from metricsmw.engine.reading.errors import ErrorRow, Sort
    from metricsmw.engine.reading.heatmap import Heatmap
    from metricsmw.engine.reading.moment import Reading
    from metricsmw.engine.reading.routes import RouteRow
    from metricsmw.engine.reading.series import RouteSeries, Series
    from metricsmw.engine.reading.workers import WorkerRow
    from metricsmw.snapshot import MetricsSnapshot


class Getters:
    """What a monitor tells of its server: each getter reads anew."""

    def read(self, *, routes: bool = False) -> Reading:
        """Return a reading; see `MetricsMonitor.read`."""
        raise NotImplementedError

    def get_current_snapshot(self) -> MetricsSnapshot:
        """Return the numbers of this moment, over all workers of the server."""
        return self.read().snapshot

    def get_request_rate_rpm(self) -> float:
        """Return the requests per minute over the window."""
        return self.read().request_rate_rpm

    def get_error_rate_pct(self) -> float:
        """Return the share of errors among the window's requests, 0 to 100."""
        return self.read().server.window.error_rate_pct

    def get_latency_percentiles(self) -> tuple[float, float, float]:
        """Return (p50, p95, p99) of the window in milliseconds; 0.0 where it is empty."""
        return self.read().server.window.percentiles_ms

    def get_active_users(self) -> int:
        """Return how many users were active within the timeout, each counted once."""
        return self.read().active_users

    def get_active_user_ids(self) -> list[str]:
        """Return the active users' ids, sorted; past `max_users`, the ids of the sample."""
        return self.read().active_user_ids

    def get_websocket_connections(self) -> int:
        """Return the number of WebSocket connections open on the live workers."""
        return self.read().websocket_connections

    def get_memory_usage(self) -> tuple[float, float]:
        """Return the resident memory of the live workers: (percent of limit or machine, MiB)."""
        usage = self.read().usage
        return usage.memory_pct, usage.memory_mb

    def get_cpu_usage(self) -> float:
        """Return the CPU of the live workers in percent of one core, since the reading before."""
        return self.read().usage.cpu_pct

    @property
    def total_requests(self) -> int:
        """Requests since the start or the last reset."""
        return self.read().server.total.requests

    @property
    def total_errors(self) -> int:
        """Errors since the start or the last reset."""
        return self.read().server.total.errors

    _total_requests = total_requests
    _total_errors = total_errors

    def get_routes(self) -> list[RouteRow]:
        """Return the per-route table of the window, busiest first."""
        return self.read().routes

    def get_heatmap(
        self, method: str | None = None, route: str | None = None, seconds: int | None = None
    ) -> Heatmap:
        """Return how many requests took how long, step by step and over the window.

        Without ``method`` and ``route``, as `get_routes` names them, it is of all requests;
        ``seconds`` as for `get_series`.
        """
        return self.read().heatmap(method, route, seconds)

    def get_workers(self) -> list[WorkerRow]:
        """Return the living workers one by one, and which of them is sick; see `WorkerRow`."""
        return self.read().workers

    def get_errors(
        self, limit: int = 50, *, sort: Sort = "last_seen", new_seconds: int = 300
    ) -> list[ErrorRow]:
        """Return the kinds of error since the start or the last reset, over all workers.

        A kind is a type of exception and the app's own functions that it went through, or, of
        answers without an exception, a status from 500 on and the route.

        Args:
            limit: At most so many kinds, at least 1.
            sort: "last_seen" or "count": the latest first, or the most frequent.
            new_seconds: A row is marked as ``new`` for so long after it was seen first, 1 to 86400.

        Raises:
            TypeError: A number is no whole number.
            ValueError: A number is out of its range, or there is no such order.
        """
        return self.read().errors(limit, sort, new_seconds)

    def get_series(self, seconds: int | None = None) -> Series:
        """Return the counts of each step of the window that ended in the last ``seconds``.

        Steps are sixtieths of the window, whose length is also the most that can be asked for and
        the default.

        Raises:
            TypeError: ``seconds`` is no whole number.
            ValueError: ``seconds`` is below 1.
        """
        return self.read().series(seconds)

    def get_route_series(self, method: str, route: str, seconds: int | None = None) -> RouteSeries:
        """Return the same of a row of `get_routes`, in tenths of the window; idle if not there."""
        return self.read().route_series(method, route, seconds)

    def get_slowest(
        self, route: str | None = None, method: str | None = None, limit: int = 50
    ) -> list[SlowRequest]:
        """Return the captured requests of the window, over all workers, slowest first.

        Captured are the slowest requests of each route, and those above its 99th percentile or
        ``capture_threshold_seconds``, as far as there is room.

        Args:
            route: Only those of this route, as `get_routes` names it.
            method: Only those with this method, likewise.
            limit: At most so many, 1 to 1000.

        Raises:
            TypeError: ``limit`` is no whole number.
            ValueError: ``limit`` is out of its range.
        """
        return self.read().slowest(route, method, limit)
