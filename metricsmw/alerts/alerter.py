"""`MetricsAlerter`: compares a monitor's numbers with rules, and sends an alert for each change.

One worker of the server checks (`ServerJob`). It saves the rules' states and the alerts that still
have to be sent at once (`AlertOutbox`), so that another worker can go on.
"""

from __future__ import annotations

import atexit
import socket
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from metricsmw.alerts.alert import Alert
from metricsmw.alerts.application import application_name
from metricsmw.alerts.checking import Origin, RuleChecker, test_alert
from metricsmw.alerts.delivery import (
    Notify,
    Retry,
    Sender,
    TestResult,
    as_receivers,
    send_test,
)
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.memory import AlertMemory
from metricsmw.alerts.outbox import AlertOutbox, AlertRow, PastAlert
from metricsmw.alerts.rules import (
    NEW_ERRORS,
    SPAN_FIELDS,
    AnyRule,
    BurnRate,
    CustomRule,
    Rule,
    identity,
)
from metricsmw.alerts.seen import NOT_KNOWN, SeenErrors
from metricsmw.alerts.silences import read_silences
from metricsmw.alerts.source import ReadingInput
from metricsmw.engine.workers.job import PATIENCE_SECONDS, ServerJob
from metricsmw.validation import number

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


THRESHOLDS: Mapping[str, float] = {
    "error_rate_pct": 5.0,
    "latency_p99_ms": 1000.0,
    "memory_usage_pct": 80.0,
    "cpu_share_pct": 80.0,
}
LEAST_INTERVAL, MOST_INTERVAL = 0.1, 86_400.0
EXIT_SECONDS = 2.0
RETRY = Retry()


class MetricsAlerter:
    """Check a monitor's numbers again and again, and send an alert for each change.

    All workers of a server may have one of the same name and settings: one of them checks, and
    another goes on when it ends or hangs.

    Args:
        monitor: Whose numbers.
        check_interval: Seconds between two checks, 0.1 to 86400.
        thresholds: Snapshot field to the number that it may not exceed. Default, where there are no
            ``rules``: error rate 5 %, p99 latency 1000 ms, memory 80 %, CPU 80 % of the cores that
            the server may use.
        notify: Who gets the alerts: a callable that takes an `Alert`, an Apprise URL (extra
            ``metricsmw[alerts]``), or a list of these; None, or an empty list: the log
            ``metricsmw.alerts``. Or a mapping from severities to these, where alerts of a severity
            that it does not name go to the log.
        rules: `Rule`, `BurnRate` and `CustomRule` objects, or texts that `parse` takes.
        for_seconds: The thresholds fire only after having been exceeded for so long.
        at_least: The thresholds of rates and latencies begin to fire only where there were so many
            requests; None: 20.
        repeat_seconds: A rule that fires, and does not say it itself, is told again after so long;
            None: never.
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
        notify: Notify = None,
        *,
        rules: Iterable[AnyRule | str] = (),
        for_seconds: float = 0,
        at_least: int | None = None,
        repeat_seconds: float | None = None,
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
        held = [
            Rule(
                field,
                limit,
                for_seconds=for_seconds,
                at_least=at_least if field in SPAN_FIELDS else None,
            )
            for field, limit in thresholds.items()
        ]
        given = [*held, *given]
        for rule in given:
            self._check_rule(rule)
        self.rules = _by_identity(
            [
                replace(rule, repeat_seconds=repeat_seconds)
                if rule.repeat_seconds is None
                else rule
                for rule in given
            ]
        )
        self._receivers = receivers = as_receivers(notify)
        self._timeout = timeout
        self._checker = RuleChecker(
            self.rules,
            this_origin(monitor.settings.name, link),
            self.check_interval,
            monitor.settings.window_seconds,
            monitor.faults,
        )
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
        self._term = 0  # of the lead in which the last check was
        self._memory = AlertMemory(monitor, name)
        self._asks_errors = any(rule.field == NEW_ERRORS for rule in given)
        self._seen: SeenErrors | None = None
        self._make_senders: Callable[[], list[Sender]] = lambda: [
            Sender(monitor.faults, receiver, self._outbox, timeout, retry) for receiver in receivers
        ]
        self._senders = self._make_senders()
        if start is not False:
            _started.add(self)
            self._job.start(everywhere=bool(start))

    def _check_rule(self, rule: AnyRule) -> None:
        if not isinstance(rule, (Rule, BurnRate, CustomRule)):
            raise TypeError(f"rules must be Rule, BurnRate, CustomRule or str, got {rule!r}")
        kept = self.monitor.settings.max_history_minutes
        if isinstance(rule, BurnRate) and rule.long_minutes > kept:
            raise ValueError(
                f"long_minutes must be at most max_history_minutes ({kept}), as a burn rate is "
                f"computed from the history; got {rule.long_minutes}"
            )
        window = self.monitor.settings.window_seconds
        over = None if rule.field == NEW_ERRORS else rule.over_seconds  # which has no window
        if over is not None and over > window:
            raise ValueError(f"over_seconds must be at most the window ({window}), got {over!r}")

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
        self._checker.forget()
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

    def get_past_alerts(self) -> list[PastAlert]:
        """Return the alerts that have begun, oldest first, with their ends; the last hundred."""
        return self._outbox.read()["past"]

    def send_test(self) -> list[TestResult]:
        """Send each receiver a test alert, from this process, and wait for what becomes of it.

        Returns:
            For each receiver its name, and what went wrong; None where it took the alert.
        """
        return send_test(self._receivers, test_alert(self._checker.origin), self._timeout)

    # --- checking --------------------------------------------------------------------------------

    def _check(self) -> list[Alert]:
        clock = self.monitor.clock
        saved = self._outbox.read()
        if self._term != self._job.leader.terms:  # another worker has checked since
            self._term = self._job.leader.terms
            self._checker.forget()
            wall = clock.time()
            self._seen = self._memory.seen_errors(wall) if self._asks_errors else None
        if not saved["statuses"]:  # the server's first check
            saved = self._memory.load(self.monitor.read().origin)
        silences = read_silences(self.monitor, clock.time())
        found = self._checker.check(saved, self._read, silences)
        seen = self._seen
        is_learning = seen is not None and seen.is_learning(clock.time())
        self._outbox.problem = NOT_KNOWN if is_learning else None
        if not self._outbox.publish(
            found.alerts, found.statuses, found.past, found.messages, self._receivers
        ):
            return []
        if found.changes or found.messages or not (seen is None or seen.is_saved):
            self._memory.save(self._outbox.read(), seen)
        for sender in self._senders:
            sender.wake()
        return found.changes

    def _read(self) -> ReadingInput:
        """Read the monitor; what earlier servers have seen is no new error."""
        source = ReadingInput(self.monitor)
        if self._seen is not None:
            self._seen.note(source.errors, source.now, source.wall, source.reset_at)
        return source


def this_origin(name: str, link: str | None = None) -> Origin:
    """Return where alerts of this process come from; ``name``: the application's, if it was set."""
    return Origin(application_name(name), socket.gethostname(), link)


def alerters_of(monitor: MetricsMonitor) -> list[MetricsAlerter]:
    """Return the alerters of a monitor that run in this process."""
    return [alerter for alerter in list(_started) if alerter.monitor is monitor]


_started: weakref.WeakSet[MetricsAlerter] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Else the next worker would send it a second time. (What has not begun is left to that worker:
    # a process that ends can start no more threads.)
    for alerter in list(_started):
        with suppress(Exception):
            alerter._job.pause(0)
            alerter._finish(EXIT_SECONDS)


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
