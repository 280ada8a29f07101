"""Snapshots: the numbers of one reading as the fields that users know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metricsmw.clock import Clock
from metricsmw.config import Settings
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.layout import STEPS_PER_WINDOW, Field, step_number
from metricsmw.engine.storage.minutes import GaugeSample
from metricsmw.engine.workers.group import Group
from metricsmw.snapshot import MetricsSnapshot, iso_timestamp

if TYPE_CHECKING:
    from metricsmw.engine.reading.limits import Limits
    from metricsmw.engine.reading.resources import (
        ResourceSampler,
        Usage,
        WorkerKey,
        WorkerResources,
    )


class Snapshots:
    """Takes snapshots of readings, and stores their gauges for the time series."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._sampler = _new_sampler()
        self._pid = os.getpid()

    def usage(self, server: ServerReading) -> Usage:
        """Return CPU and memory of the live workers, as they are now."""
        return self._own_sampler().usage(server.live_workers())

    def resources(self, server: ServerReading) -> Mapping[WorkerKey, WorkerResources]:
        """Return CPU and memory of each live worker of which they are known."""
        return self._own_sampler().each(server.live_workers())

    def limits(self) -> Limits:
        """Return what percentages of CPU and memory are of."""
        return self._own_sampler().limits()

    def _own_sampler(self) -> ResourceSampler:
        if self._pid != os.getpid():  # the parent's: its lock may be held for ever
            self._sampler, self._pid = _new_sampler(), os.getpid()
        return self._sampler

    def take(self, server: ServerReading, group: Group, wall: float, users: int) -> MetricsSnapshot:
        """Return the snapshot of a reading, and store its gauges in the group.

        Args:
            server: the reading.
            group: the group that was read.
            wall: Unix time of the reading.
            users: how many users were active.
        """
        window, total = server.window, server.total
        p50, p95, p99 = window.percentiles_ms
        usage = self.usage(server)
        snapshot = MetricsSnapshot(
            timestamp=iso_timestamp(wall),
            request_rate_rpm=window.rate_rpm(server.covered(self._settings.window_seconds)),
            error_rate_pct=window.error_rate_pct,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            latency_p99_ms=p99,
            active_users=users,
            memory_usage_pct=usage.memory_pct,
            memory_usage_mb=usage.memory_mb,
            cpu_usage_pct=usage.cpu_pct,
            websocket_connections=server.gauge(Field.WEBSOCKETS),
            total_requests=total.requests,
            total_errors=total.errors,
            latency_max_ms=window.max_ms,
            requests_in_flight=server.gauge(Field.IN_FLIGHT),
            workers=server.workers,
            cpu_share_pct=usage.cpu_share_pct,
            server_error_rate_pct=window.server_error_rate_pct,
            total_server_errors=total.server_errors,
        )
        self.store_gauges(snapshot, group, server.period.now)
        return snapshot

    def store_gauges(self, snapshot: MetricsSnapshot, group: Group, at: float) -> None:
        """Store the gauges of a snapshot under the step of monotonic time ``at``.

        A minute that is caught up with long after says nothing of the gauges of its time: nothing
        is stored for a step that has left the window.
        """
        step = self._settings.step
        if self._clock.monotonic() - at < step * STEPS_PER_WINDOW:
            sample = GaugeSample(
                snapshot.requests_in_flight, snapshot.cpu_usage_pct, snapshot.memory_usage_mb
            )
            group.history.gauge_samples.put(step_number(at, step), sample)


def _new_sampler() -> ResourceSampler:
    # Imported here for psutil's sake: importing this package is to cost next to nothing.
    from metricsmw.engine.reading.resources import ResourceSampler

    return ResourceSampler()
