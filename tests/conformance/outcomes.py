"""What a request must have done to the numbers, all of them at once."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import pytest

from metricsmw import MetricsMonitor

Kind = Literal["complete", "failed", "gone", "excluded"]

# The bound that the contract gives the per-route percentiles.
PRECISION = 0.022


class Outcome(NamedTuple):
    """How one request ended: with which status, how many seconds after the app was called."""

    kind: Kind
    status: int = 500
    seconds: float = 0.0

    @property
    def is_error(self) -> bool:
        return self.kind == "failed" or (self.kind == "complete" and self.status >= 400)


def complete(status: int = 200, seconds: float = 0.0) -> Outcome:
    """The last byte was handed to the server."""
    return Outcome("complete", status, seconds)


def failed(status: int = 500, seconds: float = 0.0) -> Outcome:
    """An exception, or no response: an error, whatever the status that was sent."""
    return Outcome("failed", status, seconds)


def gone() -> Outcome:
    """The client went away: in the total, and nowhere else."""
    return Outcome("gone")


def excluded() -> Outcome:
    """It is in no number."""
    return Outcome("excluded")


def assert_counted(monitor: MetricsMonitor, *outcomes: Outcome, in_flight: int = 0) -> None:
    """Exactly these requests are in the numbers, and none is in flight but those that are said."""
    outcomes = tuple(outcome for outcome in outcomes if outcome.kind != "excluded")
    timed = [outcome for outcome in outcomes if outcome.kind != "gone"]
    slowest_ms = max((outcome.seconds for outcome in timed), default=0.0) * 1000
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == len(outcomes)
    assert snapshot.total_errors == sum(outcome.is_error for outcome in outcomes)
    assert snapshot.requests_in_flight == in_flight
    assert snapshot.latency_max_ms == pytest.approx(slowest_ms, rel=PRECISION, abs=0.01)
    rows = monitor.get_routes()
    assert sum(row["requests"] for row in rows) == len(outcomes)
    statuses: Counter[str] = Counter()
    for row in rows:
        statuses.update(row["statuses"])
    assert statuses == Counter(f"{outcome.status // 100}xx" for outcome in timed)


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """The requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def faults(monitor: MetricsMonitor) -> object:
    """How many faults of its own the monitor counts."""
    return monitor.get_health()["faults"]
