"""What counters have gained since an earlier export, for back ends that prefer deltas.

An earlier export is kept as JSON, so that another worker can go on where this one stood: for each
series of counters and histograms, by its name and attributes, what it had counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isfinite

from metricsmw.exporters.model import (
    Attributes,
    CounterFamily,
    Exposition,
    Family,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)

# More than an export has: a file with other numbers is damaged.
MAX_VALUE = 1e300
MAX_BUCKETS = 10_000


def _key(name: str, attributes: Attributes) -> str:
    return json.dumps([name, sorted(attributes.items())])


@dataclass(frozen=True)
class Sent:
    """The counters of an export, and its Unix time."""

    at: float
    numbers: dict[str, float]
    histograms: dict[str, tuple[int, Sequence[int], float]]  # first bucket, counts, sum

    @classmethod
    def of(cls, exposition: Exposition, at: float) -> Sent:
        """Return what is to be kept of an exposition that is exported at Unix time ``at``."""
        sent = cls(at, {}, {})
        for family in exposition.families:
            if isinstance(family, CounterFamily):
                for number in family.points:
                    sent.numbers[_key(family.name, number.attributes)] = number.value
            elif isinstance(family, HistogramFamily):
                for point in family.points:
                    kept = point.first, point.counts, point.sum
                    sent.histograms[_key(family.name, point.attributes)] = kept
        return sent

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps([self.at, self.numbers, self.histograms])

    @classmethod
    def from_json(cls, text: str) -> Sent | None:
        """Return what `to_json` was called of; None for any other text."""
        try:
            at, numbers, histograms = json.loads(text)
            return cls(
                _checked(float(at)),
                {str(key): _checked(value + 0) for key, value in numbers.items()},
                {
                    str(key): _checked_histogram(int(first), counts, float(total))
                    for key, (first, counts, total) in histograms.items()
                },
            )
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None


def _checked(value: float) -> float:
    """Return a number that a counter can have. Raises ValueError for another."""
    if not 0 <= value <= MAX_VALUE:
        raise ValueError("no value of a counter")
    return value


def _checked_histogram(
    first: int, counts: Sequence[int], total: float
) -> tuple[int, list[int], float]:
    """Return first bucket, counts and sum. Raises ValueError where no histogram has such."""
    if abs(first) > MAX_BUCKETS or len(counts) > MAX_BUCKETS or not isfinite(total):
        raise ValueError("no histogram")
    return first, [int(_checked(count)) for count in counts], total


def since(now: Exposition, sent: Sent) -> Exposition:
    """Return the exposition with what its counters have gained since an earlier export.

    A series that is new, or that began anew since, comes as a whole. Gauges stay as they are.
    """
    families: list[Family] = []
    for family in now.families:
        if isinstance(family, CounterFamily):
            numbers = [_number(family.name, point, sent) for point in family.points]
            families.append(replace(family, points=numbers))
        elif isinstance(family, HistogramFamily):
            points = [
                _new_exemplars(_histogram(family.name, point, sent), sent.at)
                for point in family.points
            ]
            families.append(replace(family, points=points))
        else:
            families.append(family)
    return replace(now, families=families)


def _number(name: str, point: NumberPoint, sent: Sent) -> NumberPoint:
    before = sent.numbers.get(_key(name, point.attributes))
    began_anew = point.started is not None and point.started > sent.at
    if before is None or began_anew or before > point.value:
        return point
    return replace(point, value=point.value - before, started=sent.at)


def _new_exemplars(point: HistogramPoint, after: float) -> HistogramPoint:
    """Return the point with the exemplars of after a Unix time."""
    if not point.exemplars:
        return point
    return replace(point, exemplars=[one for one in point.exemplars if one.time > after])


def _histogram(name: str, point: HistogramPoint, sent: Sent) -> HistogramPoint:
    before = sent.histograms.get(_key(name, point.attributes))
    if before is None or (point.started is not None and point.started > sent.at):
        return point
    first, counts, total = before
    if not any(counts):
        return replace(point, sum=max(point.sum - total, 0.0), started=sent.at)
    lead = first - point.first
    if lead < 0:  # a bucket that was counted is one no more
        return point
    padded = [0] * lead + list(counts)
    gains = [new - old for new, old in zip_longest(point.counts, padded, fillvalue=0)]
    if min(gains, default=0) < 0:
        return point
    return replace(point, counts=gains, sum=max(point.sum - total, 0.0), started=sent.at)
