"""`ReadingInput`: one reading of a monitor, as rules see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from metricsmw.alerts.values import PastCounts
from metricsmw.engine.reading.errors import ErrorKind
from metricsmw.engine.reading.instruments import InstrumentSeries
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.spans import StepTable
from metricsmw.snapshot import SnapshotDict

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

MINUTE = 60
OWN = "total_server_errors"
COVERED = 0.9


class ReadingInput:
    """What the rules read of a monitor at one moment."""

    def __init__(self, monitor: MetricsMonitor) -> None:
        """Read the monitor, its table of routes included."""
        self._monitor = monitor
        self._reading = monitor.read(routes=True)
        self._kept = monitor.settings.max_history_minutes

    @property
    def now(self) -> float:
        """Monotonic time of the moment."""
        return self._reading.now

    @property
    def wall(self) -> float:
        """Unix time of the moment."""
        return self._reading.wall

    @property
    def started(self) -> float:
        """Monotonic time of the server's start, or of its last reset."""
        return self._reading.server.started

    @property
    def age(self) -> float:
        """Seconds since the server's start, or since its last reset."""
        return self.now - self.started

    @cached_property
    def snapshot(self) -> SnapshotDict:
        """The snapshot's fields, and the time to first byte."""
        return self._reading.snapshot.to_dict() | self._reading.first_bytes_ms

    @property
    def routes(self) -> Sequence[RouteRow]:
        """The per-route table."""
        return self._reading.routes

    @property
    def window_requests(self) -> int:
        """How many requests the snapshot's rates and latencies are of."""
        return self._reading.server.window.requests

    @property
    def custom(self) -> Sequence[InstrumentSeries]:
        """The app's own numbers."""
        return self._reading.server.instruments()

    @property
    def errors(self) -> Sequence[ErrorKind]:
        """The kinds of error since the last reset."""
        return self._reading.server.errors

    @property
    def reset_at(self) -> float:
        """Monotonic time of the server's last reset; 0.0 where there was none."""
        return self._reading.reset_at

    def new_errors(self, seconds: float) -> Sequence[ErrorKind]:
        """Return the kinds of error that were seen first in the last so many seconds."""
        return [kind for kind in self.errors if kind.is_new(self.now, seconds)]

    def counts(self, minutes: int) -> PastCounts:
        """Return what was counted since the last saved minute that is at least so old.

        Of the time before the start it is what a lasting history has of it.
        """
        rows = self._reading.recent_history(minutes + 1)
        young = len(self._reading.recent_history(minutes))
        age = self.now - self._reading.origin
        is_covered = age >= MINUTE * minutes
        if len(rows) > young:
            return counts_since(rows[-young - 1], self.snapshot, is_covered)
        # All minutes since the start are younger; or older ones are not kept.
        begin = rows[0] if len(rows) >= self._kept else {}
        counts = counts_since(begin, self.snapshot, is_covered)
        return counts if is_covered else self._with_saved(counts, minutes, age)

    def _with_saved(self, counts: PastCounts, minutes: int, age: float) -> PastCounts:
        """Return the counts of so many minutes, of which the server has been counting for ``age``.

        What was counted before comes from a lasting history. The time in between, while no server
        ran, and the minute that the last one had not saved may be a tenth of all.
        """
        lasting = self._monitor.lasting
        if lasting is None:
            return counts
        try:
            saved = lasting.summary(self.wall - MINUTE * minutes, self.wall - age)
        except Exception:
            self._monitor.faults.report("reading the lasting history")
            return counts
        return PastCounts(
            counts.requests + saved["requests"],
            counts.errors + saved["errors"],
            saved["seconds"] + age >= COVERED * MINUTE * minutes,
            counts.server_errors + saved["server_errors"],
        )

    def step_table(self, method: str | None, route: str | None) -> StepTable:
        """Return the steps of a row of the per-route table; of the server where it is None."""
        if route is None or method is None:
            return self._reading.step_table
        return self._reading.route_step_table(method, route)

    def first_byte_table(self, method: str | None, route: str | None) -> StepTable:
        """Return the times to first byte in steps, likewise."""
        return self._reading.first_byte_table(method, route)


def counts_since(
    earlier: Mapping[str, str | float | int],
    now: Mapping[str, str | float | int],
    is_covered: bool = True,
) -> PastCounts:
    """Return requests and errors between two snapshots; the earlier one may be empty."""
    requests, errors, own = (
        # An older export does not have the last.
        max(int(now.get(name, 0) if name == OWN else now[name]) - int(earlier.get(name, 0)), 0)
        for name in ("total_requests", "total_errors", OWN)
    )
    errors = min(errors, requests)
    return PastCounts(requests, errors, is_covered, min(own, errors))
