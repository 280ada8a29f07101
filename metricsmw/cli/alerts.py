"""`metricsmw alerts test`: would a rule have fired in a recorded history, when, and how often.

The history is what `/export/json`, `/history` or a scheduled export gave: a snapshot a minute,
without the numbers of single routes.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from metricsmw.alerts.rules import AnyRule, RuleStatus, State, advance, counts_since, parse
from metricsmw.cli.output import complain, write
from metricsmw.engine.reading.routes import RouteRow

PastSnapshot = Mapping[str, str | float | int]


class Change(NamedTuple):
    """A rule began to fire, or recovered, at a time."""

    at: datetime
    state: State
    value: float | None


class Past:
    """A recorded history, up to one of its snapshots: what rules read."""

    routes: Sequence[RouteRow] = ()

    def __init__(self, rows: Sequence[PastSnapshot], times: Sequence[float], place: int) -> None:
        self._rows = rows
        self._times = times
        self._place = place
        self.snapshot = rows[place]

    def counts(self, minutes: int) -> tuple[int, int]:
        """Return requests and errors of the last so many minutes, as far as there are rows."""
        # Half a minute's grace, as snapshots are a minute apart but for milliseconds.
        start = max(bisect_right(self._times, self._times[self._place] - 60 * minutes + 30) - 1, 0)
        totals = [int(row["total_requests"]) for row in self._rows[start : self._place + 1]]
        restarted = any(before > after for before, after in pairwise(totals))  # or was reset
        return counts_since({} if restarted else self._rows[start], self.snapshot)


def read_history(path: str) -> list[PastSnapshot]:
    """Return the snapshots of an export, oldest first.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no export.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except RecursionError as error:
        raise ValueError("no export: it is nested too deeply") from error
    rows = document.get("history") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError('no export: it has no list "history"')
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, (str, int, float)):
                raise ValueError(f"no export: a snapshot's {name!r} is neither number nor text")
    if not rows:
        raise ValueError("its history is empty")
    return rows


def replay(rule: AnyRule, rows: Sequence[PastSnapshot]) -> list[Change]:
    """Return the alerts of a rule over rows. Raises `ValueError` for rows that it cannot read."""
    if rule.route is not None:
        raise ValueError(f"a history has no routes, so this rule cannot be tried: {rule}")
    try:
        moments = [datetime.fromisoformat(str(row["timestamp"])) for row in rows]
        times = [moment.timestamp() for moment in moments]
        status = RuleStatus()
        changes = []
        for place, (moment, at) in enumerate(zip(moments, times, strict=True)):
            try:
                value = rule.value(Past(rows, times, place))
            except ValueError:  # not a number: it says nothing
                continue
            before, status = status, advance(rule, status, value, at, at)
            if status.state != before.state and status.state in ("firing", "resolved"):
                changes.append(Change(moment, status.state, value))
    except KeyError as error:
        raise ValueError(f"its history has snapshots without {error}") from error
    return changes


def report(rule: AnyRule, rows: Sequence[PastSnapshot]) -> str:
    """Return what `replay` found, for people."""
    changes = replay(rule, rows)
    begun = [change.at for change in changes if change.state == "firing"]
    ended = [change.at for change in changes if change.state == "resolved"]
    last = datetime.fromisoformat(str(rows[-1]["timestamp"]))
    minutes = sum(
        (end - begin).total_seconds() / 60
        for begin, end in zip(begun, [*ended, last][: len(begun)], strict=True)
    )
    times = "once" if len(begun) == 1 else f"{len(begun)} times" if begun else "never"
    lines = [
        str(rule),
        f"  {len(rows)} snapshots from {rows[0]['timestamp']} to {rows[-1]['timestamp']}",
        f"  would have fired {times}" + (f", {minutes:.0f} minutes in all" if begun else ""),
    ]
    for change in changes:
        value = "no data" if change.value is None else f"{change.value:.10g}"
        lines.append(f"  {change.at.isoformat()}  {change.state:8}  {value}")
    if len(begun) > len(ended):
        lines.append("  still firing at the end")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Run the command; return 0 where the rules could be tried, fired or not, else 2."""
    try:
        rules = [parse(text) for text in options.rule]
    except ValueError as error:
        complain("alerts test", error)
        return 2
    try:
        rows = read_history(options.history)
        write("\n\n".join(report(rule, rows) for rule in rules))
    except (OSError, ValueError) as error:
        complain("alerts test", f"{options.history}: {error}")
        return 2
    return 0
