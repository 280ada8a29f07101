"""Alert rules: their values and their states. Pure: no clock, thread or file.

    inactive --beyond--> pending --beyond for so long--> firing --past `clear`--> resolved
    pending --no longer beyond--> inactive               resolved --beyond--> pending

Without ``for_seconds`` a rule fires at once.
A value that is missing (no request, so no error rate and no latency) is not beyond anything; one
that is not a number (NaN: a source is broken) says nothing, and changes nothing.

A rule may be written as text, and `str` of a rule is such a text::

    error_rate_pct > 5 for 2m clear 3 critical
    SLOW: latency_p95_ms >= 800 on GET /items/{id} for 60s
    burn_rate(99.9, 60m, 5m) > 14.4 critical
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Literal, Protocol, cast, get_args

from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.storage.keys import METHODS, OTHER_METHOD
from metricsmw.snapshot import NUMERIC_FIELDS

Comparison = Literal[">", ">=", "<", "<="]
Severity = Literal["info", "warning", "critical"]
State = Literal["inactive", "pending", "firing", "resolved"]

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
STATES: tuple[State, ...] = get_args(State)
ROUTE_FIELDS = (
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
)
# Of no request there is none of these.
NEEDS_REQUESTS = frozenset(ROUTE_FIELDS[1:])
MAX_FOR_SECONDS = 7 * 86_400.0

TYPES = {"error_rate_pct": "ERROR_RATE", "cpu_usage_pct": "HIGH_CPU"} | {
    field: "HIGH_LATENCY" if field.startswith("latency") else "HIGH_MEMORY"
    for field in NUMERIC_FIELDS
    if field.startswith(("latency", "memory"))
}

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
DURATION = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[smh]?"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
GRAMMAR = re.compile(
    rf"""\s* (?: (?P<name>[A-Za-z][\w-]*) \s* : \s* )?
    (?: (?P<field>[A-Za-z_]\w*)
      | burn_rate \s* \( \s* (?P<objective>{NUMBER}) \s* , \s* (?P<long>{DURATION}) \s* , \s*
        (?P<short>{DURATION}) \s* \) )
    \s* (?P<comparison>>=|<=|>|<) \s* (?P<threshold>{NUMBER})
    (?: \s+ on \s+ (?: (?P<method>[A-Z_]+) \s+ )? (?P<route>\S+) )?
    (?: \s+ for \s+ (?P<for>{DURATION}) )?
    (?: \s+ clear \s+ (?P<clear>{NUMBER}) )?
    (?: \s+ (?P<severity>{"|".join(SEVERITIES)}) )? \s*""",
    re.VERBOSE,
)


class RuleInput(Protocol):
    """The numbers that rules read: one moment of the server, and the minutes before it."""

    @property
    def snapshot(self) -> Mapping[str, str | float | int]:
        """The snapshot's fields."""

    @property
    def routes(self) -> Sequence[RouteRow]:
        """The per-route table."""

    def counts(self, minutes: int) -> tuple[int, int]:
        """Return requests and errors of about the last so many minutes."""


@dataclass(frozen=True)
class RuleStatus:
    """The state of a rule.

    Attributes:
        state: The state.
        since: The monotonic time at which the state began.
        beyond_at: In pending and firing, the Unix time at which the value was first seen beyond.
        value: The last value that was a number; None where there was none.
    """

    state: State = "inactive"
    since: float = 0.0
    beyond_at: float = 0.0
    value: float | None = None


@dataclass(frozen=True)
class Rule:
    """Compare one number of the server, or of one route, with a threshold.

    Attributes:
        field: A numeric field of a snapshot; with ``route``, one of the per-route table.
        threshold: A value is beyond where ``value comparison threshold`` holds.
        comparison: ">", ">=", "<" or "<=".
        for_seconds: The rule fires only after values were beyond for so long, 0 to 604800.
        clear: Once firing it recovers only where ``value comparison clear`` does not hold; on the
            good side of the threshold, and the threshold itself where it is None.
        severity: "info", "warning" or "critical".
        route: A route of the per-route table; without a method, the worst of the route's rows, and
            of ``requests`` their sum.
        method: The route's method.
        name: The alert's type; by default ERROR_RATE, HIGH_LATENCY, HIGH_MEMORY, HIGH_CPU, or the
            field's name in capitals.

    Raises:
        ValueError: The settings make no rule; the message says what may be.
        TypeError: A setting is of another type.
    """

    field: str
    threshold: float
    comparison: Comparison = ">"
    for_seconds: float = 0.0
    clear: float | None = None
    severity: Severity = "warning"
    route: str | None = None
    method: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Check the settings, and name the rule where it has no name."""
        fields = NUMERIC_FIELDS if self.route is None else ROUTE_FIELDS
        if self.field not in fields:
            of = "snapshot" if self.route is None else "route"
            raise ValueError(
                f"no {of} field {self.field!r}: a rule may name one of {', '.join(fields)}"
            )
        if self.method is not None and self.route is None:
            raise ValueError(f"method {self.method!r} needs a route")
        methods = (*sorted(METHODS), OTHER_METHOD)
        if self.method is not None and self.method not in methods:
            raise ValueError(f"method must be one of {', '.join(methods)}, got {self.method!r}")
        _check_common(self)
        if not self.name:
            object.__setattr__(self, "name", TYPES.get(self.field, self.field.upper()))

    def value(self, source: RuleInput) -> float | None:
        """Return the number of this moment; None where there is none.

        Raises:
            ValueError: It is not a number.
        """
        if self.route is None:
            snapshot = source.snapshot
            if self.field in NEEDS_REQUESTS and snapshot["request_rate_rpm"] == 0:
                return None
            return _number(self.field, snapshot[self.field])
        rows = [
            row
            for row in source.routes
            if row["route"] == self.route and self.method in (None, row["method"])
        ]
        if not rows:
            return 0.0 if self.field == "requests" else None
        values = [_number(self.field, dict(row)[self.field]) for row in rows]
        if self.field == "requests":
            return sum(values)
        return min(values) if self.comparison.startswith("<") else max(values)

    def __str__(self) -> str:
        """Return the rule as `parse` reads it."""
        where = (
            "" if self.route is None else " on " + " ".join(filter(None, (self.method, self.route)))
        )
        return _text(self, self.field, where)


@dataclass(frozen=True)
class BurnRate:
    """How fast the error budget of a service-level objective is spent, over two windows.

    With an ``objective`` of 99.9 (percent of requests that are good) the budget is 0.1 % errors; a
    burn rate of 1 spends it exactly. The value is the smaller of the burn rates of the last
    ``long_minutes`` and the last ``short_minutes``: the long window says that it matters, the
    short one that it still goes on, so that the alert ends soon after the errors do.

    Attributes:
        objective: Percent, above 0 and below 100.
        threshold: The burn rate, 14.4 by default: 2 % of a month's budget in one hour.
        long_minutes: Whole minutes of the server's history.
        short_minutes: Fewer of them.
        severity: "info", "warning" or "critical".
        for_seconds: As that of a `Rule`.
        clear: As that of a `Rule`.
        name: The alert's type.
        comparison: ">" or ">=".

    Source: "The Site Reliability Workbook" (Beyer et al., Google, 2018), chapter 5, "Alerting on
    SLOs", section 6, "Multiwindow, Multi-Burn-Rate Alerts".
    """

    objective: float
    threshold: float = 14.4
    long_minutes: int = 60
    short_minutes: int = 5
    severity: Severity = "critical"
    for_seconds: float = 0.0
    clear: float | None = None
    name: str = "BURN_RATE"
    comparison: Comparison = ">"
    route: None = None
    method: None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_number("objective", self.objective)
        if not 0 < self.objective < 100:
            raise ValueError(
                f"objective must be a percentage above 0 and below 100, got {self.objective!r}"
            )
        for name in ("long_minutes", "short_minutes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number >= 1, got {value!r}")
        if not 1 <= self.short_minutes < self.long_minutes:
            raise ValueError(
                f"short_minutes must be from 1 to less than long_minutes ({self.long_minutes!r}), "
                f"got {self.short_minutes!r}"
            )
        if self.comparison not in (">", ">="):
            raise ValueError(f'a burn rate compares by ">" or ">=", got {self.comparison!r}')
        _check_common(self)

    @property
    def field(self) -> str:
        """What an alert names as the field."""
        return "burn_rate"

    def value(self, source: RuleInput) -> float | None:
        """Return the smaller of both burn rates; None where a window has no request."""
        budget = 1 - self.objective / 100
        rates = []
        for minutes in (self.short_minutes, self.long_minutes):
            requests, errors = source.counts(minutes)
            if requests <= 0:
                return None
            rates.append(errors / requests / budget)
        return min(rates)

    def __str__(self) -> str:
        """Return the rule as `parse` reads it."""
        windows = f"{self.long_minutes}m, {self.short_minutes}m"
        return _text(self, f"burn_rate({_format(self.objective)}, {windows})", "")


AnyRule = Rule | BurnRate


def identity(rule: AnyRule) -> str:
    """Return a rule's text without threshold, duration and `clear`, which a user tunes."""
    return str(replace(rule, threshold=0.0, for_seconds=0.0, clear=None))


def is_beyond(rule: AnyRule, value: float | None, threshold: float) -> bool:
    """Return whether the value lies beyond; a missing one never does."""
    return value is not None and COMPARISONS[rule.comparison](value, threshold)


def advance(
    rule: AnyRule, status: RuleStatus, value: float | None, now: float, wall: float
) -> RuleStatus:
    """Return the status after a check.

    Args:
        rule: The rule.
        status: Its status before.
        value: The value; None: there is none, NaN: it is not known.
        now: Monotonic time of the check.
        wall: Unix time of the check.
    """
    if value is not None and isnan(value):
        return status
    status = replace(status, value=value)
    if status.state == "firing":
        clear = rule.threshold if rule.clear is None else rule.clear
        if is_beyond(rule, value, clear):
            return status
        return replace(status, state="resolved", since=now)
    if not is_beyond(rule, value, rule.threshold):
        if status.state != "pending":
            return status
        return replace(status, state="inactive", since=now)
    if status.state != "pending":
        status = replace(status, state="pending", since=now, beyond_at=wall)
    if now - status.since >= rule.for_seconds:
        return replace(status, state="firing", since=now)
    return status


def parse(text: str) -> AnyRule:
    """Return the rule that a text says; see the module's head.

    Raises:
        ValueError: The text is no rule, or its numbers make none.
    """
    match = GRAMMAR.fullmatch(text)
    if match is None:
        raise ValueError(
            f"not a rule: {text!r}; write FIELD > NUMBER, then, as needed and in this order: "
            "on [METHOD] ROUTE, for DURATION, clear NUMBER, info|warning|critical"
        )
    part = match.groupdict()
    threshold = float(part["threshold"])
    comparison = cast("Comparison", part["comparison"])
    for_seconds = _seconds(part["for"] or "0")
    clear = None if part["clear"] is None else float(part["clear"])
    if part["field"] is not None:
        severity = cast("Severity", part["severity"] or "warning")
        return Rule(
            part["field"], threshold, comparison, for_seconds, clear, severity,
            part["route"], part["method"], part["name"] or "",
        )  # fmt: skip
    if part["route"]:
        raise ValueError(f"a burn rate is of the whole server, not of a route: {text!r}")
    return BurnRate(
        float(part["objective"]),
        threshold,
        _minutes(part["long"]),
        _minutes(part["short"]),
        cast("Severity", part["severity"] or "critical"),
        for_seconds,
        clear,
        part["name"] or "BURN_RATE",
        comparison,
    )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a finite number, got {value!r}")
    if not isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_common(rule: AnyRule) -> None:
    _check_number(f"the threshold of {rule.field}", rule.threshold)
    _check_number("for_seconds", rule.for_seconds)
    if not 0 <= rule.for_seconds <= MAX_FOR_SECONDS:
        raise ValueError(
            f"for_seconds must be from 0 to {MAX_FOR_SECONDS:.0f}, got {rule.for_seconds!r}"
        )
    if rule.comparison not in COMPARISONS:
        raise ValueError(
            f"comparison must be one of {', '.join(COMPARISONS)}, got {rule.comparison!r}"
        )
    if rule.severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, got {rule.severity!r}")
    if rule.clear is not None:
        _check_number("clear", rule.clear)
        upward = rule.comparison.startswith(">")
        if rule.clear > rule.threshold if upward else rule.clear < rule.threshold:
            raise ValueError(
                f"clear must be {'at most' if upward else 'at least'} the threshold "
                f"({rule.threshold!r}), got {rule.clear!r}"
            )


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or isnan(value):
        raise ValueError(f"{field} is not a number: {value!r}")
    return value


def _format(number: float) -> str:
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)


def _text(rule: AnyRule, what: str, where: str) -> str:
    wait = f" for {_format(rule.for_seconds)}s" if rule.for_seconds else ""
    clear = "" if rule.clear is None else f" clear {_format(rule.clear)}"
    threshold = _format(rule.threshold)
    return f"{rule.name}: {what} {rule.comparison} {threshold}{where}{wait}{clear} {rule.severity}"


def _seconds(duration: str) -> float:
    unit = UNITS.get(duration[-1])
    return float(duration) if unit is None else float(duration[:-1]) * unit


def _minutes(duration: str) -> int:
    seconds = _seconds(duration if duration[-1] in UNITS else f"{duration}m")
    if seconds % 60:
        raise ValueError(f"a burn rate's window must be whole minutes, got {duration!r}")
    return int(seconds // 60)


def counts_since(
    earlier: Mapping[str, str | float | int], now: Mapping[str, str | float | int]
) -> tuple[int, int]:
    """Return requests and errors between two snapshots; the earlier one may be empty."""
    requests, errors = (
        max(int(now[name]) - int(earlier.get(name, 0)), 0)
        for name in ("total_requests", "total_errors")
    )
    return requests, min(errors, requests)
