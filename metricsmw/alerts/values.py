"""What a rule finds in the numbers: its value, of which span, and of enough requests or not.

A rule with ``over`` takes the value over that span, at the end of each of the window's steps (a
sixtieth of it; a tenth for routes and the time to first byte), so that nothing between two checks
is missed. A rule with ``for`` and without ``over`` takes half of its time as the span, at least one
step and at most the window, so that what happened before that time does not hold it up, and one
burst does not last for it: a burst within one step shows in the spans of less time than the rule
needs. All other rules take the value of the check's moment, as a snapshot shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from metricsmw.alerts.rules import (
    NEEDS_REQUESTS,
    NEW_ERRORS,
    SPAN_FIELDS,
    AnyRule,
    BurnRate,
    Rule,
    ServerRule,
)
from metricsmw.alerts.states import Look
from metricsmw.engine.reading.counts import Counts
from metricsmw.engine.reading.errors import NEW_SECONDS, ErrorKind
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.spans import StepTable
from metricsmw.snapshot import FIRST_BYTE_FIELDS

PERCENTILES = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")


class PastCounts(NamedTuple):
    """What was counted in the last minutes.

    Attributes:
        requests: All requests.
        errors: How many of them failed.
        is_covered: Whether there are numbers of all these minutes.
        server_errors: How many of the errors were the server's own.
    """

    requests: int
    errors: int
    is_covered: bool = True
    server_errors: int = 0


class RuleInput(Protocol):
    """The numbers that rules read: one moment of the server, and the time before it."""

    @property
    def now(self) -> float:
        """Monotonic time of the moment."""

    @property
    def wall(self) -> float:
        """Unix time of the moment."""

    @property
    def snapshot(self) -> Mapping[str, str | float | int]:
        """The snapshot's fields."""

    @property
    def routes(self) -> Sequence[RouteRow]:
        """The per-route table."""

    @property
    def window_requests(self) -> int:
        """How many requests the snapshot's rates and latencies are of."""

    def counts(self, minutes: int) -> PastCounts:
        """Return what was counted in about the last so many minutes."""

    def new_errors(self, seconds: float) -> Sequence[ErrorKind]:
        """Return the kinds of error that were seen first in the last so many seconds."""

    def step_table(self, method: str | None, route: str | None) -> StepTable:
        """Return the steps of a row of the per-route table; of the server where it is None."""

    def first_byte_table(self, method: str | None, route: str | None) -> StepTable:
        """Return the times to first byte in steps, likewise."""


class Found(NamedTuple):
    """A value, of how many requests it is, and whether there are numbers of its whole time."""

    value: float | None
    requests: int
    is_covered: bool = True


class StepLooks(NamedTuple):
    """What a rule found since it was looked at last.

    Attributes:
        looks: The looks, oldest first.
        step: The number of the last step that was looked at; 0 where it does not go by steps.
        least_seconds: How long the rule must be beyond at least.
    """

    looks: list[Look]
    step: int
    least_seconds: float


class RuleSpan(NamedTuple):
    """The span that a rule's values are of, in steps.

    Attributes:
        steps: The span.
        counted: The steps in which there must be enough requests.
        least_seconds: How long the rule must be beyond at least.
    """

    steps: int
    counted: int
    least_seconds: float


def goes_by_steps(rule: AnyRule) -> bool:
    """Return whether a rule is looked at in each step, and not at each check."""
    if not isinstance(rule, Rule) or rule.field not in SPAN_FIELDS:
        return False
    # A number of requests is one of the window: of another span it would be another number.
    is_rate = rule.field != "requests"
    return rule.over_seconds is not None or (is_rate and rule.for_seconds > 0)


def span_of(rule: AnyRule, step: float, steps: int) -> RuleSpan:
    """Return the span of a rule that goes by steps.

    Args:
        rule: The rule.
        step: The length of a step in seconds.
        steps: How many of them the window has.
    """
    if rule.over_seconds is not None:
        span = min(_steps(rule.over_seconds, step), steps)
        return RuleSpan(span, span, 0.0)
    span = min(max(math.floor(rule.for_seconds / 2 / step + 1e-9), 1), steps)
    counted = max(span, min(_steps(rule.for_seconds, step), steps))
    # A burst within one step shows in `span` + 1 looks, which are `span` steps apart.
    return RuleSpan(span, counted, (span + 1) * step)


def _steps(seconds: float, step: float) -> int:
    return max(math.ceil(seconds / step - 1e-9), 1)


def look(rule: ServerRule, source: RuleInput) -> Look:
    """Return what a rule finds at the moment of the source.

    Raises:
        ValueError: The value is not a number.
    """
    found = found_now(rule, source)
    is_enough = found.is_covered and found.requests >= rule.least_requests
    return Look(source.now, source.wall, found.value, is_enough)


def found_now(rule: ServerRule, source: RuleInput) -> Found:
    """Return a rule's value at the moment of the source, of a rule that does not go by steps.

    Raises:
        ValueError: The value is not a number.
    """
    if isinstance(rule, BurnRate):
        return _found_of_burn_rate(rule, source)
    if rule.route is not None:
        return _found_of_rows(rule, source.routes)
    if rule.field == NEW_ERRORS:
        return Found(len(source.new_errors(rule.over_seconds or NEW_SECONDS)), 0)
    value = number(rule.field, source.snapshot[rule.field])
    requests = source.window_requests
    return Found(None if rule.field in NEEDS_REQUESTS and not requests else value, requests)


def found_over(rule: Rule, source: RuleInput, window: float) -> Found:
    """Return a rule's value over its span, which ends with the last step that has ended."""
    tables = list(_tables(rule, source))
    length = tables[0].length
    span = span_of(rule, length, round(window / length))
    rows = [_found_of_steps(rule, table, table.last, span) for table in tables]
    return rows[0] if rule.route is None else _worst(rule, rows)


def _found_of_rows(rule: Rule, rows: Sequence[RouteRow]) -> Found:
    of_route = [
        row for row in rows if row["route"] == rule.route and rule.method in (None, row["method"])
    ]
    found = []
    for row in of_route:
        value = dict(row)[rule.field]
        # The time to first byte is not always known.
        known = None if value is None else number(rule.field, value)
        found.append(Found(known, row["requests"]))
    return _worst(rule, found)


def _worst(rule: Rule, rows: Iterable[Found]) -> Found:
    """Return the worst of a route's rows; of those with enough requests where there are some."""
    found = list(rows)
    if rule.field == "requests":
        requests = sum(row.requests for row in found)
        return Found(None if any(row.value is None for row in found) else requests, requests)
    known = [row for row in found if row.value is not None]
    enough = [row for row in known if row.requests >= rule.least_requests]
    best = -1.0 if rule.comparison.startswith("<") else 1.0
    return max(enough or known, key=lambda row: best * (row.value or 0.0), default=Found(None, 0))


def _found_of_burn_rate(rule: BurnRate, source: RuleInput) -> Found:
    budget = 1 - rule.objective / 100
    rates = []
    long, short = (source.counts(minutes) for minutes in (rule.long_minutes, rule.short_minutes))
    for counts in (long, short):
        if counts.requests <= 0:
            return Found(None, 0, long.is_covered)
        errors = counts.server_errors if rule.is_of_server else counts.errors
        rates.append(errors / counts.requests / budget)
    return Found(round(min(rates), 2), long.requests, long.is_covered)


def looks_by_step(
    rule: Rule, source: RuleInput, after: int, back: float, window: float
) -> StepLooks:
    """Return what a rule finds in each step that has ended, oldest first.

    Args:
        rule: A rule that goes by steps.
        source: The numbers.
        after: The number of the last step that was looked at; 0: of none.
        back: How far to look back, in seconds, where it was of none.
        window: The length of the window in seconds.
    """
    tables = list(_tables(rule, source))
    length, last = tables[0].length, tables[0].last
    span = span_of(rule, length, round(window / length))
    if not 0 < after <= last:
        after = last - _steps(back, length)
    # Of earlier spans a part has left the window.
    whole_from = last - round(window / length) + span.steps
    looks = []
    for step in range(max(after + 1, min(whole_from, last), tables[0].first), last + 1):
        rows = [_found_of_steps(rule, table, step, span) for table in tables]
        found = rows[0] if rule.route is None else _worst(rule, rows)
        at = tables[0].end(step)
        wall = source.wall - (source.now - at)
        looks.append(Look(at, wall, found.value, found.requests >= rule.least_requests))
    return StepLooks(looks, last, span.least_seconds)


def _tables(rule: Rule, source: RuleInput) -> Iterator[StepTable]:
    is_first = rule.field in FIRST_BYTE_FIELDS
    table = source.first_byte_table if is_first else source.step_table
    if rule.route is None or rule.method is not None:
        yield table(rule.method, rule.route)
        return
    methods = [row["method"] for row in source.routes if row["route"] == rule.route]
    for method in methods or ["GET"]:  # a route without a row has idle steps under any method
        yield table(method, rule.route)


def _found_of_steps(rule: Rule, table: StepTable, step: int, span: RuleSpan) -> Found:
    counts = table.span(step, span.steps)
    requests = counts.requests
    if span.counted != span.steps:
        requests = table.span(step, span.counted).requests
    if rule.field in NEEDS_REQUESTS:
        return Found(_of_counts(rule.field, counts), requests)
    if rule.comparison.startswith("<") and not table.covers(step, span.steps):
        return Found(math.nan if rule.route is None else None, requests)  # there may be more
    if rule.field == "requests":
        return Found(counts.requests, requests)
    return Found(counts.rate_rpm(span.steps * table.length), requests)


def _of_counts(field: str, counts: Counts) -> float | None:
    """Return a rate or latency of counts; None where nothing was counted."""
    if field == "error_rate_pct":
        return counts.error_rate_pct if counts.requests else None
    if field == "server_error_rate_pct":
        return counts.server_error_rate_pct if counts.requests else None
    if not counts.latency.count:
        return None
    if field == "latency_max_ms":
        return counts.max_ms
    percentiles = FIRST_BYTE_FIELDS if field in FIRST_BYTE_FIELDS else PERCENTILES
    return counts.percentiles_ms[percentiles.index(field)]


def number(field: str, value: object) -> float:
    """Return a value that is a number.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{field} is not a number: {value!r}")
    return value
