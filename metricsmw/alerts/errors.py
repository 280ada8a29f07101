"""Rules on new kinds of error: the span that they look at, and what messages say of the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from metricsmw.alerts.rules import NEW_ERRORS, AnyRule, Rule
from metricsmw.engine.reading.errors import NEW_SECONDS, ErrorKind, place_text
from metricsmw.formats import plain

MOST_LINES = 5  # of a message
MOST_ROUTES = 3


class ErrorSource(Protocol):
    """The numbers of a moment, as far as they are needed here."""

    def new_errors(self, seconds: float) -> Sequence[ErrorKind]:
        """Return the kinds of error that were seen first in the last so many seconds."""


def covering(rule: Rule, interval: float) -> Rule:
    """Return a rule on new errors whose span is longer than the time between two checks."""
    span = rule.over_seconds or NEW_SECONDS
    return rule if span > interval else replace(rule, over_seconds=2 * interval)


def new_kinds(rule: AnyRule, interval: float, source: ErrorSource) -> Sequence[ErrorKind]:
    """Return the kinds that a rule has found; none of a rule that is about something else."""
    if not isinstance(rule, Rule) or rule.field != NEW_ERRORS:
        return ()
    return source.new_errors(covering(rule, interval).over_seconds or NEW_SECONDS)


def told_of(kinds: Sequence[ErrorKind]) -> str:
    """Return what a message says of kinds: type, place and routes, a line each."""
    lines = [_line(kind) for kind in kinds[:MOST_LINES]]
    if len(kinds) > MOST_LINES:
        lines.append(f"and {len(kinds) - MOST_LINES} more kinds")
    return "\n".join(lines)


def _line(kind: ErrorKind) -> str:
    where, routes = kind.where, list(kind.routes)
    place = "" if where is None else f" in {place_text(where)}"
    more = len(routes) - MOST_ROUTES
    said = ", ".join(routes[:MOST_ROUTES]) + (f" and {more} more" if more > 0 else "")
    times = "once" if kind.count == 1 else f"{kind.count} times"
    return plain(f"{kind.text.type}{place}, on {said}, {times}")
