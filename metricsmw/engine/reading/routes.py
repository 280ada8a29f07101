"""The per-route table: the rows of all workers, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import mul
from typing import TypedDict

from metricsmw.engine.reading.counts import Counts, percent, percentiles_ms
from metricsmw.engine.storage.histogram import (
    ROUTE_BUCKETS,
    ROUTE_FIRST,
    ROUTE_SCALE,
    Distribution,
    representative,
)
from metricsmw.engine.storage.keys import OTHER, UNTOLD_STREAMS, Name, Times
from metricsmw.engine.storage.lanes import ROUTE_HISTOGRAM, in_use, lane_of, unpack
from metricsmw.engine.storage.layout import (
    RouteLane,
)
from metricsmw.engine.storage.routes import RouteCounts, RouteTotal

MIDPOINTS = [representative(ROUTE_FIRST + lane, ROUTE_SCALE) for lane in range(ROUTE_BUCKETS)]


class RouteRow(TypedDict):
    """A row of the per-route table, over the window."""

    method: str
    route: str
    requests: int
    error_rate_pct: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    statuses: dict[str, int]
    latency_ttfb_p50_ms: float | None
    latency_ttfb_p95_ms: float | None
    latency_ttfb_p99_ms: float | None
    status_codes: dict[str, int]
    server_error_rate_pct: float
    request_rate_rpm: float
    time_share_pct: float


class RouteLanes:
    """The route tables of all segments, added up: lanes in the window, peak, statuses by name."""

    def __init__(self, rows: Iterable[RouteCounts]) -> None:
        self.lanes: dict[Name, int] = {}
        self.peaks: dict[Name, float] = {}
        self.statuses: dict[Name, dict[int, int]] = {}
        for row in rows:
            statuses = row.statuses
            if row.plain is not None and row.name.times is Times.ALL:
                statuses = {row.plain: sum(in_use(row.lanes & ROUTE_HISTOGRAM)[1])}
            self.add(row.name, row.lanes, row.peak, statuses)

    def add(self, name: Name, count: int, peak: float, statuses: Mapping[int, int]) -> None:
        """Add a row's lanes, its peak in seconds, and its answers by status."""
        self.lanes[name] = self.lanes.get(name, 0) + count
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
        found = self.statuses.setdefault(name, {})
        for status, number in statuses.items():
            found[status] = found.get(status, 0) + number

    def names(self) -> list[Name]:
        """Return the names of all rows but those of streams."""
        return [name for name in self.lanes if name.times is Times.ALL]

    def hold_to(self, max_routes: int) -> None:
        """Add what is beyond the busiest ``max_routes`` to ``<other>``."""
        own = [name for name in self.lanes if name.is_own]
        if len(own) <= max_routes:
            return
        own.sort(key=lambda name: -sum(in_use(self.lanes[name])[1]))
        for name in own[max_routes:]:
            other = Name(name.method, OTHER)
            for old, new in zip(
                (name, *name.of_stream()), (other, *other.of_stream()), strict=True
            ):
                if old in self.lanes:
                    statuses = self.statuses.pop(old)
                    self.add(new, self.lanes.pop(old), self.peaks.pop(old), statuses)

    def first_bytes(self, name: Name) -> list[int] | None:
        """Return the buckets of a route's times to first byte; None where one is not known."""
        lanes = self.lanes[name]
        if lane_of(lanes, RouteLane.STREAMS):
            return None
        return first_byte_buckets(lanes, *(self.lanes.get(part, 0) for part in name.of_stream()))

    def all_first_bytes(self) -> list[int]:
        """Return the buckets of all routes' times to first byte."""
        routes = self.names()
        pairs = [*(name.of_stream() for name in routes), UNTOLD_STREAMS]
        first, last = (sum(self.lanes.get(pair[k], 0) for pair in pairs) for k in (0, 1))
        return first_byte_buckets(sum(self.lanes[name] for name in routes), first, last)


def first_byte_buckets(lanes: int, first: int, last: int) -> list[int]:
    """Return all latencies less those of streams, plus the streams' first bytes."""
    buckets = _buckets(lanes)
    if first:
        # Rows are copied one after the other: a stream may be in one of them only.
        rows = zip(buckets, _buckets(first), _buckets(last), strict=True)
        return [max(all_ - b, 0) + a for all_, a, b in rows]
    return buckets


def _buckets(lanes: int) -> list[int]:
    return unpack(lanes & ROUTE_HISTOGRAM, ROUTE_BUCKETS)


def seconds_spent(lanes: int) -> float:
    """Return the seconds that the answered requests of a route took in all, within 2.2 %."""
    lowest, counts = in_use(lanes & ROUTE_HISTOGRAM)
    return sum(map(mul, counts, MIDPOINTS[lowest:]), 0.0)


def route_counts(totals: Iterable[RouteTotal]) -> dict[Name, Counts]:
    """Return what each route has counted, of its rows and answers."""
    found: dict[Name, RouteTotal] = {}
    for total in totals:
        if total.name.times is Times.ALL:
            known = found.get(total.name)
            found[total.name] = total if known is None else total.plus(known)
    return {name: _route_counts(total) for name, total in found.items()}


def _route_counts(total: RouteTotal) -> Counts:
    requests = sum(in_use(total.histogram)[1]) + total.abandoned
    errors = min(total.errors, requests)
    own = min(total.server_errors, errors)
    return Counts(requests, errors, total.histogram, 0.0, ROUTE_SCALE, own, None)


def route_row(
    name: Name, routes: RouteLanes, covered: float, spent: float, total: float
) -> RouteRow:
    """Return the row of one route.

    Args:
        name: The route.
        routes: All of them.
        covered: The seconds that the window's counts cover.
        spent: The seconds that its requests took (`seconds_spent`).
        total: The seconds that the requests of all routes took.
    """
    lanes = routes.lanes[name]
    statuses = {status: count for status, count in routes.statuses[name].items() if count}
    classes = _classes(lanes, statuses)
    # A row is copied while it grows: a latency may be there already, and its status not yet.
    requests = sum(classes) + lane_of(lanes, RouteLane.ABANDONED)
    counts = Counts.of_route(lanes, routes.peaks[name]).held_to(requests)
    p50, p95, p99 = counts.percentiles_ms
    first = routes.first_bytes(name)
    ttfb: tuple[float | None, float | None, float | None] = None, None, None
    if first is not None:
        ttfb = percentiles_ms(Distribution(first, ROUTE_FIRST, ROUTE_SCALE, counts.latency.max))
    return {
        "method": name.method,
        "route": name.route,
        "requests": counts.requests,
        "error_rate_pct": counts.error_rate_pct,
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "latency_p99_ms": p99,
        "latency_max_ms": counts.max_ms,
        "statuses": {f"{k}xx": classes[k] for k in range(1, 6) if classes[k]},
        "latency_ttfb_p50_ms": ttfb[0],
        "latency_ttfb_p95_ms": ttfb[1],
        "latency_ttfb_p99_ms": ttfb[2],
        "status_codes": {str(status): statuses[status] for status in sorted(statuses) if status},
        "server_error_rate_pct": counts.server_error_rate_pct,
        "request_rate_rpm": counts.rate_rpm(covered),
        "time_share_pct": percent(spent, total),
    }


def _classes(lanes: int, statuses: Mapping[int, int]) -> list[int]:
    """Return how many of the answered requests had a status of each class; the first had none."""
    # Those that share a row of answers are counted by class.
    classes = [lane_of(lanes, RouteLane.REST + k) for k in range(6)]
    for status, count in statuses.items():
        classes[status // 100] += count
    return classes
