"""`MetricsAlerter`: watches a monitor's numbers by rules, and tells people once for each change.

One worker of the server checks. What it found, and what it still has to tell, is one file in the
server's directory, replaced as a whole: a change and its notification are noted together, and a
notification is struck off only after its receiver took it. So when the worker dies, the next one
knows what has been told. Only where it dies between the two is a receiver told twice, by the same
``Alert.id``; never is it not told.
"""

from __future__ import annotations

import atexit
import math
import socket
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict, cast

from metricsmw.alerts.delivery import ALERT_FIELDS, Alert, Receive, Sender, as_receivers
from metricsmw.alerts.rules import (
    SEVERITIES,
    AnyRule,
    BurnRate,
    Comparison,
    Rule,
    Severity,
    State,
    Status,
    advance,
    counts_since,
    identity,
    parse,
)
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.workers.job import PeriodicTask
from metricsmw.engine.workers.leader import LeaderLock, states
from metricsmw.snapshot import iso_timestamp

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


THRESHOLDS: Mapping[str, float] = {
    "error_rate_pct": 5.0,
    "latency_p99_ms": 1000.0,
    "memory_usage_pct": 80.0,
    "cpu_usage_pct": 80.0,
}
LEAST_INTERVAL, MOST_INTERVAL = 0.1, 86_400.0
MOST_WAITING = 1000
EXIT_SECONDS = 2.0


class AlertRow(TypedDict):
    """Where a rule stands, as `GET /alerts` lists it; times are ISO 8601 in UTC.

    ``since``: pending and firing, when the value was first seen beyond; else the last change, None
    where there was none. ``checked``: when the rule was last looked at.
    """

    type: str
    state: State
    severity: Severity
    field: str
    route: str | None
    method: str | None
    value: float | None
    comparison: Comparison
    threshold: float
    since: str | None
    checked: str
    rule: str


ROW_FIELDS = frozenset(AlertRow.__annotations__)


class PendingNotification(TypedDict):
    """A notification that some receivers still have to get."""

    alert: dict[str, str | float | None]
    receivers: list[str]  # their keys
    queued: float  # monotonic


class AlertState(TypedDict):
    """All that is noted: rows and statuses by rule, what waits, what came of it."""

    alerts: dict[str, AlertRow]
    statuses: dict[str, dict[str, str | float | None]]
    outbox: list[PendingNotification]
    sent: int
    failed_attempts: int
    given_up: int


class Moment:
    """One look at the monitor, taken only as far as rules ask for it."""

    def __init__(self, monitor: MetricsMonitor) -> None:
        self._monitor = monitor

    @cached_property
    def snapshot(self) -> Mapping[str, str | float | int]:
        return self._monitor.get_current_snapshot().to_dict()

    @cached_property
    def routes(self) -> Sequence[RouteRow]:
        return self._monitor.get_routes()

    def counts(self, minutes: int) -> tuple[int, int]:
        """Requests and errors since the last minute of the history that is at least so old."""
        rows = self._monitor.get_recent_history(minutes + 1)
        young = len(self._monitor.get_recent_history(minutes))
        if len(rows) > young:
            return counts_since(rows[-young - 1], self.snapshot)
        # All minutes since the start are younger; or older ones are not kept.
        full = len(rows) >= self._monitor.settings.max_history_minutes
        return counts_since(rows[0] if full else {}, self.snapshot)


class MetricsAlerter:
    """Check a monitor's numbers every ``check_interval`` seconds and tell of what changed.

    - ``thresholds``: snapshot field to the number that it may not exceed. Default, where there are
      no ``rules``: error rate 5 %, p99 latency 1000 ms, memory 80 %, CPU 80 %.
    - ``notify``: whom to tell: a callable that takes an `Alert`, an Apprise URL (extra
      ``metricsmw[alerts]``), or a list of these; None, or none: the log ``metricsmw.alerts``.
    - ``rules``: `Rule` and `BurnRate` objects, or texts that `parse` takes.
    - ``for_seconds``: the thresholds fire only after having been exceeded for so long.
    - ``link``: the address of the dashboard, for the messages.
    - ``timeout``: seconds a receiver may take, above 0, at most 600.
    - ``name``: tells this alerter from others of the same server: lower case letters, digits, _.
    - ``start``: check in a daemon thread from now on; otherwise `start`, or call `check` yourself.

    All workers of a server may have one of the same name and settings: one of them checks, and
    another goes on when it dies. ``check_interval`` is 0.1 to 86400.

    Raises `ValueError` or `TypeError` for bad settings, such as a field that does not exist.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        check_interval: float = 30,
        thresholds: Mapping[str, float] | None = None,
        notify: Receive | str | Iterable[Receive | str] | None = None,
        *,
        rules: Iterable[AnyRule | str] = (),
        for_seconds: float = 0,
        link: str | None = None,
        timeout: float = 10.0,
        name: str = "alerts",
        start: bool = True,
    ) -> None:
        self.monitor = monitor
        self.check_interval = _in_range(
            "check_interval", check_interval, LEAST_INTERVAL, MOST_INTERVAL
        )
        timeout = _in_range("timeout", timeout, 0.01, 600)
        if isinstance(rules, str):
            rules = (rules,)
        given = [parse(rule) if isinstance(rule, str) else rule for rule in rules]
        if thresholds is None:
            thresholds = {} if given else THRESHOLDS
        self.thresholds = MappingProxyType(dict(thresholds))
        given = [
            *(Rule(field, limit, for_seconds=for_seconds) for field, limit in thresholds.items()),
            *given,
        ]
        for rule in given:
            self._check_rule(rule)
        self.rules = _by_identity(given)
        receivers = as_receivers(notify)
        self._receivers = [receiver.key for receiver in receivers]
        self._link = link
        self._host = socket.gethostname()
        self._lock = threading.RLock()
        self._leader = LeaderLock(monitor, name)
        self._make_senders: Callable[[], list[Sender]] = lambda: [
            Sender(monitor, receiver, self, timeout) for receiver in receivers
        ]
        self._senders = self._make_senders()
        self._task = PeriodicTask(monitor, self.check, self.check_interval, name, self._renew)
        if start:
            self.start()

    def _check_rule(self, rule: AnyRule) -> None:
        if not isinstance(rule, (Rule, BurnRate)):
            raise TypeError(f"rules must be Rule, BurnRate or str, got {rule!r}")
        kept = self.monitor.settings.max_history_minutes
        if isinstance(rule, BurnRate) and rule.long_minutes > kept:
            raise ValueError(
                f"long_minutes must be at most max_history_minutes ({kept}), as a burn rate is "
                f"computed from the history; got {rule.long_minutes}"
            )

    # --- running ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Check in a daemon thread, every ``check_interval`` seconds. May be repeated.

        At the end of the process it waits up to two seconds for what is just being delivered.
        """
        _started.add(self)
        self._task.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Check no more, and leave it to another worker; may be repeated.

        Waits up to ``timeout`` seconds for what this worker still has to tell; what is not told by
        then is left to the next.
        """
        self._task.stop(timeout)
        _started.discard(self)
        if self._leader.is_leader:
            self.flush(timeout)
        self._finish(0)
        self._senders = self._make_senders()
        self._leader.release()

    def _finish(self, timeout: float) -> None:
        """Deliver nothing more, but for what is just being delivered."""
        for sender in self._senders:
            sender.stop()
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            sender.join(deadline - time.monotonic())

    def __enter__(self) -> MetricsAlerter:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _renew(self) -> None:
        """In a forked child: threads, and locks that they held, are the parent's."""
        self._lock = threading.RLock()
        self._senders = self._make_senders()

    def check(self) -> list[Alert]:
        """Look now, if this worker is the one that does; what has begun to fire or recovered.

        Never waits for a receiver: senders tell them. Raises OSError where the server's directory
        has no room for what was found; it is then found again by the next check.
        """
        with self._lock:
            if not self._leader.acquire():
                return []
            changes = self._look()
        for sender in self._senders:
            sender.wake()
        return changes

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait up to ``timeout`` seconds until nothing waits to be told; whether that is so.

        Another worker's notifications are waited for, too.
        """
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            sender.wake()
        while self._state()["outbox"]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def get_alerts(self) -> list[AlertRow]:
        """Where every rule stands, as the checking worker last found it."""
        return list(self._state()["alerts"].values())

    # --- checking --------------------------------------------------------------------------------

    def _look(self) -> list[Alert]:
        clock = self.monitor.clock
        now, wall = clock.monotonic(), clock.time()
        at = iso_timestamp(wall)
        moment = Moment(self.monitor)
        state = self._state()
        changes: list[Alert] = []
        statuses: dict[str, dict[str, str | float | None]] = {}
        rows: dict[str, AlertRow] = {}
        for key, rule in self.rules.items():
            noted = state["statuses"].get(key, {})
            before = _status(noted)
            after = advance(rule, before, self._value(rule, moment), now, wall)
            changed = noted.get("changed")
            if after.state != before.state:
                changed = wall
            statuses[key] = asdict(after) | {"changed": changed}
            rows[key] = _row(rule, after, changed, at)
            if after.state != before.state and after.state in ("firing", "resolved"):
                changes.append(self._alert(rows[key], iso_timestamp(after.beyond_at)))
        for key, row in state["alerts"].items():
            if key not in rows and row["state"] == "firing":  # a reload took the rule away
                over: AlertRow = {**row, "state": "resolved", "checked": at}
                changes.append(self._alert(over, row["since"] or at))
        state["alerts"], state["statuses"] = rows, statuses
        for entry in state["outbox"]:  # after a reload there may be others
            entry["receivers"] = [one for one in entry["receivers"] if one in self._receivers]
        state["outbox"] = [entry for entry in state["outbox"] if entry["receivers"]]
        state["outbox"] += [
            {"alert": alert.to_dict(), "receivers": self._receivers, "queued": now}
            for alert in changes
        ]
        surplus = len(state["outbox"]) - MOST_WAITING
        if surplus > 0:
            del state["outbox"][:surplus]
            state["given_up"] += surplus
        self._leader.write(cast("Mapping[str, object]", state))
        return changes

    def _value(self, rule: AnyRule, moment: Moment) -> float | None:
        """The rule's value; NaN where it cannot be had."""
        try:
            return rule.value(moment)
        except Exception:
            self.monitor.faults.report(f"the alert rule {rule}")
            return math.nan

    def _alert(self, row: AlertRow, since: str) -> Alert:
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
            since=since,
            at=row["checked"],
            route=route,
            host=self._host,
            link=self._link,
            rule=row["rule"],
        )

    def _state(self) -> AlertState:
        return as_alert_state(self._leader.read())

    # --- the outbox, for the senders ------------------------------------------------------------

    def waiting(self, receiver: str) -> tuple[Alert, float] | None:
        with self._lock:
            if not self._leader.is_leader:
                return None
            now = self.monitor.clock.monotonic()
            for entry in self._state()["outbox"]:
                if receiver in entry["receivers"]:
                    alert = Alert(**cast("dict[str, object]", entry["alert"]))  # type: ignore[arg-type]
                    return alert, now - entry["queued"]
        return None

    def done(self, receiver: str, alert: Alert, delivered: bool) -> None:
        with self._lock:
            if not self._leader.is_leader:
                return
            state = self._state()
            for entry in state["outbox"]:
                if entry["alert"]["id"] == alert.id and receiver in entry["receivers"]:
                    entry["receivers"].remove(receiver)
                    state["sent" if delivered else "given_up"] += 1
                    state["failed_attempts"] += not delivered
            state["outbox"] = [entry for entry in state["outbox"] if entry["receivers"]]
            self._leader.write(cast("Mapping[str, object]", state))

    def failed(self) -> None:
        with self._lock:
            if self._leader.is_leader:
                state = self._state()
                state["failed_attempts"] += 1
                self._leader.write(cast("Mapping[str, object]", state))


_started: weakref.WeakSet[MetricsAlerter] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Else the next worker would deliver it a second time. (What has not begun is left to that
    # worker: a process that ends can start no more threads.)
    for alerter in list(_started):
        with suppress(Exception):
            alerter._task.stop(0)
            alerter._finish(EXIT_SECONDS)


def get_alerts(monitor: MetricsMonitor) -> tuple[list[AlertRow], dict[str, int]]:
    """Where every rule of every alerter of the server stands, the worst first; and what came of
    the notifications: ``waiting``, ``sent``, ``failed_attempts``, ``given_up``."""
    rows: list[AlertRow] = []
    counts = {"waiting": 0, "sent": 0, "failed_attempts": 0, "given_up": 0}
    for noted in states(monitor).values():
        if "alerts" in noted:
            state = as_alert_state(noted)
            rows += state["alerts"].values()
            counts["waiting"] += len(state["outbox"])
            counts["sent"] += state["sent"]
            counts["failed_attempts"] += state["failed_attempts"]
            counts["given_up"] += state["given_up"]
    order = ("firing", "pending", "resolved", "inactive")
    rows.sort(key=lambda row: (order.index(row["state"]), -SEVERITIES.index(row["severity"])))
    return rows, counts


def as_alert_state(noted: Mapping[str, object]) -> AlertState:
    """What is noted; what cannot be what an alerter notes is as good as nothing."""
    state: AlertState = {
        "alerts": {},
        "statuses": {},
        "outbox": [],
        "sent": 0,
        "failed_attempts": 0,
        "given_up": 0,
    }
    if noted.keys() >= state.keys():
        found = cast("AlertState", noted)
        try:
            for status in found["statuses"].values():
                _status(status)
            rows, alerts = found["alerts"].values(), [entry["alert"] for entry in found["outbox"]]
            if all(row.keys() == ROW_FIELDS for row in rows) and all(
                alert.keys() == ALERT_FIELDS for alert in alerts
            ):
                return found
        except (AttributeError, KeyError, TypeError):
            pass
    return state


def _status(noted: Mapping[str, str | float | None]) -> Status:
    if not noted:
        return Status()
    return Status(
        cast("State", noted["state"]),
        cast("float", noted["since"]),
        cast("float", noted["beyond_at"]),
        cast("float | None", noted["value"]),
    )


def _row(rule: AnyRule, status: Status, changed: object, checked: str) -> AlertRow:
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
        "threshold": rule.threshold,
        "since": iso_timestamp(since) if isinstance(since, (int, float)) else None,
        "checked": checked,
        "rule": str(rule),
    }


def _by_identity(rules: Sequence[AnyRule]) -> dict[str, AnyRule]:
    """The rules by what a reload knows them by; those that differ in numbers only, in their order.

    Raises `ValueError` where one is given twice.
    """
    found: dict[str, AnyRule] = {}
    seen: Counter[str] = Counter()
    for rule in rules:
        if rule in found.values():
            raise ValueError(f"the same rule is given twice: {rule}")
        known_by = identity(rule)
        seen[known_by] += 1
        found[f"{known_by} {seen[known_by]}"] = rule
    return found


def _in_range(name: str, value: float, lowest: float, highest: float) -> float:
    allowed = f"a number of seconds from {lowest:g} to {highest:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value
