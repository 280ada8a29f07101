"""The window as a time series: the counts of each of its steps, over all workers.

The window slides in sixtieths, and each worker keeps its counts as they stood at the start of each:
so the difference of two neighbouring checkpoints is one step of the series, and nothing is stored
for it. Single routes go by tenths of the window.

A series has only steps that have ended, so a step never changes once it was in one; only a reset
takes steps away. Steps before the server's start or the last reset are left out, idle ones are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from metricsmw.engine.reading.counts import Counts
from metricsmw.engine.reading.first_bytes import (
    UNKNOWN,
    FirstByteFields,
    fields,
    of_route,
    of_server,
)
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.keys import Name
from metricsmw.engine.storage.layout import STEP_RATIO, step_number
from metricsmw.engine.storage.minutes import GaugeSample
from metricsmw.snapshot import iso_timestamp
from metricsmw.validation import whole


class Step(TypedDict):
    """What is counted of a step. Latencies are None where nothing was answered in it."""

    step: int
    timestamp: str
    requests: int
    errors: int
    request_rate_rpm: float
    error_rate_pct: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None


class RouteStep(Step, FirstByteFields):
    """One step of one route."""


class SeriesStep(Step, FirstByteFields):
    """One step of the server. The gauges are None where nobody looked during it.

    The time to first byte is that of the tenth of the window which ends with the step.
    """

    requests_in_flight: int | None
    cpu_usage_pct: float | None
    memory_usage_mb: float | None
    server_errors: int
    server_error_rate_pct: float
    statuses: dict[str, int]


class Series(TypedDict):
    """What `MetricsMonitor.get_series` returns; steps are oldest first."""

    seconds: int
    step_seconds: float
    started: str
    reset: str | None
    series: list[SeriesStep]


class RouteSeries(TypedDict):
    """What `MetricsMonitor.get_route_series` returns; steps are oldest first."""

    seconds: int
    step_seconds: float
    started: str
    reset: str | None
    method: str
    route: str
    series: list[RouteStep]


class Steps:
    """The steps of length ``step`` that ended within the last ``seconds``, labelled at ``wall``.

    ``seconds`` and ``step`` in seconds, ``wall`` is the Unix time of the reading.
    """

    def __init__(self, reading: ServerReading, seconds: float, step: float, wall: float) -> None:
        now = reading.period.now
        self._now, self._step, self._wall = now, step, wall
        self.last = step_number(now, step) - 1
        # Both ends count whole steps; what rounding leaves of one is none.
        oldest = self.last - round(seconds / step) + 1
        self.first = max(oldest, step_number(reading.started, step), 1)
        # ISO 8601 of the server's start and of its last reset.
        self.started = self._wall_time(reading.created)
        self.reset = self._wall_time(reading.reset.at) if reading.reset.at else None

    def counts(self, lanes: Mapping[int, int], count: Callable[[int], Counts]) -> dict[int, Counts]:
        """Return the counts of every step, by its number."""
        return {number: count(lanes.get(number, 0)) for number in range(self.first, self.last + 1)}

    def rows(self, counts: Mapping[int, Counts]) -> list[Step]:
        """Return every step, with its counts."""
        rows: list[Step] = []
        for number, counted in counts.items():
            answered = counted.latency.count
            p50, p95, p99 = counted.percentiles_ms if answered else (None, None, None)
            rows.append(
                {
                    "step": number,
                    "timestamp": self.timestamp(number),
                    "requests": counted.requests,
                    "errors": counted.errors,
                    "request_rate_rpm": counted.rate_rpm(self._step),
                    "error_rate_pct": counted.error_rate_pct,
                    "latency_p50_ms": p50,
                    "latency_p95_ms": p95,
                    "latency_p99_ms": p99,
                }
            )
        return rows

    def timestamp(self, number: int) -> str:
        """Return ISO 8601 for the end of a step."""
        return self._wall_time(number * self._step)

    def _wall_time(self, at: float) -> str:
        """Return ISO 8601 for a monotonic time."""
        return iso_timestamp(self._wall - (self._now - at))


def server_steps(
    reading: ServerReading, steps: Steps, seen: Callable[[int, int], Mapping[int, GaugeSample]]
) -> list[SeriesStep]:
    """Return the server's steps.

    Args:
        reading: the reading.
        steps: which steps, in sixtieths of the window.
        seen: returns the gauge samples of the steps from one number to another.
    """
    samples = seen(steps.first, steps.last)
    rows: list[SeriesStep] = []
    # Those that end with one of the steps.
    tenths = range(-(-steps.first // STEP_RATIO), steps.last // STEP_RATIO + 1)
    lanes = reading.steps(min(steps.first, (tenths.start - 1) * STEP_RATIO + 1))
    first_bytes = of_server(reading, lanes, tenths) if tenths else {}
    counts = steps.counts(lanes, Counts.of_server)
    for row in steps.rows(counts):
        counted = counts[row["step"]]
        tenth, inside = divmod(row["step"], STEP_RATIO)
        in_flight, cpu, memory = samples.get(row["step"], (None, None, None))
        rows.append(
            {
                **row,
                "requests_in_flight": in_flight,
                "cpu_usage_pct": cpu,
                "memory_usage_mb": memory,
                "server_errors": counted.server_errors,
                "server_error_rate_pct": counted.server_error_rate_pct,
                "statuses": counted.statuses,
                **(UNKNOWN if inside else fields(first_bytes[tenth])),
            }
        )
    return rows


def route_steps(reading: ServerReading, steps: Steps, method: str, route: str) -> list[RouteStep]:
    """Return the steps of one route; ``steps`` must be tenths of the window."""
    name = Name(method, route)
    lanes = reading.route_steps(name, steps.first)
    first_bytes = of_route(reading, name, range(steps.first, steps.last + 1))
    rows = steps.rows(steps.counts(lanes, Counts.of_route))
    return [{**row, **fields(first_bytes.get(row["step"], 0))} for row in rows]


def clamp_seconds(seconds: int | None, window: int) -> int:
    """Return the ``seconds`` asked for, held to the window; None means all of it.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below 1.
    """
    return window if seconds is None else min(whole("seconds", seconds, 1), window)
