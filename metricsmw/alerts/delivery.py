"""Telling people: what an alert says, who receives it, and threads that send it.

A receiver is a callable, an Apprise URL, or the log. Each has a sender: a daemon thread that takes
what waits for it, one after the other, so that a receiver that hangs delays neither a request, nor
a check, nor another receiver. What fails is tried again after 1 s, 2 s, 4 s, … up to a minute,
for an hour. A call that is out of time is not called again while it hangs, and counts as delivered
if it ends well after all: a slow receiver is told once. So is one whose outcome cannot be noted, as
on a full disk: then only the noting is tried again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

from metricsmw.alerts.rules import Comparison, Severity

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
    """Somebody to tell; ``name`` is for the log, and shows no secret.

    ``key`` tells it from the others of its alerter, also after a reload in another order.
    """

    name: str
    receive: Receive
    key: str


def to_log(alert: Alert) -> None:
    """The default receiver."""
    logger.warning("%s\n%s", alert.title, alert)


def as_receivers(notify: Receive | str | Iterable[Receive | str] | None) -> list[Receiver]:
    """Whom `notify` means: a callable, Apprise URLs, or several of these; without any, the log.

    Raises `ModuleNotFoundError` where Apprise is needed and not installed, `ValueError` for a URL
    that it does not know, `TypeError` for anything else.
    """
    if notify is None:
        notify = ()
    if isinstance(notify, str) or callable(notify) or not isinstance(notify, Iterable):
        notify = (notify,)
    found: list[Receiver] = []
    for one in list(notify) or [to_log]:
        if isinstance(one, str):
            found += _apprise(one)
        elif callable(one):
            name = getattr(one, "__qualname__", type(one).__qualname__)
            found.append(Receiver(name, one, name))
        else:
            raise TypeError(f"notify must be a callable or an Apprise URL, got {one!r}")
    seen: Counter[str] = Counter()
    for place, receiver in enumerate(found):
        seen[receiver.key] += 1
        found[place] = replace(receiver, key=f"{receiver.key} {seen[receiver.key]}")
    return found


def _apprise(urls: str) -> list[Receiver]:
    # What follows the scheme is full of secrets.
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=:)", urls)
    name = f"{scheme[0]}://…" if scheme else "the URL"
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'notify={name!r} needs Apprise; install it with: pip install "metricsmw[alerts]"'
        ) from error
    services = apprise.Apprise()
    if not services.add(urls):
        raise ValueError(f"Apprise cannot send to {name}: unknown service, or not its URL's form")
    kinds = {
        "info": apprise.NotifyType.INFO,
        "warning": apprise.NotifyType.WARNING,
        "critical": apprise.NotifyType.FAILURE,
    }

    def receiver(service: apprise.NotifyBase) -> Receiver:
        sender = apprise.Apprise()
        sender.add(service)

        def receive(alert: Alert) -> None:
            firing = alert.state == "firing"
            sent = sender.notify(
                body=str(alert),
                title=alert.title,
                notify_type=kinds[alert.severity] if firing else apprise.NotifyType.SUCCESS,
                # Else a service that wants HTML takes the `<id>` of a route for a tag.
                body_format=apprise.NotifyFormat.TEXT,
            )
            if not sent:
                raise ConnectionError("Apprise could not deliver it; its own log says why")

        return Receiver(name, receive, f"{name} {hashlib.sha256(urls.encode()).hexdigest()[:16]}")

    # One each, as those that took a message are not to get it again because another did not.
    return [receiver(service) for service in services]


class Outbox(Protocol):
    """What waits to be told; it outlives this worker."""

    def waiting(self, receiver: str) -> tuple[Alert, float] | None:
        """The oldest alert for that receiver and its age in seconds; None: none, or not our turn"""

    def done(self, receiver: str, alert: Alert, delivered: bool) -> None:
        """It was delivered, or the last attempt failed; it waits no longer."""

    def failed(self) -> None:
        """An attempt failed, and there will be another."""


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


class Sender:
    """Brings one receiver what waits for it, for as long as `Outbox.waiting` names something."""

    def __init__(
        self,
        monitor: MetricsMonitor,
        receiver: Receiver,
        outbox: Outbox,
        timeout: float,
    ) -> None:
        self._monitor = monitor
        self._receiver = receiver
        self._outbox = outbox
        self._timeout = timeout
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._hanging: _Attempt | None = None
        self._told = False  # that it fails
        self._settled: tuple[str, bool] | None = None  # the last alert's id; whether delivered

    def wake(self) -> None:
        """Something may be waiting."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not running and not self._stopping.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="metricsmw sender", daemon=True
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
                        None
                        if self._stopping.is_set()
                        else self._outbox.waiting(self._receiver.key)
                    )
                    if waiting is None:
                        self._thread = None
                        return
                if self._deliver(*waiting):
                    delay = FIRST_DELAY
                    continue
            except Exception:
                self._monitor.faults.report("sending notifications")
            self._stopping.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _deliver(self, alert: Alert, age: float) -> bool:
        """Whether that alert is done with."""
        if self._settled is None or self._settled[0] != alert.id:
            error = self._attempt(alert)
            if error is not None and not self._gives_up(alert, age, error):
                self._outbox.failed()
                return False
            self._settled = (alert.id, error is None)
        self._outbox.done(self._receiver.key, alert, delivered=self._settled[1])
        return True

    def _gives_up(self, alert: Alert, age: float, error: BaseException) -> bool:
        """Say what an attempt that failed means; whether it was the last one."""
        name = self._receiver.name
        if not self._told:
            self._told = True
            logger.error(
                "metricsmw: %s could not be told of %s, and will be tried again: %s",
                name,
                alert.title,
                error,
            )
        if age < GIVE_UP_SECONDS:
            return False
        logger.error("metricsmw: %s is not told of %s any more", name, alert.title)
        return True

    def _attempt(self, alert: Alert) -> BaseException | None:
        attempt = self._hanging
        if attempt is None or attempt.alert.id != alert.id:
            attempt = _Attempt(self._receiver, alert)
        if not attempt.ended.wait(self._timeout):
            self._hanging = attempt
            return TimeoutError(f"no answer within {self._timeout:g} s")
        self._hanging = None
        self._told = self._told and attempt.error is not None
        return attempt.error
