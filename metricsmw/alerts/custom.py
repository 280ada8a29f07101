"""What rules find in the app's own numbers, which have no steps: what they were at each check.

A rate, percentile or mean is that of what was counted since an earlier check, the youngest that is
at least as old as the rule's span. The checks before are kept in memory only: where another worker
takes the lead, or after a reset, nothing is known until the span is covered anew. Nor is it where a
sum has become smaller, as it does when a damaged segment is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from metricsmw.alerts.rules import CustomRule
from metricsmw.alerts.source import ReadingInput
from metricsmw.alerts.states import Look
from metricsmw.alerts.values import Found, StepLooks
from metricsmw.engine.reading.instruments import KINDS, InstrumentSeries
from metricsmw.engine.storage.histogram import Distribution
from metricsmw.engine.storage.layout import Kind

# How many checks a rule's span has at most.
MOST_CHECKS = 60


class Total(NamedTuple):
    """What was counted since the reset: a counter's value, or a histogram's sum and buckets."""

    value: float = 0.0
    buckets: Mapping[int, int] = {}
    scale: int = 0

    def since(self, earlier: Total) -> Total | None:
        """Return what was counted since an earlier one; None where it was no earlier one."""
        buckets = dict(self.buckets)
        for bucket, count in earlier.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) - count
        if self.value < earlier.value or any(count < 0 for count in buckets.values()):
            return None
        return Total(self.value - earlier.value, buckets, self.scale)


@dataclass
class PastTotals:
    """What a rule's number was at the checks before, oldest first.

    ``started``: the moment from which it was counted. ``was_there``: it was found at any check.
    """

    started: float
    was_there: bool = False
    checks: list[tuple[float, Total]] = field(default_factory=list)

    def note(self, now: float, total: Total, span: float) -> None:
        """Keep a check, and of those before only what the next ones need."""
        checks = self.checks
        if not checks or now - checks[-1][0] >= span / MOST_CHECKS:
            checks.append((now, total))
        while len(checks) > 1 and now - checks[1][0] >= span:
            del checks[0]


class CustomLooks:
    """The looks of one alerter at the app's own numbers.

    Args:
        interval: Seconds between two checks.
        window: Seconds of the monitor's window.
    """

    def __init__(self, interval: float, window: float) -> None:
        self._interval = interval
        self._window = window
        self._past: dict[CustomRule, PastTotals] = {}

    def look(self, rule: CustomRule, source: ReadingInput) -> StepLooks:
        """Return what a rule finds at a check.

        Raises:
            ValueError: The number is of another type than the rule takes it for.
        """
        least = 0.0
        if rule.taken == "value":
            value = found_custom(rule, source).value
        else:
            if rule.over_seconds is not None:
                span = rule.over_seconds
            elif rule.for_seconds:
                span = min(max(rule.for_seconds / 2, self._interval), self._window)
                least = span + self._interval  # a burst between two checks shows for so long
            else:
                span = self._window
            value = self._over(rule, source, span)
        is_known = value is not None and not math.isnan(value)
        return StepLooks([Look(source.now, source.wall, value, is_known)], 0, least)

    def _over(self, rule: CustomRule, source: ReadingInput, span: float) -> float | None:
        """Return the rule's value over the span; None: there is none, NaN: it is not known."""
        past = self._past.get(rule)
        if past is None or past.started != source.started:
            past = self._past[rule] = PastTotals(source.started)
        found = chosen(rule, source.custom)
        if not found:
            if past.was_there:
                past.checks.clear()
            else:  # nothing was counted so far
                past.note(source.now, Total(), span)
            return None
        past.was_there = True
        total = _total(found)
        if past.checks and total.since(past.checks[-1][1]) is None:
            past.checks.clear()
        base = next((c for c in reversed(past.checks) if source.now - c[0] >= span - 1e-6), None)
        past.note(source.now, total, span)
        if base is None:
            return math.nan
        counted = total.since(base[1])
        assert counted is not None
        return _value(rule, counted, source.now - base[0])


def found_custom(rule: CustomRule, source: ReadingInput) -> Found:
    """Return the value of a rule on a gauge.

    Raises:
        ValueError: The number is no gauge.
    """
    series = chosen(rule, source.custom)
    return Found(math.fsum(one.value for one in series) if series else None, 0)


def chosen(rule: CustomRule, series: Sequence[InstrumentSeries]) -> list[InstrumentSeries]:
    """Return the series that a rule is about.

    Raises:
        ValueError: They are of a type of which what the rule takes cannot be had.
    """
    named = [one for one in series if rule.metric in (one.name, with_unit(one.name, one.unit))]
    kind = {"rate": Kind.COUNTERS, "value": Kind.GAUGES}.get(rule.taken, Kind.HISTOGRAMS)
    fitting = [one for one in named if one.kind is kind]
    if named and not fitting:
        raise ValueError(
            f"{rule.metric} is a {KINDS[named[0].kind]}, of which there is no {rule.taken}"
        )
    return [one for one in fitting if one.labels.items() >= set(rule.labels)]


def with_unit(name: str, unit: str) -> str:
    """Return a number's name as exports have it: with its unit at the end."""
    return name if not unit or f"_{name}".endswith(f"_{unit}") else f"{name}_{unit}"


def _total(series: Sequence[InstrumentSeries]) -> Total:
    buckets: Counter[int] = Counter()
    for one in series:
        if one.scale != series[0].scale:
            raise ValueError(f"{one.name} is counted in different units")
        for place, count in enumerate(one.counts):
            if count:
                buckets[one.first + place] += count
    return Total(math.fsum(one.value for one in series), buckets, series[0].scale)


def _value(rule: CustomRule, counted: Total, seconds: float) -> float | None:
    """Return a rate a minute, or a percentile or mean of values; None of no values."""
    if rule.taken == "rate":
        return 60 * counted.value / seconds
    count = sum(counted.buckets.values())
    if not count:
        return None
    if rule.taken == "mean":
        return counted.value / count
    first, last = min(counted.buckets), max(counted.buckets)
    counts = [counted.buckets.get(bucket, 0) for bucket in range(first, last + 1)]
    return Distribution(counts, first, counted.scale).percentile(int(rule.taken[1:]))
