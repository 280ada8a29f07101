"""`Alert`, the message that a receiver gets, and `Receiver`, somebody who gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from metricsmw.alerts.rules import SEVERITIES, Comparison, Severity

# What follows a number, by the end of its field's name.
UNITS = {
    "_pct": " %",
    "_ms": " ms",
    "_rpm": " a minute",
    "_mb": " MB",
    "_rate": " times",
    " rate": " a minute",
}


def unit_of(field: str) -> str:
    """Return what follows a number of a field, such as " ms"; empty where it has no unit."""
    return next((unit for end, unit in UNITS.items() if field.endswith(end)), "")


@dataclass(frozen=True)
class Alert:
    """What a receiver gets: a rule began to fire, or has recovered. `str` of it is a message.

    Attributes:
        id: Stays the same where a message has to be sent again.
        type: The rule's name.
        state: "firing" or "resolved".
        severity: "info", "warning" or "critical".
        field: What the rule compares.
        value: The number that was found; None where there was none.
        comparison: How the rule compares.
        threshold: What the rule compares with.
        since: When the value was first seen beyond its threshold, ISO 8601 in UTC.
        at: When this change was noticed, ISO 8601 in UTC.
        route: The route, with its method, of a rule of one route.
        host: The machine's name.
        link: The address of the dashboard, where it was given.
        rule: The rule as text.
        app: The application's name.
        detail: What was found, in words: the new kinds of error, one a line; "" where there is no
            more to say.
        is_repeat: It was told before, and still fires (``repeat every``).
    """

    id: str
    type: str
    state: Literal["firing", "resolved"]
    severity: Severity
    field: str
    value: float | None
    comparison: Comparison
    threshold: float
    since: str
    at: str
    route: str | None
    host: str
    link: str | None
    rule: str
    app: str = ""
    is_repeat: bool = False
    detail: str = ""

    @property
    def title(self) -> str:
        """One line that says what happened, and where."""
        where = f"{self.app} on {self.host}" if self.app else self.host
        if self.route is not None:
            where = f"{self.route} of {where}" if self.app else f"{self.route} on {where}"
        mark = "ALERT" if self.state == "firing" else "RESOLVED"
        if self.is_repeat:
            mark = "STILL FIRING"
        return f"{mark}: {self.type} ({self.severity}), {where}"

    def __str__(self) -> str:
        """Return the message, of several lines."""
        unit = unit_of(self.field)
        value = "without data" if self.value is None else f"{self.value:.10g}{unit}"
        state = "is firing" if self.state == "firing" else "has recovered"
        if self.is_repeat:
            state = "is still firing"
        threshold = f"{self.comparison} {self.threshold:.10g}{unit}"
        lines = [
            f"{self.type} {state}: {self.field} is {value}, threshold {threshold}.",
            *self.detail.splitlines(),
            f"Since: {self.since}",
            f"Noticed: {self.at}",
        ]
        if self.app:
            lines.append(f"Application: {self.app}")
        if self.route is not None:
            lines.append(f"Route: {self.route}")
        lines += [f"Severity: {self.severity}", f"Host: {self.host}", f"Rule: {self.rule}"]
        if self.link is not None:
            lines.append(f"Dashboard: {self.link}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str | float | bool | None]:
        """Return the fields by name."""
        return asdict(self)


Receive = Callable[[Alert], object]


@dataclass(frozen=True)
class Receiver:
    """Somebody who gets alerts.

    Attributes:
        name: What the log says; it shows no secret.
        receive: Sends an alert; raises where it cannot.
        key: Tells the receiver from others of its alerter, also after a reload in another order.
        severities: Those of the alerts that it gets.
    """

    name: str
    receive: Receive
    key: str
    severities: frozenset[str] = frozenset(SEVERITIES)
