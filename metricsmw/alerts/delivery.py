"""Delivery: the receivers that `notify=` names, and the threads that send them alerts.

A receiver is a callable, an Apprise URL, or the log. Each has a `Sender`: a daemon thread that
takes the alerts that wait for the receiver, one after the other. So a receiver that hangs delays
neither a request, nor a check, nor another receiver. An alert that could not be sent is tried
again, at growing delays, and given up after an hour (`Retry`).

A call that is out of time is not repeated while it hangs, and counts as delivered if it ends well
after all: a slow receiver gets an alert once. So does one whose outcome cannot be saved, as on a
full disk: then only the saving is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

from metricsmw.alerts.alert import Alert, Receive, Receiver
from metricsmw.alerts.rules import SEVERITIES
from metricsmw.engine.faults import FaultLog

logger = logging.getLogger("metricsmw.alerts")


@dataclass(frozen=True)
class Retry:
    """How a notification that failed is tried again. All times are seconds.

    Attributes:
        first_delay: The time before the second attempt; each later one is twice as long.
        longest_delay: The longest time between two attempts.
        give_up: The age at which a notification is tried for the last time.
        max_waiting: How many alerts may wait; the oldest are given up for newer ones.
    """

    first_delay: float = 1.0
    longest_delay: float = 60.0
    give_up: float = 3600.0
    max_waiting: int = 1000


def to_log(alert: Alert) -> None:
    """Log an alert: the default receiver."""
    logger.warning("%s\n%s", alert.title, alert)


Target: TypeAlias = Receive | str
Notify: TypeAlias = Target | Iterable[Target] | Mapping[str, Target | Iterable[Target]] | None


def as_receivers(notify: Notify) -> list[Receiver]:
    """Return the receivers that a setting means.

    Args:
        notify: A callable, Apprise URLs, or several of these; without any, the log. Or these for
            each severity: alerts of a severity that is not named go to the log.

    Raises:
        ModuleNotFoundError: Apprise is needed and not installed.
        ValueError: Apprise does not know a URL, or there is no such severity.
        TypeError: The setting is anything else.
    """
    # By target: one that is named for two severities is one receiver.
    wanted: list[tuple[Target, set[str]]] = []
    routes: Mapping[str, Target | Iterable[Target]] = (
        notify if isinstance(notify, Mapping) else dict.fromkeys(SEVERITIES, _targets(notify))
    )
    for severity in routes:
        if severity not in SEVERITIES:
            raise ValueError(
                f"notify may name the severities {', '.join(SEVERITIES)}, got {severity!r}"
            )
    for severity in SEVERITIES:
        for target in _targets(routes.get(severity)):
            known = next((names for one, names in wanted if one is target or one == target), None)
            if known is None:
                wanted.append((target, {severity}))
            else:
                known.add(severity)
    found = [
        replace(receiver, severities=frozenset(severities))
        for target, severities in wanted
        for receiver in _receivers(target)
    ]
    seen: Counter[str] = Counter()
    for place, receiver in enumerate(found):
        seen[receiver.key] += 1
        found[place] = replace(receiver, key=f"{receiver.key} {seen[receiver.key]}")
    return found


def _targets(notify: Target | Iterable[Target] | None) -> list[Target]:
    """Return what a setting names, at least the log."""
    if notify is None:
        return [to_log]
    if isinstance(notify, str) or callable(notify):
        return [notify]
    if not isinstance(notify, Iterable):
        raise TypeError(f"notify must be a callable or an Apprise URL, got {notify!r}")
    return list(notify) or [to_log]


def _receivers(target: Target) -> list[Receiver]:
    if isinstance(target, str):
        from metricsmw.alerts.apprise import apprise_receivers  # only where a URL is given

        return apprise_receivers(target)
    if not callable(target):
        raise TypeError(f"notify must be a callable or an Apprise URL, got {target!r}")
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return [Receiver(name, target, name)]


class Outbox(Protocol):
    """The alerts that wait to be sent; they outlive this worker."""

    def waiting(self, receiver: str) -> tuple[Alert, float] | None:
        """Return the oldest alert for a receiver (its key), and its age in seconds.

        None where there is none, or where another worker is to send it.
        """

    def done(self, receiver: str, alert: Alert, delivered: bool) -> None:
        """Remove an alert for a receiver: it was delivered, or the last attempt failed."""

    def failed(self) -> None:
        """Count an attempt that failed and will be repeated."""


class _Attempt:
    """One call of a receiver, in a thread of its own, so that it can be left to itself."""

    def __init__(self, receiver: Receiver, alert: Alert) -> None:
        self.alert = alert
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._receiver = receiver
        threading.Thread(target=self._run, name="metricsmw notification", daemon=True).start()

    def _run(self) -> None:
        try:
            self._receiver.receive(self.alert)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


class Sender:
    """Sends one receiver its alerts, in a thread that ends when no alert waits any more.

    Args:
        faults: Where to report what goes wrong in the sending itself.
        receiver: Who gets the alerts.
        outbox: Where they wait.
        timeout: Seconds that the receiver has for one alert.
        retry: How alerts that failed are tried again.
    """

    def __init__(
        self, faults: FaultLog, receiver: Receiver, outbox: Outbox, timeout: float, retry: Retry
    ) -> None:
        self._faults = faults
        self._receiver = receiver
        self._outbox = outbox
        self._timeout = timeout
        self._retry = retry
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._hanging: _Attempt | None = None
        self._has_logged_failure = False
        # The last alert's id, and whether it was delivered.
        self._settled: tuple[str, bool] | None = None

    def wake(self) -> None:
        """Look for alerts that wait. Never raises."""
        try:
            with self._lock:
                running = self._thread is not None and self._thread.is_alive()
                if not running and not self._stopping.is_set():
                    thread = threading.Thread(
                        target=self._run, name="metricsmw sender", daemon=True
                    )
                    thread.start()
                    self._thread = thread
        except RuntimeError:  # no thread can be started; tried again by the next check
            self._faults.report("sending notifications")

    def stop(self) -> None:
        """Start no further attempt. One in progress is left to its end."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait up to so many seconds for an attempt in progress, once stopped."""
        thread = self._thread
        if thread is not None:
            thread.join(max(timeout, 0))

    def _run(self) -> None:
        delay = self._retry.first_delay
        while True:
            try:
                with self._lock:
                    waiting = (
                        None
                        if self._stopping.is_set()
                        else self._outbox.waiting(self._receiver.key)
                    )
                    if waiting is None:
                        self._thread = None
                        return
                if self._deliver(*waiting):
                    delay = self._retry.first_delay
                    continue
            except Exception:
                self._faults.report("sending notifications")
            self._stopping.wait(delay)
            delay = min(2 * delay, self._retry.longest_delay)

    def _deliver(self, alert: Alert, age: float) -> bool:
        """Try to deliver an alert of an age in seconds; return whether it is done with."""
        if self._settled is None or self._settled[0] != alert.id:
            error = self._attempt(alert)
            if error is not None and not self._gives_up(alert, age, error):
                self._outbox.failed()
                return False
            self._settled = (alert.id, error is None)
        self._outbox.done(self._receiver.key, alert, delivered=self._settled[1])
        return True

    def _gives_up(self, alert: Alert, age: float, error: BaseException) -> bool:
        """Log an attempt that failed; return whether it was the last one."""
        name = self._receiver.name
        if not self._has_logged_failure:
            self._has_logged_failure = True
            logger.error(
                "metricsmw: %s could not be told of %s, and will be tried again: %s",
                name,
                alert.title,
                error,
            )
        if age < self._retry.give_up:
            return False
        logger.error("metricsmw: %s is not told of %s any more", name, alert.title)
        return True

    def _attempt(self, alert: Alert) -> BaseException | None:
        """Call the receiver, or wait for the call that hangs; return what went wrong."""
        attempt = self._hanging
        if attempt is None or attempt.alert.id != alert.id:
            attempt = _Attempt(self._receiver, alert)
        if not attempt.ended.wait(self._timeout):
            self._hanging = attempt
            return TimeoutError(f"no answer within {self._timeout:g} s")
        self._hanging = None
        self._has_logged_failure = self._has_logged_failure and attempt.error is not None
        return attempt.error


class TestResult(NamedTuple):
    """What became of a test alert: the receiver's name, and what went wrong; None: it took it."""

    receiver: str
    error: BaseException | None


def send_test(receivers: Sequence[Receiver], alert: Alert, timeout: float) -> list[TestResult]:
    """Send each receiver an alert at once, and wait for all.

    Args:
        receivers: The receivers.
        alert: The alert.
        timeout: Seconds that they have.
    """
    attempts = [(receiver, _Attempt(receiver, alert)) for receiver in receivers]
    deadline = time.monotonic() + timeout
    results = []
    for receiver, attempt in attempts:
        ended = attempt.ended.wait(max(deadline - time.monotonic(), 0))
        error = attempt.error if ended else TimeoutError(f"no answer within {timeout:g} s")
        results.append(TestResult(receiver.name, error))
    return results
