"""`Counts`: the counts of a span of time, and their rates and percentiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import add
from typing import TypedDict

from metricsmw.engine.reading.lazy import lazy
from metricsmw.engine.storage.histogram import (
    BUCKETS,
    FIRST,
    ROUTE_FIRST,
    ROUTE_SCALE,
    SCALE,
    Distribution,
)
from metricsmw.engine.storage.lanes import (
    HISTOGRAM,
    ROUTE_HISTOGRAM,
    distribution,
    in_use,
    lane_of,
    unpack,
)
from metricsmw.engine.storage.layout import Lane, RouteLane
from metricsmw.snapshot import MINUTE_FIELDS

# The classes of statuses that are counted; 2xx is the rest.
CLASSES = (1, 3, 4, 5)
# The highest bit of every lane of a server-wide histogram.
HIGHEST = int.from_bytes(bytes([0] * 7 + [128]) * BUCKETS, "little")


class SpanRates(TypedDict):
    """What was counted in a span of time, with rates."""

    requests: int
    errors: int
    server_errors: int
    request_rate_rpm: float
    error_rate_pct: float
    server_error_rate_pct: float


class SpanFigures(SpanRates):
    """The same with percentiles of the latencies."""

    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float


@dataclass(frozen=True)
class Counts:
    """The counts of a span of time.

    Lanes are copied while they grow, so a part may be ahead of its whole: every part is held to it.

    Attributes:
        requests: all requests, those included whose client went away.
        errors: how many of them failed.
        histogram: the latencies: one integer with a lane of 64 bits for each bucket.
        peak: the exact largest latency in seconds; 0.0 where it is not known.
        scale: the scale of the buckets, `SCALE` or `ROUTE_SCALE`.
        server_errors: how many errors are the server's own.
        classes: how many answers had a status of 1xx, 3xx, 4xx and 5xx; None where it is not known,
            as of a route.
    """

    requests: int = 0
    errors: int = 0
    histogram: int = 0
    peak: float = 0.0
    scale: int = SCALE
    server_errors: int = 0
    classes: tuple[int, ...] | None = (0,) * len(CLASSES)

    @classmethod
    def of_server(cls, lanes: int, peak: float = 0.0) -> Counts:
        """Return the counts of a difference of server-wide states."""
        histogram = lanes & HISTOGRAM
        requests = _sum(histogram) + lane_of(lanes, Lane.ABANDONED)
        errors = min(lane_of(lanes, Lane.ERRORS), requests)
        own = min(lane_of(lanes, Lane.SERVER_ERRORS), errors)
        classes = tuple(lane_of(lanes, Lane.CLASSES + number) for number in CLASSES)
        return cls(requests, errors, histogram, peak, SCALE, own, classes)

    @classmethod
    def of_route(cls, lanes: int, peak: float = 0.0) -> Counts:
        """Return the counts of a difference of a route's states."""
        histogram = lanes & ROUTE_HISTOGRAM
        requests = _sum(histogram) + lane_of(lanes, RouteLane.ABANDONED)
        errors = min(lane_of(lanes, RouteLane.ERRORS), requests)
        own = min(lane_of(lanes, RouteLane.SERVER_ERRORS), errors)
        return cls(requests, errors, histogram, peak, ROUTE_SCALE, own, None)

    def held_to(self, requests: int) -> Counts:
        """Return the counts of so many requests, of which no more are errors."""
        if requests == self.requests:
            return self
        errors = min(self.errors, requests)
        own = min(self.server_errors, errors)
        return replace(self, requests=requests, errors=errors, server_errors=own)

    def plus(self, other: Counts) -> Counts:
        """Return the counts of both spans, whose buckets are of the same scale."""
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.histogram + other.histogram,
            scale=self.scale,
            server_errors=self.server_errors + other.server_errors,
            classes=_by_class(add, self.classes, other.classes),
        )

    def since(self, earlier: Counts) -> Counts:
        """Return the counts since an earlier state of the same server.

        Never below 0, as it would be for a while where a damaged segment is left out.
        """
        # All lanes at once, as counts have 62 bits: a lane that fell below 0 shows in its highest.
        histogram = self.histogram - earlier.histogram
        if histogram < 0 or histogram & HIGHEST:
            lanes = unpack(self.histogram, BUCKETS), unpack(earlier.histogram, BUCKETS)
            histogram = pack_lanes(max(now - before, 0) for now, before in zip(*lanes, strict=True))
        return Counts(
            max(self.requests - earlier.requests, 0),
            max(self.errors - earlier.errors, 0),
            histogram,
            scale=self.scale,
            server_errors=max(self.server_errors - earlier.server_errors, 0),
            classes=_by_class(_less, self.classes, earlier.classes),
        )

    @lazy
    def latency(self) -> Distribution:
        """Return the latencies, ready to be asked for percentiles."""
        first = FIRST if self.scale == SCALE else ROUTE_FIRST
        return distribution(self.histogram, first, self.scale, self.peak)

    @property
    def statuses(self) -> dict[str, int]:
        """How many of the answered requests had a status of each class, of those that occurred.

        None at all where it is not known.
        """
        if self.classes is None:
            return {}
        counted: dict[int, int] = {}
        rest = self.latency.count
        for number, count in zip(reversed(CLASSES), reversed(self.classes), strict=True):
            counted[number] = min(count, rest)
            rest -= counted[number]
        counted[2] = rest
        return {f"{number}xx": counted[number] for number in sorted(counted) if counted[number]}

    @property
    def server_error_rate_pct(self) -> float:
        """The share of the server's own errors in percent, to 2 decimals; 0.0 of no requests."""
        return percent(self.server_errors, self.requests)

    @property
    def error_rate_pct(self) -> float:
        """The share of errors in percent, to 2 decimals; 0.0 of no requests."""
        return percent(self.errors, self.requests)

    def rate_rpm(self, seconds: float) -> float:
        """Return the requests per minute, to 2 decimals, if counted in so many seconds."""
        return round(60 * self.requests / seconds, 2) if seconds else 0.0

    @property
    def percentiles_ms(self) -> tuple[float, float, float]:
        """The latencies' p50, p95 and p99 in milliseconds, to 2 decimals; 0.0 of no requests."""
        return percentiles_ms(self.latency)

    @property
    def max_ms(self) -> float:
        """The largest latency in milliseconds, to 2 decimals; 0.0 of no requests."""
        return milliseconds(self.latency.max)

    def figures(self, seconds: float) -> SpanFigures:
        """Return counts, rates and percentiles, if counted in so many seconds."""
        p50, p95, p99 = self.percentiles_ms
        return {
            "requests": self.requests,
            "errors": self.errors,
            "server_errors": self.server_errors,
            "request_rate_rpm": self.rate_rpm(seconds),
            "error_rate_pct": self.error_rate_pct,
            "server_error_rate_pct": self.server_error_rate_pct,
            "latency_p50_ms": p50,
            "latency_p95_ms": p95,
            "latency_p99_ms": p99,
            "latency_max_ms": self.max_ms,
        }

    def minute(self, seconds: float) -> dict[str, float | int]:
        """Return the `MINUTE_FIELDS` of counts that so many seconds had; statuses not known: -1."""
        statuses = self.statuses
        unknown = -1 if self.classes is None else 0
        values = (
            round(seconds, 2),
            self.requests,
            self.errors,
            self.server_errors,
            self.rate_rpm(seconds),
            self.error_rate_pct,
            self.server_error_rate_pct,
            *self.percentiles_ms,
            self.max_ms,
            *(statuses.get(f"{number}xx", unknown) for number in range(1, 6)),
        )
        return dict(zip(MINUTE_FIELDS, values, strict=True))


def _by_class(
    join: Callable[[int, int], int], one: tuple[int, ...] | None, other: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    return None if one is None or other is None else tuple(map(join, one, other))


def _less(count: int, earlier: int) -> int:
    return max(count - earlier, 0)


def percentiles_ms(times: Distribution) -> tuple[float, float, float]:
    """Return p50, p95 and p99 in milliseconds, to 2 decimals."""
    p50, p95, p99 = (milliseconds(times.percentile(p)) for p in (50, 95, 99))
    return p50, p95, p99


def milliseconds(seconds: float) -> float:
    """Return seconds in milliseconds, to 2 decimals."""
    return round(seconds * 1000, 2)


def percent(part: float, whole: float) -> float:
    """Return a part in percent of the whole, to 2 decimals; 0.0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def pack_lanes(counts: Iterable[int]) -> int:
    """Return the counts of consecutive buckets as one integer."""
    return int.from_bytes(b"".join(count.to_bytes(8, "little") for count in counts), "little")


def _sum(histogram: int) -> int:
    return sum(in_use(histogram)[1])
