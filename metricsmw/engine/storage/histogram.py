"""Base-2 exponential buckets: which bucket a latency falls in, and percentiles from counts.

The buckets are those of OpenTelemetry's exponential histograms at scale 5 (Prometheus native
histograms, schema 5): bucket ``i`` holds the values in ``(2**((i-1)/32), 2**(i/32)]`` seconds.
Scale 4, used for single routes, joins two neighbours: bucket ``i`` of scale 5 lies in bucket
``(i + 1) >> 1`` of scale 4.

A percentile is the nearest-rank one: of n values the ceil(p*n/100)-th smallest. It is named by
the point of its bucket from which no value of the bucket is further away than
``(g - 1) / (g + 1)``, g being the bucket's growth (the relative-error midpoint of DDSketch,
Masson, Rim and Lee, VLDB 2019): 1.09 % at scale 5, 2.17 % at scale 4.

Source of the layout: OpenTelemetry metrics data model, "ExponentialHistogram".
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

SCALE = 5
ROUTE_SCALE = 4

# Below the floor and above the ceiling a value is counted as the floor and the ceiling. The
# floor is under the promised 1 µs so that trivial apps stay out of the slow path.
FLOOR_SECONDS = 2.0**-24
CEILING_SECONDS = 3600.0

FIRST, LAST = -24 * 32, 12 * 32
ROUTE_FIRST, ROUTE_LAST = -24 * 16, 12 * 16
BUCKETS, ROUTE_BUCKETS = LAST - FIRST + 1, ROUTE_LAST - ROUTE_FIRST + 1


def index(seconds: float) -> int:
    """Return the scale-5 bucket of a latency in seconds, floor <= seconds <= ceiling.

    Exact but for values within 11 ulp of a boundary that is no power of two.
    """
    return math.ceil(math.log2(seconds) * 32.0)


def upper_bound(bucket: int, scale: int = SCALE) -> float:
    """Return the largest value in seconds that the bucket holds."""
    return math.pow(2.0, bucket / (1 << scale))


def representative(bucket: int, scale: int = SCALE) -> float:
    """Return the value in seconds that names the bucket: its relative-error midpoint."""
    growth = math.pow(2.0, 1 / (1 << scale))
    return upper_bound(bucket, scale) * 2.0 / (1.0 + growth)


class InstrumentBuckets(NamedTuple):
    """What a histogram of the app's own counts: `ROUTE_BUCKETS` of a scale from ``first`` on.

    Its sum is kept in whole parts of the unit, ``sum_factor`` of which make one.
    """

    scale: int
    first: int
    sum_factor: float


def instrument_buckets(unit: str) -> InstrumentBuckets:
    """Return the buckets for a unit.

    Seconds from 60 ns to an hour have buckets of 2.2 % at most; anything else from 6e-8 to 2.8e14
    within 4.4 %.
    """
    if unit == "seconds":
        return InstrumentBuckets(ROUTE_SCALE, ROUTE_FIRST, 1e6)
    return InstrumentBuckets(3, -24 * 8, 1.0 if unit == "bytes" else 1e3)


class Distribution:
    """Counts of consecutive buckets, ready to be asked for percentiles.

    ``counts[k]`` belongs to bucket ``first + k``. ``exact_max`` is the largest value in seconds
    where it is known; it names its own bucket, and nothing above it is ever named.
    """

    def __init__(
        self, counts: Sequence[int], first: int, scale: int, exact_max: float = 0.0
    ) -> None:
        self._ranks = list(accumulate(counts))
        self._first = first
        self._scale = scale
        self.count = self._ranks[-1] if self._ranks else 0
        self.max = self._maximum(exact_max)

    def _maximum(self, exact: float) -> float:
        """Return the exact maximum, or the highest used bucket's name where it is not in it."""
        if not self.count:
            return 0.0
        highest = self._first + bisect_left(self._ranks, self.count)
        # A boundary value may sit 11 ulp outside its bucket, hence the slack.
        if upper_bound(highest - 1, self._scale) * (1 - 1e-12) < exact:
            return min(exact, upper_bound(highest, self._scale))
        named = representative(highest, self._scale)
        # Only seconds have a ceiling, and they have the finer scales.
        return min(named, CEILING_SECONDS) if self._scale >= ROUTE_SCALE else named

    def percentile(self, percent: int) -> float:
        """Return the nearest-rank percentile in seconds, 1 <= percent <= 100; 0.0 if empty."""
        if not self.count:
            return 0.0
        rank = -(-self.count * percent // 100)
        bucket = self._first + bisect_left(self._ranks, rank)
        return min(representative(bucket, self._scale), self.max)
