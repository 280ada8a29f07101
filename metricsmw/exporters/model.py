"""Metric families: counters, gauges and exponential histograms, of one moment, as plain data.

Names, units and attributes are OpenTelemetry's: dotted names, UCUM units (``s``, ``By``,
``{request}``). A writer makes of them what its format asks for.

Bucket ``i`` of a histogram with scale ``n`` holds the values in ``(2**((i-1)/2**n), 2**(i/2**n)]``.
That is the index of a Prometheus native histogram with schema ``n``; OpenTelemetry's exponential
histograms number the same bucket ``i - 1``.

Every value is finite. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

Attributes = Mapping[str, str]

# Exponents of the classic buckets' upper bounds, 0.24 ms to 64 s where the unit is seconds.
# The set never changes, as Prometheus computes wrong rates where a bucket appears later.
CLASSIC_EXPONENTS = range(-12, 7)


@dataclass(frozen=True)
class Exemplar:
    """One measured value, and what tells where it came from (``trace_id``, ``span_id``)."""

    value: float
    attributes: Attributes
    time: float


@dataclass(frozen=True)
class NumberPoint:
    """The value of one series of a counter or a gauge.

    ``started``: when a counter was 0; None for gauges, and where it is not known.
    """

    attributes: Attributes
    value: float
    started: float | None = None
    exemplar: Exemplar | None = None


@dataclass(frozen=True)
class HistogramPoint:
    """The buckets of one series: ``counts[k]`` is the count of bucket ``first + k``.

    ``started``: when all counts were 0; None where it is not known.
    """

    attributes: Attributes
    scale: int
    first: int
    counts: Sequence[int]
    sum: float
    started: float | None = None
    exemplars: Sequence[Exemplar] = ()

    @property
    def count(self) -> int:
        """How many values were measured."""
        return sum(self.counts)

    def classic(self) -> Iterator[tuple[float, int]]:
        """Yield the upper bounds that are powers of two, each with the exact count up to it.

        The bounds are those of `CLASSIC_EXPONENTS`, then infinity.
        """
        up_to = [0, *accumulate(self.counts)]
        for exponent in CLASSIC_EXPONENTS:
            buckets = (exponent << self.scale) - self.first + 1
            yield 2.0**exponent, up_to[max(0, min(buckets, len(self.counts)))]
        yield float("inf"), up_to[-1]

    def spans(self) -> list[tuple[int, Sequence[int]]]:
        """Return runs of buckets as (index of the first, counts), without long empty stretches.

        Up to two empty buckets stay inside a run, as beginning another one takes more room.
        """
        runs: list[tuple[int, Sequence[int]]] = []
        counts = self.counts
        begin = end = -1  # of the run in progress: its first bucket, and behind its last one
        for place, count in enumerate(counts):
            if not count:
                continue
            if begin >= 0 and place - end > 2:
                runs.append((self.first + begin, counts[begin:end]))
                begin = -1
            if begin < 0:
                begin = place
            end = place + 1
        if begin >= 0:
            runs.append((self.first + begin, counts[begin:end]))
        return runs


@dataclass(frozen=True)
class CounterFamily:
    """Sums that only grow."""

    name: str
    unit: str
    help: str
    points: Sequence[NumberPoint]


@dataclass(frozen=True)
class GaugeFamily:
    """Values that go up and down. ``is_sum``: those of several servers can be added up."""

    name: str
    unit: str
    help: str
    points: Sequence[NumberPoint]
    is_sum: bool = False


@dataclass(frozen=True)
class HistogramFamily:
    """Exponential histograms of measured values, whose counts only grow."""

    name: str
    unit: str
    help: str
    points: Sequence[HistogramPoint]


Family = CounterFamily | GaugeFamily | HistogramFamily


@dataclass(frozen=True)
class Exposition:
    """All that is exported of one server: the attributes of the server itself, and its families."""

    resource: Attributes
    families: Sequence[Family]

    @property
    def target(self) -> GaugeFamily:
        """The resource in the form of a family, for formats that know no resource."""
        help = "Attributes of the server that all other families are of."
        return GaugeFamily("target_info", "", help, [NumberPoint(self.resource, 1)])

    def all_families(self) -> list[Family]:
        """Return the families that have points, that of the resource first."""
        return [self.target, *(family for family in self.families if family.points)]
