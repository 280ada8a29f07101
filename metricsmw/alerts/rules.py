"""Alert rules: what they watch, and their text. Pure: no clock, thread or file.

A rule may be written as text (`metricsmw.alerts.grammar` reads it), and `str` of a rule is such a
text::

    error_rate_pct > 5 over 1m at least 50 requests for 2m clear 3 critical repeat every 4h
    SLOW: p95 >= 800 on GET /items/{id} for 60s
    burn_rate(99.9, 60m, 5m) > 14.4 critical
    orders_failed{shop="north"} rate > 5 for 2m

How a rule's value is found says `metricsmw.alerts.values`, its states `metricsmw.alerts.states`.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, get_args

from metricsmw.engine.recording.definitions import LABEL, NAME
from metricsmw.engine.storage.keys import METHODS, OTHER_METHOD
from metricsmw.snapshot import FIRST_BYTE_FIELDS, NUMERIC_FIELDS
from metricsmw.validation import whole

Comparison = Literal[">", ">=", "<", "<="]
Severity = Literal["info", "warning", "critical"]
# What a rule takes of a number of the app's own.
Taken = Literal["rate", "value", "p50", "p95", "p99", "mean"]

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
TAKEN: tuple[Taken, ...] = get_args(Taken)
ROUTE_FIELDS = (
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "server_error_rate_pct",
)
# Of no request there is none of these.
NEEDS_REQUESTS = frozenset((*ROUTE_FIELDS[1:], *FIRST_BYTE_FIELDS))
# Kinds of error that were seen first in the last five minutes, or in those of ``over``.
NEW_ERRORS = "new_errors"
# Fields that are counted, so that they can be had of any span of the window.
SPAN_FIELDS = NEEDS_REQUESTS | {"request_rate_rpm", "requests"}
# What may be written for a field.
SHORT_NAMES = {
    "request_rate": "request_rate_rpm",
    "error_rate": "error_rate_pct",
    "server_error_rate": "server_error_rate_pct",
    **{f"ttfb_{name[13:16]}": name for name in FIRST_BYTE_FIELDS},
    "p50": "latency_p50_ms",
    "p95": "latency_p95_ms",
    "p99": "latency_p99_ms",
    "latency_max": "latency_max_ms",
    "cpu": "cpu_share_pct",
    "memory": "memory_usage_pct",
    "users": "active_users",
}
MAX_SECONDS = 7 * 86_400.0
MAX_REQUESTS = 1_000_000_000
# The requests that a rule needs where it does not say: one failure among 20 is no more than 5 %.
LEAST_REQUESTS = 20
# The same of a burn rate: one failure among 100 spends a budget of 0.1 % ten times as fast, and
# 14.4 is the threshold.
LEAST_BURN_REQUESTS = 100

TYPES = {
    "error_rate_pct": "ERROR_RATE",
    "server_error_rate_pct": "SERVER_ERROR_RATE",
    "cpu_usage_pct": "HIGH_CPU",
    "cpu_share_pct": "HIGH_CPU",
} | {
    field: "HIGH_LATENCY" if field.startswith("latency") else "HIGH_MEMORY"
    for field in (*NUMERIC_FIELDS, *FIRST_BYTE_FIELDS)
    if field.startswith(("latency", "memory"))
}


@dataclass(frozen=True)
class Rule:
    """Compare one number of the server, or of one route, with a threshold.

    Attributes:
        field: A numeric field of a snapshot; with ``route``, one of the per-route table; or the
            time to first byte, of the server or the route; or "new_errors", of the server.
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
        over_seconds: The value is that of the last so many seconds, at most the window, in whole
            steps of it. None: of the window or, with ``for_seconds``, of half of these seconds.
            Only of fields that are counted: rates and latencies; and of new errors, where it may be
            longer than the window, 300 by default.
        at_least: The rule does not begin to fire where there were fewer requests; None: 20, for
            error rates and latencies.
        repeat_seconds: While it fires it is told again after so long, 1 to 604800; None: never.

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
    over_seconds: float | None = None
    at_least: int | None = None
    repeat_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the settings, and name the rule where it has no name."""
        fields = (
            *((*NUMERIC_FIELDS, NEW_ERRORS) if self.route is None else ROUTE_FIELDS),
            *FIRST_BYTE_FIELDS,
        )
        if self.field not in fields:
            of = "snapshot" if self.route is None else "route"
            own = (
                f'; a number of the app\'s own is "{self.field} rate" or another of '
                f"{', '.join(TAKEN)}"
                if self.route is None
                else ""
            )
            raise ValueError(
                f"no {of} field {self.field!r}: a rule may name one of {', '.join(fields)}{own}"
            )
        if self.method is not None and self.route is None:
            raise ValueError(f"method {self.method!r} needs a route")
        methods = (*sorted(METHODS), OTHER_METHOD)
        if self.method is not None and self.method not in methods:
            raise ValueError(f"method must be one of {', '.join(methods)}, got {self.method!r}")
        if self.over_seconds is not None:
            _check_seconds("over_seconds", self.over_seconds, 1)
            if self.field != NEW_ERRORS:
                self._check_counted("over")
        if self.at_least is not None:
            self._check_counted("at least")
        _check_common(self)
        if not self.name:
            object.__setattr__(self, "name", TYPES.get(self.field, self.field.upper()))

    def _check_counted(self, part: str) -> None:
        if self.field not in SPAN_FIELDS:
            fields = (*NUMERIC_FIELDS, "requests", *FIRST_BYTE_FIELDS)
            counted = [name for name in fields if name in SPAN_FIELDS]
            raise ValueError(
                f'"{part}" needs a field that is counted, one of {", ".join(counted)}; '
                f"got {self.field!r}"
            )

    @property
    def least_requests(self) -> int:
        """How many requests there must be for the rule to begin to fire."""
        if self.at_least is not None:
            return self.at_least
        return LEAST_REQUESTS if self.field in NEEDS_REQUESTS else 0

    def __str__(self) -> str:
        """Return the rule as `parse` reads it."""
        where = (
            "" if self.route is None else " on " + " ".join(filter(None, (self.method, self.route)))
        )
        if self.over_seconds is not None:
            where += f" over {number_text(self.over_seconds)}s"
        return _text(self, self.field, where, None)


@dataclass(frozen=True)
class BurnRate:
    """How fast the error budget of a service-level objective is spent, over two windows.

    With an ``objective`` of 99.9 (percent of requests that are good) the budget is 0.1 % errors; a
    burn rate of 1 spends it exactly. The value is the smaller of the burn rates of the last
    ``long_minutes`` and the last ``short_minutes``: the long window says that it matters, the
    short one that it still goes on, so that the alert ends soon after the errors do. It does not
    begin to fire before there are ``long_minutes`` of history, those of a lasting one included.

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
        at_least: It does not begin to fire where there were fewer requests in the long window.
        repeat_seconds: As that of a `Rule`.
        is_of_server: Only the server's own errors spend the budget; as text: ``server_burn_rate``.

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
    at_least: int = LEAST_BURN_REQUESTS
    repeat_seconds: float | None = None
    is_of_server: bool = False
    route: None = None
    method: None = None
    over_seconds: None = None

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
        return "server_burn_rate" if self.is_of_server else "burn_rate"

    @property
    def least_requests(self) -> int:
        """How many requests there must be for the rule to begin to fire."""
        return self.at_least

    def __str__(self) -> str:
        """Return the rule as `parse` reads it."""
        windows = f"{self.long_minutes}m, {self.short_minutes}m"
        return _text(
            self, f"{self.field}({number_text(self.objective)}, {windows})", "", LEAST_BURN_REQUESTS
        )


@dataclass(frozen=True)
class CustomRule:
    """Compare one of the app's own numbers with a threshold.

    Attributes:
        metric: The number's name, with its unit or without, as `GET /custom` or exports have it.
        taken: What is compared. Of a counter its "rate", by which it grew a minute; of a gauge its
            "value"; of a histogram "p50", "p95", "p99" or "mean" of the values in the span.
        threshold: As that of a `Rule`.
        labels: Pairs of label and value that the series must have. What is compared is the sum over
            all series that have them.
        comparison: As that of a `Rule`.
        for_seconds: As that of a `Rule`.
        clear: As that of a `Rule`.
        severity: "info", "warning" or "critical".
        name: The alert's type; by default the number's name in capitals.
        over_seconds: The span, at most the window; None: the window or, with ``for_seconds``, half
            of these seconds. A gauge has none.
        repeat_seconds: As that of a `Rule`.

    Raises:
        ValueError: The settings make no rule; the message says what may be.
        TypeError: A setting is of another type.
    """

    metric: str
    taken: Taken
    threshold: float
    labels: tuple[tuple[str, str], ...] = ()
    comparison: Comparison = ">"
    for_seconds: float = 0.0
    clear: float | None = None
    severity: Severity = "warning"
    name: str = ""
    over_seconds: float | None = None
    repeat_seconds: float | None = None
    route: None = None
    method: None = None
    at_least: None = None

    def __post_init__(self) -> None:
        """Check the settings, and name the rule where it has no name."""
        if not isinstance(self.metric, str) or not NAME.fullmatch(self.metric):
            raise ValueError(
                f"a number's name is letters, digits, underscores and colons, got {self.metric!r}"
            )
        if self.taken not in TAKEN:
            raise ValueError(f"taken must be one of {', '.join(TAKEN)}, got {self.taken!r}")
        for label, value in self.labels:
            if not LABEL.fullmatch(label) or not isinstance(value, str):
                raise ValueError(f"labels must be names with texts, got {self.labels!r}")
        if len(dict(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be different ones, got {self.labels!r}")
        if self.over_seconds is not None:
            _check_seconds("over_seconds", self.over_seconds, 1)
            if self.taken == "value":
                raise ValueError(
                    f'"over" needs one of {", ".join(one for one in TAKEN if one != "value")}: the '
                    f"value of a gauge is that of now; got {self.field!r}"
                )
        _check_common(self)
        if self.taken == "rate":
            object.__setattr__(self, "metric", self.metric.removesuffix("_total"))
        object.__setattr__(self, "labels", tuple(sorted(self.labels)))
        if not self.name:
            object.__setattr__(self, "name", self.metric.upper().replace(":", "_"))

    @property
    def field(self) -> str:
        """What an alert names as the field: the number and its labels, and what is taken of it."""
        pairs = (f"{label}={json.dumps(value, ensure_ascii=False)}" for label, value in self.labels)
        return f"{self.metric}{'{' + ','.join(pairs) + '}' if self.labels else ''} {self.taken}"

    @property
    def least_requests(self) -> int:
        """How many requests there must be for the rule to begin to fire: it is not about any."""
        return 0

    def __str__(self) -> str:
        """Return the rule as `parse` reads it."""
        over = "" if self.over_seconds is None else f" over {number_text(self.over_seconds)}s"
        return _text(self, self.field, over, None)


ServerRule = Rule | BurnRate
AnyRule = ServerRule | CustomRule


def identity(rule: AnyRule) -> str:
    """Return a rule's text without the numbers, which a user tunes: the rule stays the same one."""
    plain = replace(rule, threshold=0.0, for_seconds=0.0, clear=None, repeat_seconds=None)
    if isinstance(plain, Rule):
        return str(replace(plain, over_seconds=None, at_least=None))
    if isinstance(plain, CustomRule):
        return str(replace(plain, over_seconds=None))
    return str(replace(plain, at_least=LEAST_BURN_REQUESTS))


def is_beyond(rule: AnyRule, value: float | None, threshold: float) -> bool:
    """Return whether the value lies beyond; a missing one never does."""
    return value is not None and COMPARISONS[rule.comparison](value, threshold)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a finite number, got {value!r}")
    if not isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_seconds(name: str, value: float, lowest: int) -> None:
    _check_number(name, value)
    if not lowest <= value <= MAX_SECONDS:
        raise ValueError(f"{name} must be from {lowest} to {MAX_SECONDS:.0f}, got {value!r}")


def _check_common(rule: AnyRule) -> None:
    _check_number(f"the threshold of {rule.field}", rule.threshold)
    _check_seconds("for_seconds", rule.for_seconds, 0)
    if rule.repeat_seconds is not None:
        _check_seconds("repeat_seconds", rule.repeat_seconds, 1)
    if rule.at_least is not None:
        whole("at_least", rule.at_least, 1, MAX_REQUESTS)
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


def number_text(number: float) -> str:
    """Return a number as rules write it."""
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)


def _text(rule: AnyRule, what: str, where: str, usual: int | None) -> str:
    """Return a rule's text; ``usual`` requests are not written."""
    parts = [f"{rule.name}: {what} {rule.comparison} {number_text(rule.threshold)}{where}"]
    if rule.at_least != usual:
        parts.append(f"at least {rule.at_least} requests")
    if rule.for_seconds:
        parts.append(f"for {number_text(rule.for_seconds)}s")
    if rule.clear is not None:
        parts.append(f"clear {number_text(rule.clear)}")
    parts.append(rule.severity)
    if rule.repeat_seconds is not None:
        parts.append(f"repeat every {number_text(rule.repeat_seconds)}s")
    return " ".join(parts)
