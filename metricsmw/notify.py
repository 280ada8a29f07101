"""Telling people: what an alert says, who receives it, and threads that send it.

A receiver is a callable, an Apprise URL, or the log. Each has a courier: a daemon thread that takes
what waits for it, one after the other, so that a receiver that hangs delays neither a request, nor
a check, nor another receiver. What fails is tried again after 1 s, 2 s, 4 s, … up to a minute,
for an hour. A call that is out of time is not called again while it hangs, and counts as delivered
if it ends well after all: a slow receiver is told once.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol

from metricsmw.rules import Comparison, Severity

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

logger = logging.getLogger("metricsmw.alerts")

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
GIVE_UP_SECONDS = 3600.0


@dataclass(frozen=True)
class Alert:
    """What a receiver is told: a rule began to fire, or has recovered. `str` of it is a message.

    ``since`` is when the value was first seen beyond its threshold and ``at`` when this change was
    noticed, both ISO 8601 in UTC. ``id`` stays the same where a message has to be sent again.
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

    @property
    def title(self) -> str:
        """One line: what, and where."""
        where = self.host if self.route is None else f"{self.route} on {self.host}"
        mark = "ALERT" if self.state == "firing" else "RESOLVED"
        return f"{mark}: {self.type} ({self.severity}), {where}"

    def __str__(self) -> str:
        value = "without data" if self.value is None else f"{self.value:.10g}"
        state = "is firing" if self.state == "firing" else "has recovered"
        threshold = f"{self.comparison} {self.threshold:.10g}"
        lines = [
            f"{self.type} {state}: {self.field} is {value}, threshold {threshold}.",
            f"Since: {self.since}",
            f"Noticed: {self.at}",
        ]
        if self.route is not None:
            lines.append(f"Route: {self.route}")
        lines += [f"Severity: {self.severity}", f"Host: {self.host}", f"Rule: {self.rule}"]
        if self.link is not None:
            lines.append(f"Dashboard: {self.link}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str | float | None]:
        """The fields by name."""
        return asdict(self)


ALERT_FIELDS = frozenset(field.name for field in fields(Alert))

Receive = Callable[[Alert], object]


@dataclass(frozen=True)
class Receiver:
    """Somebody to tell; ``name`` is for the log, and shows no secret."""

    name: str
    receive: Receive


def to_log(alert: Alert) -> None:
    """The default receiver."""
    logger.warning("%s\n%s", alert.title, alert)


def as_receiver(notify: Receive | str) -> Receiver:
    """The receiver that `notify` means: a callable, or an Apprise URL.

    Raises `ModuleNotFoundError` where Apprise is needed and not installed, `ValueError` for a URL
    that it does not know, `TypeError` for anything else.
    """
    if isinstance(notify, str):
        return _apprise(notify)
    if not callable(notify):
        raise TypeError(f"notify must be a callable or an Apprise URL, got {notify!r}")
    return Receiver(getattr(notify, "__qualname__", type(notify).__qualname__), notify)


def _apprise(url: str) -> Receiver:
    # What follows the scheme is full of secrets.
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=:)", url)
    name = f"{scheme[0]}://…" if scheme else "the URL"
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'notify={name!r} needs Apprise; install it with: pip install "metricsmw[alerts]"'
        ) from error
    sender = apprise.Apprise()
    if not sender.add(url):
        raise ValueError(f"Apprise cannot send to {name}: unknown service, or not its URL's form")
    kinds = {
        "info": apprise.NotifyType.INFO,
        "warning": apprise.NotifyType.WARNING,
        "critical": apprise.NotifyType.FAILURE,
    }

    def receive(alert: Alert) -> None:
        firing = alert.state == "firing"
        kind = kinds[alert.severity] if firing else apprise.NotifyType.SUCCESS
        if not sender.notify(body=str(alert), title=alert.title, notify_type=kind):
            raise ConnectionError("Apprise could not deliver it; its own log says why")

    return Receiver(name, receive)


class Outbox(Protocol):
    """What waits to be told; it outlives this worker."""

    def waiting(self, receiver: int) -> tuple[Alert, float] | None:
        """The oldest alert for that receiver and its age in seconds; None: none, or not our turn"""

    def done(self, receiver: int, alert: Alert, delivered: bool) -> None:
        """It was delivered, or was given up; it waits no longer."""

    def failed(self, receiver: int) -> None:
        """An attempt failed."""


class _Attempt:
    """One call of a receiver, in a thread of its own, as nothing else can be given up."""

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


class Courier:
    """Brings one receiver what waits for it, for as long as `Outbox.waiting` names something."""

    def __init__(
        self,
        monitor: MetricsMonitor,
        receiver: Receiver,
        number: int,
        outbox: Outbox,
        timeout: float,
    ) -> None:
        self._monitor = monitor
        self._receiver = receiver
        self._number = number
        self._outbox = outbox
        self._timeout = timeout
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._hanging: _Attempt | None = None
        self._told = False  # that it fails

    def wake(self) -> None:
        """Something may be waiting."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not running and not self._stopping.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="metricsmw courier", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Start nothing more. An attempt in progress is left to its end."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait up to so many seconds for an attempt in progress, once stopped."""
        thread = self._thread
        if thread is not None:
            thread.join(max(timeout, 0))

    def _run(self) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                with self._lock:
                    waiting = (
                        None if self._stopping.is_set() else self._outbox.waiting(self._number)
                    )
                    if waiting is None:
                        self._thread = None
                        return
                if self._deliver(*waiting):
                    delay = FIRST_DELAY
                    continue
            except Exception:
                self._monitor.recorder.fault("sending notifications")
            self._stopping.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _deliver(self, alert: Alert, age: float) -> bool:
        """Whether that alert is done with."""
        error = self._attempt(alert)
        if error is None:
            self._told = False
            self._outbox.done(self._number, alert, delivered=True)
            return True
        self._outbox.failed(self._number)
        if not self._told:
            self._told = True
            logger.error(
                "metricsmw: %s could not be told of %s, and will be tried again: %s",
                self._receiver.name,
                alert.title,
                error,
            )
        if age < GIVE_UP_SECONDS:
            return False
        logger.error("metricsmw: %s is not told of %s any more", self._receiver.name, alert.title)
        self._outbox.done(self._number, alert, delivered=False)
        return True

    def _attempt(self, alert: Alert) -> BaseException | None:
        attempt = self._hanging
        if attempt is None or attempt.alert.id != alert.id:
            attempt = _Attempt(self._receiver, alert)
        if not attempt.ended.wait(self._timeout):
            self._hanging = attempt
            return TimeoutError(f"no answer within {self._timeout:g} s")
        self._hanging = None
        return attempt.error
