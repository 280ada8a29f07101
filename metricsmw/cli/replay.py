"""`metricsmw alerts test`: would a rule have fired in a recorded history, when, and how often.

The history is what `/export/json`, `/history` or a scheduled export gave: a snapshot a minute,
without the numbers of single routes. So spans (``over``, and that of a ``for``) are of whole
minutes, and rates over them are exact. So are latencies over one minute; over several they are
taken from the percentiles of each, and never too low. Rows of older exports do not say what was
counted in the minute: latencies over a span are then those of the snapshot's window.
"""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from typing import NamedTuple

from metricsmw.alerts.alert import unit_of
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.rules import NEW_ERRORS, AnyRule, CustomRule, Rule, ServerRule
from metricsmw.alerts.source import COVERED, MINUTE, counts_since
from metricsmw.alerts.states import Look, RuleStatus, State, advance
from metricsmw.alerts.values import PastCounts, goes_by_steps, look, span_of
from metricsmw.cli.output import complain, write
from metricsmw.engine.reading.counts import percent
from metricsmw.engine.reading.errors import ErrorKind
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.spans import StepTable

PastSnapshot = Mapping[str, str | float | int]
DEFAULT_WINDOW = 300
# How many of a hundred latencies a minute's percentiles stand for, and for how many up to there.
SHARES = {"latency_p50_ms": 50, "latency_p95_ms": 45, "latency_p99_ms": 4, "latency_max_ms": 1}
SHARES_UP_TO = dict(zip(SHARES, accumulate(SHARES.values()), strict=True))


class Change(NamedTuple):
    """A rule began to fire, or recovered, at a time."""

    at: datetime
    state: State
    value: float | None


class Past:
    """A recorded history, up to one of its snapshots: what rules read."""

    routes: Sequence[RouteRow] = ()

    def __init__(
        self, rows: Sequence[PastSnapshot], times: Sequence[float], place: int, window: int
    ) -> None:
        self._rows = rows
        self._times = times
        self._place = place
        self._window = window
        self.now = self.wall = times[place]
        self.snapshot = rows[place]

    @property
    def window_requests(self) -> int:
        """About how many requests the snapshot's rates are of."""
        return round(float(self.snapshot["request_rate_rpm"]) * self._window / MINUTE)

    def counts(self, minutes: int) -> PastCounts:
        """Return what was counted in the last so many minutes, as far as there are rows.

        Rows that say what was counted in their minute are summed up, also over a restart.
        """
        if own := self._minutes(minutes):
            requests, errors, own_errors, seconds = (
                sum(float(row[f"minute_{name}"]) for row in own)
                for name in ("requests", "errors", "server_errors", "seconds")
            )
            is_covered = seconds >= COVERED * MINUTE * minutes
            return PastCounts(int(requests), int(errors), is_covered, int(own_errors))
        # Half a minute's grace, as snapshots are a minute apart but for milliseconds.
        begin = self.now - MINUTE * minutes + MINUTE / 2
        start = max(bisect_right(self._times, begin) - 1, 0)
        totals = [int(row["total_requests"]) for row in self._rows[start : self._place + 1]]
        restarted = any(before > after for before, after in pairwise(totals))  # or was reset
        is_covered = not restarted and self._times[start] <= begin
        return counts_since({} if restarted else self._rows[start], self.snapshot, is_covered)

    def new_errors(self, seconds: float) -> Sequence[ErrorKind]:
        """Raise: a history has no errors."""
        raise ValueError("a history has no errors by kind")

    def step_table(self, method: str | None, route: str | None) -> StepTable:
        """Raise: a history has no steps."""
        raise ValueError("a history has no steps")

    first_byte_table = step_table

    def look(self, rule: ServerRule) -> Look:
        """Return what a rule finds, as far as minutes can tell."""
        if not isinstance(rule, Rule) or not goes_by_steps(rule):
            return look(rule, self)
        minutes, counted, _ = span_of(rule, MINUTE, max(self._window // MINUTE, 1))
        counts = self.counts(minutes)
        is_enough = self.counts(counted).requests >= rule.least_requests
        value: float | None
        if rule.field == "request_rate_rpm":
            value = round(counts.requests / minutes, 2) if counts.is_covered else math.nan
        elif not counts.requests:
            value = None
        elif rule.field == "error_rate_pct":
            value = percent(counts.errors, counts.requests)
        elif own := self._minutes(minutes):
            value = _of_minutes(rule.field, own)
        else:
            value = look(rule, self).value
        return Look(self.now, self.wall, value, is_enough)

    def _minutes(self, minutes: int) -> Sequence[PastSnapshot]:
        """Return the rows of the last so many minutes; none where one does not say its own."""
        begin = self.now - MINUTE * minutes + MINUTE / 2
        rows = self._rows[bisect_right(self._times, begin) : self._place + 1]
        # A row that was saved by hand is no minute.
        own = [row for row in rows if "minute_requests" in row]
        return own if len(own) >= min(minutes, len(rows)) else ()


def _of_minutes(field: str, rows: Sequence[PastSnapshot]) -> float | None:
    """Return a rate or latency of what was counted in minutes; None where that is nothing.

    Of each minute's latencies half are taken to be its p50, and so on: no percentile is too low.
    """
    requests = sum(int(row["minute_requests"]) for row in rows)
    if field == "server_error_rate_pct":
        own = sum(int(row["minute_server_errors"]) for row in rows)
        return percent(own, requests) if requests else None
    busy = [row for row in rows if row["minute_requests"]]
    if field == "latency_max_ms":
        return max((float(row["minute_latency_max_ms"]) for row in busy), default=None)
    weights = sorted(
        (float(row[f"minute_{name}"]), share * int(row["minute_requests"]))
        for row in busy
        for name, share in SHARES.items()
    )
    missing = SHARES_UP_TO[field] * requests
    for value, weight in weights:
        missing -= weight
        if missing <= 0:
            return value
    return None


class RecordedHistory(NamedTuple):
    """A recorded history: its snapshots, oldest first, and the window that they are of."""

    rows: Sequence[PastSnapshot]
    window: int = DEFAULT_WINDOW


def read_history(path: str) -> RecordedHistory:
    """Return the history in an export.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no export.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except RecursionError as error:
        raise ValueError("no export: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    rows = document.get("history") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError('no export: it has no list "history"')
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, (str, int, float)):
                raise ValueError(f"no export: a snapshot's {name!r} is neither number nor text")
    if not rows:
        raise ValueError("its history is empty")
    configuration = document.get("configuration") if isinstance(document, dict) else None
    window = configuration.get("window_seconds") if isinstance(configuration, dict) else None
    return RecordedHistory(
        rows, window if isinstance(window, int) and window > 0 else DEFAULT_WINDOW
    )


def replay(rule: AnyRule, history: RecordedHistory) -> list[Change]:
    """Return the alerts of a rule over rows. Raises `ValueError` for rows that it cannot read."""
    if rule.route is not None:
        raise ValueError(f"a history has no routes, so this rule cannot be tried: {rule}")
    if rule.field == NEW_ERRORS:
        raise ValueError(f"a history has no errors by kind, so this rule cannot be tried: {rule}")
    if isinstance(rule, CustomRule):
        raise ValueError(
            f"a history has no numbers of the app's own, so this rule cannot be tried: {rule}"
        )
    rows = history.rows
    try:
        moments = [datetime.fromisoformat(str(row["timestamp"])) for row in rows]
        times = [moment.timestamp() for moment in moments]
        status = RuleStatus()
        changes = []
        for place, moment in enumerate(moments):
            try:
                one = Past(rows, times, place, history.window).look(rule)
            except ValueError:  # not a number: it says nothing
                continue
            before, status = status, advance(rule, status, one)
            if status.state != before.state and status.state in ("firing", "resolved"):
                changes.append(Change(moment, status.state, one.value))
    except KeyError as error:
        raise ValueError(f"its history has snapshots without {error}") from error
    return changes


def report(rule: AnyRule, history: RecordedHistory, changes: Sequence[Change]) -> str:
    """Return what `replay` found, for people."""
    rows = history.rows
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
        unit = unit_of(rule.field)
        value = "no data" if change.value is None else f"{change.value:.10g}{unit}"
        lines.append(f"  {change.at.isoformat()}  {change.state:8}  {value}")
    if len(begun) > len(ended):
        lines.append("  still firing at the end")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Run `metricsmw alerts test`.

    Returns:
        0 where the rules could be tried, fired or not; 1 with ``--fail-if-fired`` where one fired;
        2 where one could not be tried.
    """
    try:
        rules = [parse(text) for text in options.rule]
    except ValueError as error:
        complain("alerts test", error)
        return 2
    try:
        history = read_history(options.history)
        tried = [(rule, replay(rule, history)) for rule in rules]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        complain("alerts test", f"{options.history}: {reason or error}")
        return 2
    write("\n\n".join(report(rule, history, changes) for rule, changes in tried))
    return int(options.fail_if_fired and any(changes for _, changes in tried))
