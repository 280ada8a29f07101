"""`MetricsAlerter`: compares a monitor's numbers with rules, and sends an alert for each change.

One worker of the server checks (`ServerJob`). It saves the rules' states and the alerts that still
have to be sent at once (`AlertOutbox`), so that another worker can go on.
"""

from __future__ import annotations

import atexit
import math
import socket
import sys
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from metricsmw.alerts.alert import Alert, Receive
from metricsmw.alerts.delivery import Retry, Sender, as_receivers
from metricsmw.alerts.outbox import AlertOutbox, AlertRow, SavedStatus
from metricsmw.alerts.rules import (
    AnyRule,
    BurnRate,
    Rule,
    RuleStatus,
    advance,
    counts_since,
    identity,
    parse,
)
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.workers.job import PATIENCE_SECONDS, ServerJob
from metricsmw.snapshot import SnapshotDict, iso_timestamp
from metricsmw.validation import number

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


THRESHOLDS: Mapping[str, float] = {
    "error_rate_pct": 5.0,
    "latency_p99_ms": 1000.0,
    "memory_usage_pct": 80.0,
    "cpu_usage_pct": 80.0,
}
LEAST_INTERVAL, MOST_INTERVAL = 0.1, 86_400.0
EXIT_SECONDS = 2.0
LARGEST = sys.float_info.max
RETRY = Retry()


class ReadingInput:
    """What the rules read of a monitor at one moment."""

    def __init__(self, monitor: MetricsMonitor) -> None:
        """Read nothing yet."""
        self._reading = monitor.read(routes=True)
        self._kept = monitor.settings.max_history_minutes

    @cached_property
    def snapshot(self) -> SnapshotDict:
        """The snapshot's fields."""
        return self._reading.snapshot.to_dict()

    @property
    def routes(self) -> Sequence[RouteRow]:
        """The per-route table."""
        return self._reading.routes

    def counts(self, minutes: int) -> tuple[int, int]:
        """Return requests and errors since the last saved minute that is at least so old."""
        rows = self._reading.recent_history(minutes + 1)
        young = len(self._reading.recent_history(minutes))
        if len(rows) > young:
            return counts_since(rows[-young - 1], self.snapshot)
        # All minutes since the start are younger; or older ones are not kept.
        return counts_since(rows[0] if len(rows) >= self._kept else {}, self.snapshot)


class MetricsAlerter:
    """Check a monitor's numbers again and again, and send an alert for each change.

    All workers of a server may have one of the same name and settings: one of them checks, and
    another goes on when it ends or hangs.

    Args:
        monitor: Whose numbers.
        check_interval: Seconds between two checks, 0.1 to 86400.
        thresholds: Snapshot field to the number that it may not exceed. Default, where there are no
            ``rules``: error rate 5 %, p99 latency 1000 ms, memory 80 %, CPU 80 %.
        notify: Who gets the alerts: a callable that takes an `Alert`, an Apprise URL (extra
            ``metricsmw[alerts]``), or a list of these; None, or an empty list: the log
            ``metricsmw.alerts``.
        rules: `Rule` and `BurnRate` objects, or texts that `parse` takes.
        for_seconds: The thresholds fire only after having been exceeded for so long.
        link: The address of the dashboard, for the messages.
        timeout: Seconds that a receiver may take, above 0, at most 600.
        retry: How an alert that could not be sent is tried again.
        name: Tells this alerter from others of the same server: lower case letters, digits, _. Its
            component in `/health`.
        patience: Seconds by which the checking worker may be late, above 0, at most 3600. Then
            `/health` says so, and another one takes over.
        start: None: check in a daemon thread, once this process serves or records. True: also where
            it does neither, as in a program of its own. False: not before `start`; or call `check`
            yourself.

    Raises:
        ValueError: A setting is out of its range, such as a field that does not exist.
        TypeError: A setting is of another type.
        ModuleNotFoundError: An Apprise URL was given, and Apprise is not installed.
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
        retry: Retry = RETRY,
        name: str = "alerts",
        patience: float = PATIENCE_SECONDS,
        start: bool | None = None,
    ) -> None:
        self.monitor = monitor
        self.check_interval = number(
            "check_interval", check_interval, LEAST_INTERVAL, MOST_INTERVAL, "seconds"
        )
        timeout = number("timeout", timeout, 0.01, 600, "seconds")
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
        self._job: ServerJob[list[Alert]] = ServerJob(
            monitor,
            name,
            self._check,
            [],
            interval=self.check_interval,
            patience=number("patience", patience, 0.01, 3600, "seconds"),
            renew=self._after_fork,
        )
        self._outbox = AlertOutbox(self._job.leader, monitor.clock, retry.max_waiting)
        self._make_senders: Callable[[], list[Sender]] = lambda: [
            Sender(monitor.faults, receiver, self._outbox, timeout, retry) for receiver in receivers
        ]
        self._senders = self._make_senders()
        if start is not False:
            _started.add(self)
            self._job.start(everywhere=bool(start))

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

    @property
    def is_leader(self) -> bool:
        """Whether this worker is the one that checks."""
        return self._job.leader.is_leader

    def start(self) -> None:
        """Check in a daemon thread, whatever this process does. May be repeated.

        At the end of the process it waits up to two seconds for what is just being sent.
        """
        _started.add(self)
        self._job.start(everywhere=True)

    def stop(self, timeout: float = 5.0) -> None:
        """Check no more, and leave it to another worker; may be repeated.

        Args:
            timeout: Seconds to wait for what this worker still has to send; what is not sent by
                then is left to the next.
        """
        self._job.pause(timeout)
        _started.discard(self)
        if self.is_leader:
            self.flush(timeout)
        self._finish(0)
        self._senders = self._make_senders()
        self._job.stop()

    def _finish(self, timeout: float) -> None:
        """Start no further attempt, and wait so many seconds for those in progress."""
        for sender in self._senders:
            sender.stop()
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            sender.join(deadline - time.monotonic())

    def __enter__(self) -> MetricsAlerter:
        """Return the alerter itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.stop()

    def _after_fork(self) -> None:
        """In a forked child: threads, and locks that they held, are the parent's."""
        self._outbox.after_fork()
        self._senders = self._make_senders()

    def check(self) -> list[Alert]:
        """Check now, if this worker is the one that does.

        Never waits for a receiver, as alerts are sent by threads of their own.

        Returns:
            The alerts of the rules that have begun to fire or have recovered.

        Raises:
            OSError: The server's directory has no room for what was found; it is then found again
                by the next check.
        """
        return self._job.run()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until no alert waits to be sent, also by another worker.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether none waits any more.
        """
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            sender.wake()
        while self._outbox.read()["outbox"]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def get_alerts(self) -> list[AlertRow]:
        """Return where every rule stands, as the checking worker last found it."""
        return list(self._outbox.read()["alerts"].values())

    # --- checking --------------------------------------------------------------------------------

    def _check(self) -> list[Alert]:
        clock = self.monitor.clock
        now, wall = clock.monotonic(), clock.time()
        at = iso_timestamp(wall)
        moment = ReadingInput(self.monitor)
        saved = self._outbox.read()
        changes: list[Alert] = []
        statuses: dict[str, SavedStatus] = {}
        rows: dict[str, AlertRow] = {}
        for key, rule in self.rules.items():
            before, changed = _status(saved["statuses"].get(key))
            after = advance(rule, before, self._value(rule, moment), now, wall)
            if after.state != before.state:
                changed = wall
            statuses[key] = cast("SavedStatus", asdict(after) | {"changed": changed})
            rows[key] = _row(rule, after, changed, at)
            if after.state != before.state and after.state in ("firing", "resolved"):
                changes.append(self._alert(rows[key], iso_timestamp(after.beyond_at)))
        for key, row in saved["alerts"].items():
            if key not in rows and row["state"] == "firing":  # a reload took the rule away
                over: AlertRow = {**row, "state": "resolved", "checked": at}
                changes.append(self._alert(over, row["since"] or at))
        if not self._outbox.publish(rows, statuses, changes, self._receivers):
            return []
        for sender in self._senders:
            sender.wake()
        return changes

    def _value(self, rule: AnyRule, moment: ReadingInput) -> float | None:
        """Return the rule's value; NaN where it cannot be had."""
        try:
            value = rule.value(moment)
        except Exception:
            self.monitor.faults.report(f"the alert rule {rule}")
            return math.nan
        # Infinity is no number in JSON.
        return value if value is None else min(max(value, -LARGEST), LARGEST)

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


_started: weakref.WeakSet[MetricsAlerter] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Else the next worker would send it a second time. (What has not begun is left to that worker:
    # a process that ends can start no more threads.)
    for alerter in list(_started):
        with suppress(Exception):
            alerter._job.pause(0)
            alerter._finish(EXIT_SECONDS)


def _status(saved: SavedStatus | None) -> tuple[RuleStatus, float | None]:
    """Return a rule's status and the Unix time of its last change."""
    if saved is None:
        return RuleStatus(), None
    status = RuleStatus(saved["state"], saved["since"], saved["beyond_at"], saved["value"])
    return status, saved["changed"]


def _row(rule: AnyRule, status: RuleStatus, changed: float | None, checked: str) -> AlertRow:
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
    }


def _by_identity(rules: Sequence[AnyRule]) -> dict[str, AnyRule]:
    """Return the rules by what a reload knows them by.

    Those that differ in numbers only are told apart by their order.

    Raises:
        ValueError: A rule is given twice.
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
