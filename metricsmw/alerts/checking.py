"""One check of all rules: their new states, and what receivers are to be told.

Receivers are told by what they know, not by what has just changed: that a rule fires, once it does
and they do not know; that it is over, once it is and they know that it fired. So a silence only
delays. Where it ends while the rule still fires they are told then, and where the rule has
recovered meanwhile they are told that. A rule that fired and recovered between two checks is told
twice, one after the other.
"""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

from metricsmw.alerts.alert import Alert
from metricsmw.alerts.custom import CustomLooks
from metricsmw.alerts.errors import covering, new_kinds, told_of
from metricsmw.alerts.outbox import MAX_PAST, AlertRow, AlertState, PastAlert, SavedStatus
from metricsmw.alerts.rules import NEW_ERRORS, AnyRule, CustomRule, Rule
from metricsmw.alerts.silences import Silence, silenced_until
from metricsmw.alerts.source import ReadingInput
from metricsmw.alerts.states import Look, RuleStatus, advance
from metricsmw.alerts.values import StepLooks, goes_by_steps, look, looks_by_step
from metricsmw.engine.faults import FaultLog
from metricsmw.snapshot import iso_timestamp

LARGEST = sys.float_info.max


class Origin(NamedTuple):
    """Where alerts come from.

    Attributes:
        app: The application's name.
        host: The machine's.
        link: The address of the dashboard, where it was given.
    """

    app: str
    host: str
    link: str | None


class Checked(NamedTuple):
    """The outcome of a check.

    Attributes:
        alerts: Where every rule stands, by rule.
        statuses: The same for the next check.
        past: The alerts that have begun, oldest first, with their ends.
        changes: The rules that have begun to fire or have recovered.
        messages: What receivers are to be told.
    """

    alerts: dict[str, AlertRow]
    statuses: dict[str, SavedStatus]
    past: list[PastAlert]
    changes: list[Alert]
    messages: list[Alert]


class RuleChecker:
    """Checks the rules of one alerter.

    Args:
        rules: The rules, by what a reload knows them by.
        origin: Where alerts come from.
        interval: Seconds between two checks.
        window: Seconds of the monitor's window.
        faults: Where to report what cannot be read.
    """

    def __init__(
        self,
        rules: Mapping[str, AnyRule],
        origin: Origin,
        interval: float,
        window: float,
        faults: FaultLog,
    ) -> None:
        self._rules = rules
        self.origin = origin
        self._interval = interval
        self._window = window
        self._faults = faults
        self._custom = CustomLooks(interval, window)

    def forget(self) -> None:
        """Forget the app's own numbers at the checks before, after which there was another's."""
        self._custom = CustomLooks(self._interval, self._window)

    def check(
        self, saved: AlertState, source: Callable[[], ReadingInput], silences: list[Silence]
    ) -> Checked:
        """Return what a check finds.

        Args:
            saved: The outcome of the check before.
            source: Reads the numbers.
            silences: The silences in force.
        """
        moment = source()
        at = iso_timestamp(moment.wall)
        done = Checked({}, {}, list(saved["past"]), [], [])
        for key, rule in self._rules.items():
            before, changed = _status(saved["statuses"].get(key))
            status, fired = self._advance(rule, before, moment)
            if status.state != before.state or fired is not None:
                changed = moment.wall
            until = silenced_until(silences, rule.name, moment.wall)
            row = _row(rule, status, changed, at, until)
            kinds = new_kinds(rule, self._interval, moment) if status.state == "firing" else ()
            row["detail"] = told_of(kinds)
            changes = self._changes(row, before, fired, status)
            _note(done.past, key, changes)
            messages = (
                [] if until is not None else self._messages(rule, row, status, changes, moment.now)
            )
            if until is None and not messages and status.told_at is not None:
                since = [kind for kind in kinds if kind.first_at > status.told_at]
                if since:  # others than those that receivers know of
                    messages = [replace(self._alert(row, status), detail=told_of(since))]
            if messages:
                is_firing = messages[-1].state == "firing"
                status = replace(status, told_at=moment.now if is_firing else None)
            done.changes.extend(changes)
            done.messages.extend(messages)
            done.alerts[key] = row
            done.statuses[key] = cast("SavedStatus", asdict(status) | {"changed": changed})
        self._end_removed(saved, done, at)
        return done

    def _advance(
        self, rule: AnyRule, status: RuleStatus, moment: ReadingInput
    ) -> tuple[RuleStatus, RuleStatus | None]:
        """Return a rule's status now, and that with which it began to fire, if it did."""
        fired: RuleStatus | None = None
        found = self._looks(rule, status, moment)
        for one in found.looks:
            if status.carried and not one.is_enough and moment.age < self._window:
                continue  # too early to say that it is over
            before, status = status, advance(rule, status, one, found.least_seconds)
            status = replace(status, carried=False)
            if status.state == "firing" and before.state != "firing" and fired is None:
                fired = status
        return replace(status, step=found.step), fired

    def _looks(self, rule: AnyRule, status: RuleStatus, moment: ReadingInput) -> StepLooks:
        """Return what a rule finds; nothing where it cannot be had."""
        try:
            if isinstance(rule, CustomRule):
                found = self._custom.look(rule, moment)
            elif isinstance(rule, Rule) and rule.field == NEW_ERRORS:
                found = StepLooks([look(covering(rule, self._interval), moment)], 0, 0.0)
            elif isinstance(rule, Rule) and goes_by_steps(rule):
                back = self._interval + 2 * rule.for_seconds
                found = looks_by_step(rule, moment, status.step, back, self._window)
            else:
                found = StepLooks([look(rule, moment)], 0, 0.0)
        except Exception:
            self._faults.report(f"the alert rule {rule}")
            return StepLooks([], status.step, 0.0)
        return found._replace(looks=[_finite(one) for one in found.looks])

    def _changes(
        self, row: AlertRow, before: RuleStatus, fired: RuleStatus | None, status: RuleStatus
    ) -> list[Alert]:
        """Return an alert for a rule's beginning to fire, and one for its recovery."""
        was_firing, is_firing = before.state == "firing", status.state == "firing"
        changes = []
        if fired is not None and not was_firing:
            firing: AlertRow = {**row, "state": "firing", "value": fired.value}
            changes.append(self._alert(firing, fired))
        if not is_firing and (was_firing or fired is not None):
            changes.append(self._alert(row, fired or before))
        return changes

    def _messages(
        self, rule: AnyRule, row: AlertRow, status: RuleStatus, changes: list[Alert], now: float
    ) -> list[Alert]:
        """Return what receivers are to be told of a rule, going by what they know."""
        told_at = status.told_at
        if status.state != "firing":
            began = any(alert.state == "firing" for alert in changes)
            if told_at is None:
                return changes if began else []
            return [self._alert(row, status)] if began or not changes else changes
        if told_at is None:
            return changes or [self._alert(row, status)]
        repeat = rule.repeat_seconds
        if repeat is not None and now - told_at >= repeat:
            return [replace(self._alert(row, status), is_repeat=True)]
        return []

    def _end_removed(self, saved: AlertState, done: Checked, at: str) -> None:
        """End the alerts of rules that a reload took away."""
        for key, row in saved["alerts"].items():
            if key in done.alerts or row["state"] != "firing":
                continue
            status, _ = _status(saved["statuses"].get(key))
            alert = self._alert({**row, "state": "resolved", "checked": at}, status)
            done.changes.append(alert)
            if status.told_at is not None:
                done.messages.append(alert)
            _note(done.past, key, [alert])

    def _alert(self, row: AlertRow, status: RuleStatus) -> Alert:
        route = row["route"]
        if route is not None and row["method"] is not None:
            route = f"{row['method']} {route}"
        return Alert(
            id=uuid.uuid4().hex,
            type=row["type"],
            state="firing" if row["state"] == "firing" else "resolved",
            severity=row["severity"],
            field=row["field"],
            value=row["value"],
            comparison=row["comparison"],
            threshold=row["threshold"],
            since=iso_timestamp(status.beyond_at),
            at=row["checked"],
            route=route,
            host=self.origin.host,
            link=self.origin.link,
            rule=row["rule"],
            app=self.origin.app,
            detail=row["detail"],
        )


def test_alert(origin: Origin) -> Alert:
    """Return an alert by which receivers can be tried."""
    now = iso_timestamp(time.time())
    return Alert(
        id=uuid.uuid4().hex,
        type="TEST",
        state="firing",
        severity="info",
        field="test",
        value=1.0,
        comparison=">",
        threshold=0.0,
        since=now,
        at=now,
        route=None,
        host=origin.host,
        link=origin.link,
        rule="a test of the receivers: nothing is wrong",
        app=origin.app,
    )


def _finite(one: Look) -> Look:
    """Return the look without infinity, which is no number in JSON."""
    if one.value is None or math.isnan(one.value):
        return one
    return one._replace(value=min(max(one.value, -LARGEST), LARGEST))


def _status(saved: SavedStatus | None) -> tuple[RuleStatus, float | None]:
    """Return a rule's status and the Unix time of its last change."""
    if saved is None:
        return RuleStatus(), None
    fields = {name: value for name, value in saved.items() if name != "changed"}
    return RuleStatus(**cast("dict[str, Any]", fields)), saved["changed"]


def _row(
    rule: AnyRule, status: RuleStatus, changed: float | None, checked: str, until: float | None
) -> AlertRow:
    active = status.state in ("pending", "firing")
    since = status.beyond_at if active else changed
    return {
        "type": rule.name,
        "state": status.state,
        "severity": rule.severity,
        "field": rule.field,
        "route": rule.route,
        "method": rule.method,
        "value": status.value,
        "comparison": rule.comparison,
        "threshold": float(rule.threshold),  # a whole number may be larger than JSON's
        "since": None if since is None else iso_timestamp(since),
        "checked": checked,
        "rule": str(rule),
        "silenced_until": None if until is None else iso_timestamp(until),
        "detail": "",
    }


def _note(past: list[PastAlert], key: str, changes: list[Alert]) -> None:
    """Note a rule's beginning to fire and its recovery among the past alerts."""
    for alert in changes:
        if alert.state == "firing":
            past.append(
                {
                    "key": key,
                    "type": alert.type,
                    "severity": alert.severity,
                    "field": alert.field,
                    "route": alert.route,
                    "value": alert.value,
                    "comparison": alert.comparison,
                    "threshold": alert.threshold,
                    "since": alert.since,
                    "noticed": alert.at,
                    "ended": None,
                    "rule": alert.rule,
                }
            )
            del past[:-MAX_PAST]
            continue
        for place in reversed(range(len(past))):
            if past[place]["key"] == key and past[place]["ended"] is None:
                past[place] = {**past[place], "ended": alert.at}
                break
