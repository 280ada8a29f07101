"""The plain model that readings are compared with: lists, sorting and division, nothing clever.

It knows the promises only: nearest-rank percentiles, and a window that keeps a request for at
least `window` seconds, drops it at most one step (a sixtieth of the window) later, and divides by
the time it covers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metricsmw import MetricsSnapshot

GLOBAL_BOUND = 0.011
ROUTE_BOUND = 0.022
ROUNDING = 0.005 + 1e-9
"""What rounding to 2 decimals may take away, and a little for the last binary digit."""


class Event(NamedTuple):
    """One recorded request: when (monotonic seconds), how long (milliseconds), how it went."""

    time: float
    latency_ms: float
    is_error: bool


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """The exact nearest-rank percentile of ascending values; 0.0 where there are none."""
    if not ordered:
        return 0.0
    rank = -(-percent * len(ordered) // 100)
    return ordered[rank - 1]


def is_near(reported: float, exact: float, bound: float) -> bool:
    """Whether a reported percentile (ms) is within the relative bound, rounding aside."""
    return abs(reported - exact) <= bound * exact + ROUNDING


def percentile_faults(
    reported: tuple[float, float, float, float], latencies: Sequence[float], bound: float
) -> list[str]:
    """What is wrong with reported `(p50, p95, p99, max)` for these latencies (ms); [] if nothing.

    The latencies must lie within 1 µs .. 1 h.
    """
    ordered = sorted(latencies)
    faults = []
    for percent, value in zip((50, 95, 99), reported, strict=False):
        exact = nearest_rank(ordered, percent)
        if not is_near(value, exact, bound):
            faults.append(f"p{percent}: reported {value!r}, exact {exact!r}")
    p50, p95, p99, highest = reported
    if not p50 <= p95 <= p99 <= highest:
        faults.append(f"not in order: {reported!r}")
    exact_highest = ordered[-1] if ordered else 0.0
    if abs(highest - exact_highest) > ROUNDING:
        faults.append(f"max: reported {highest!r}, exact {exact_highest!r}")
    return faults


def latencies_of(snapshot: MetricsSnapshot) -> tuple[float, float, float, float]:
    """A snapshot's `(p50, p95, p99, max)` in milliseconds."""
    return (
        snapshot.latency_p50_ms,
        snapshot.latency_p95_ms,
        snapshot.latency_p99_ms,
        snapshot.latency_max_ms,
    )


def window_faults(
    snapshot: MetricsSnapshot, kept: Sequence[Event], shortest: float, longest: float
) -> list[str]:
    """What is wrong with a snapshot if its window holds `kept`, covering shortest..longest s."""
    count = len(kept)
    faults = []
    low, high = 60 * count / longest, 60 * count / shortest
    if not low - ROUNDING <= snapshot.request_rate_rpm <= high + ROUNDING:
        faults.append(f"rate: {snapshot.request_rate_rpm!r}, expected {low!r} .. {high!r}")
    errors = sum(event.is_error for event in kept)
    error_rate = 100 * errors / count if count else 0.0
    if abs(snapshot.error_rate_pct - error_rate) > ROUNDING:
        faults.append(f"error rate: {snapshot.error_rate_pct!r}, expected {error_rate!r}")
    latencies = [event.latency_ms for event in kept]
    return faults or percentile_faults(latencies_of(snapshot), latencies, GLOBAL_BOUND)


def possible_windows(
    events: Sequence[Event], *, now: float, started: float, window: int
) -> Iterator[tuple[Sequence[Event], float, float]]:
    """Every content the window may have now, with the shortest and longest time it may cover.

    Where within its step the window's start lies is the monitor's affair, so there may be several.
    Events must be in the order of their times. A nanosecond of slack is for a step that is no
    exact binary fraction.
    """
    slack = 1e-9 + abs(now) * 1e-14
    earliest, latest = now - window * 61 / 60, now - window
    age, floor = now - started, min(60.0, float(window))
    times = [event.time for event in events]
    first = bisect_right(times, earliest - slack)
    last = bisect_left(times, latest + slack)
    for index in range(first, last + 1):
        lower = max(earliest, times[index - 1]) if index > 0 else earliest
        upper = min(latest, times[index]) if index < len(times) else latest
        shortest = max(min(now - upper - slack, age), floor)
        longest = max(min(now - lower + slack, age), floor)
        yield events[index:], shortest, longest


def assert_window(
    snapshot: MetricsSnapshot,
    events: Sequence[Event],
    *,
    now: float,
    started: float,
    window: int,
) -> None:
    """The snapshot must agree in everything with one of the contents its window may have."""
    tried = []
    windows = possible_windows(events, now=now, started=started, window=window)
    for kept, shortest, longest in windows:
        faults = window_faults(snapshot, kept, shortest, longest)
        if not faults:
            return
        tried.append((len(kept), faults))
    raise AssertionError(f"no window explains {snapshot}: {tried}")
