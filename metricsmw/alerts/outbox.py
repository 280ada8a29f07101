"""An alerter's saved state: the states of its rules, and the alerts that still have to be sent.

Both are one note in the server's directory, replaced as a whole: a change and its notifications are
saved together, and a notification is removed only after its receiver took it. So when the checking
worker dies or hangs, the next one knows what has been sent. Only where it ends between the two does
a receiver get an alert twice, by the same ``Alert.id``; never does it not get it.

Only the leader writes the note. It keeps what it wrote in memory, so that it parses the note once,
when it takes the lead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import TypedDict, TypeGuard, cast

from metricsmw.alerts.alert import Alert, Receiver
from metricsmw.alerts.rules import COMPARISONS, SEVERITIES, Comparison, Severity
from metricsmw.alerts.states import STATES, State
from metricsmw.clock import Clock
from metricsmw.engine.workers.job import PROBLEM
from metricsmw.engine.workers.leader import LeaderLock, saved_notes
from metricsmw.engine.workers.membership import ServerMember
from metricsmw.engine.workers.notes import CorruptNoteError, Note

# Unix times up to the year 9999, the last one that has a date.
MAX_TIME = 253_402_300_000.0
# How many past alerts are kept.
MAX_PAST = 100


class AlertRow(TypedDict):
    """Where a rule stands, as `GET /alerts` lists it. Times are ISO 8601 in UTC.

    ``since``: in pending and firing, when the value was first seen beyond; else the last change,
    None where there was none. ``checked``: when the rule was last looked at. ``silenced_until``:
    until when no receiver is told of it, or None. ``detail``: the new kinds of error that a rule on
    these has found, a line each; else "".
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
    silenced_until: str | None
    detail: str


class PastAlert(TypedDict):
    """An alert that began, and may have ended. Times are ISO 8601 in UTC.

    ``key`` names the rule. ``value``: as it began; ``since``: when the value was first seen beyond;
    ``noticed``: when the rule began to fire; ``ended``: when it was over, None where it still
    fires.
    """

    key: str
    type: str
    severity: Severity
    field: str
    route: str | None
    value: float | None
    comparison: Comparison
    threshold: float
    since: str
    noticed: str
    ended: str | None
    rule: str


class SavedStatus(TypedDict):
    """A rule's `RuleStatus`, and the Unix time of its last change, None where there was none."""

    state: State
    since: float
    beyond_at: float
    value: float | None
    step: int
    told_at: float | None
    carried: bool
    changed: float | None


class PendingNotification(TypedDict):
    """An alert that some receivers (their keys) still have to get, queued at monotonic seconds."""

    alert: dict[str, str | float | bool | None]
    receivers: list[str]
    queued: float


class AlertState(TypedDict):
    """All that an alerter saves; ``alerts`` and ``statuses`` by rule, ``past`` oldest first."""

    alerts: dict[str, AlertRow]
    statuses: dict[str, SavedStatus]
    past: list[PastAlert]
    outbox: list[PendingNotification]
    sent: int
    failed_attempts: int
    given_up: int


def no_state() -> AlertState:
    """Return the state of an alerter that has never checked."""
    return {
        "alerts": {},
        "statuses": {},
        "past": [],
        "outbox": [],
        "sent": 0,
        "failed_attempts": 0,
        "given_up": 0,
    }


class AlertOutbox:
    """The saved state of an alerter, and the alerts in it that wait.

    Args:
        leader: The lock of the alerter's job.
        clock: The monitor's clock.
        max_waiting: How many alerts may wait; the oldest are given up for newer ones.
    """

    def __init__(self, leader: LeaderLock, clock: Clock, max_waiting: int) -> None:
        self._leader = leader
        self._clock = clock
        self._max_waiting = max_waiting
        self._known: AlertState | None = None
        self._term = 0  # of the lead in which `_known` was read
        self._lock = threading.RLock()
        self.problem: str | None = None
        """What `/health` is to say of the alerter; None: that it is operational."""

    def read(self) -> AlertState:
        """Return the note that any worker saved last; not to be changed."""
        with self._lock:
            if self._leader.is_leader:
                term = self._leader.terms
                if self._known is None or self._term != term:
                    self._known, self._term = self._parse(), term
                return self._known
        return self._parse()

    def _parse(self) -> AlertState:
        try:
            return as_alert_state(self._leader.read())
        except CorruptNoteError:
            return no_state()

    def _save(self, state: AlertState) -> bool:
        is_saved = self._leader.write(
            cast("Mapping[str, object]", {**state, PROBLEM: self.problem})
        )
        if is_saved:
            self._known, self._term = state, self._leader.terms
        return is_saved

    def publish(
        self,
        alerts: dict[str, AlertRow],
        statuses: dict[str, SavedStatus],
        past: list[PastAlert],
        messages: Sequence[Alert],
        receivers: Sequence[Receiver],
    ) -> bool:
        """Save where the rules stand, and queue alerts for their receivers.

        Args:
            alerts: The rows, by rule.
            statuses: The statuses, by rule.
            past: The past alerts.
            messages: The alerts to be sent.
            receivers: All receivers; after a reload there may be others than before.

        Returns:
            Whether it was saved; not where another worker has taken the lead.

        Raises:
            OSError: There is no room; nothing has changed then.
        """
        now = self._clock.monotonic()
        with self._lock:
            before = self.read()
            keys = {receiver.key for receiver in receivers}
            kept = [
                {**entry, "receivers": [one for one in entry["receivers"] if one in keys]}
                for entry in before["outbox"]
            ]
            new = [
                {
                    "alert": alert.to_dict(),
                    "receivers": [one.key for one in receivers if alert.severity in one.severities],
                    "queued": now,
                }
                for alert in messages
            ]
            outbox = cast("list[PendingNotification]", [e for e in kept + new if e["receivers"]])
            surplus = max(len(outbox) - self._max_waiting, 0)
            return self._save(
                {
                    **before,
                    "alerts": alerts,
                    "statuses": statuses,
                    "past": past,
                    "outbox": outbox[surplus:],
                    "given_up": before["given_up"] + surplus,
                }
            )

    def waiting(self, receiver: str) -> tuple[Alert, float] | None:
        """Return the oldest alert for a receiver, and its age; see `delivery.Outbox`."""
        with self._lock:
            if not self._leader.is_leader:
                return None
            now = self._clock.monotonic()
            for entry in self.read()["outbox"]:
                if receiver in entry["receivers"]:
                    alert = Alert(**cast("dict[str, object]", entry["alert"]))  # type: ignore[arg-type]
                    return alert, now - entry["queued"]
        return None

    def done(self, receiver: str, alert: Alert, delivered: bool) -> None:
        """Remove an alert for a receiver; see `delivery.Outbox`."""
        with self._lock:
            if not self._leader.is_leader:
                return
            before = self.read()
            outbox: list[PendingNotification] = []
            taken = 0
            for entry in before["outbox"]:
                receivers = entry["receivers"]
                if entry["alert"]["id"] == alert.id and receiver in receivers:
                    receivers = [one for one in receivers if one != receiver]
                    taken += 1
                if receivers:
                    outbox.append({**entry, "receivers": receivers})
            state: AlertState = {**before, "outbox": outbox}
            state["sent" if delivered else "given_up"] += taken
            state["failed_attempts"] += 0 if delivered else taken
            self._save(state)

    def failed(self) -> None:
        """Count an attempt that failed; see `delivery.Outbox`."""
        with self._lock:
            if self._leader.is_leader:
                before = self.read()
                self._save({**before, "failed_attempts": before["failed_attempts"] + 1})

    def after_fork(self) -> None:
        """Forget, in a forked child, what the parent leads."""
        self._lock = threading.RLock()
        self._known = None


def get_alerts(member: ServerMember) -> tuple[list[AlertRow], dict[str, int]]:
    """Return where every rule of every alerter of the server stands, and what became of alerts.

    Args:
        member: The monitor.

    Returns:
        The rows, the worst first; and the numbers ``waiting``, ``sent``, ``failed_attempts`` and
        ``given_up``.
    """
    rows: list[AlertRow] = []
    counts = {"waiting": 0, "sent": 0, "failed_attempts": 0, "given_up": 0}
    for _, note in saved_notes(member):
        try:
            if isinstance(note, CorruptNoteError) or "alerts" not in note:
                continue
            state = as_alert_state(note)
        except CorruptNoteError:
            continue
        rows += state["alerts"].values()
        counts["waiting"] += len(state["outbox"])
        counts["sent"] += state["sent"]
        counts["failed_attempts"] += state["failed_attempts"]
        counts["given_up"] += state["given_up"]
    order = ("firing", "pending", "resolved", "inactive")
    rows.sort(key=lambda row: (order.index(row["state"]), -SEVERITIES.index(row["severity"])))
    return rows, counts


def get_past_alerts(member: ServerMember) -> list[PastAlert]:
    """Return the alerts that have begun, of every alerter of the server, the newest first."""
    rows: list[PastAlert] = []
    for _, note in saved_notes(member):
        with suppress(CorruptNoteError):
            if not isinstance(note, CorruptNoteError) and "alerts" in note:
                rows += as_alert_state(note)["past"]
    return sorted(rows, key=lambda row: row["noticed"], reverse=True)


# --- validation ----------------------------------------------------------------------------------

Check = Callable[[object], bool]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _is_time(value: object) -> bool:
    return _is_number(value) and 0 <= value <= MAX_TIME


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _one_of(*allowed: str) -> Check:
    return lambda value: isinstance(value, str) and value in allowed


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _record(**checks: Check) -> Check:
    """Return a check for an object with exactly these fields."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == checks.keys()
        and all(check(value[name]) for name, check in checks.items())
    )


_RULE: dict[str, Check] = {
    "type": _is_text,
    "severity": _one_of(*SEVERITIES),
    "field": _is_text,
    "route": _or_none(_is_text),
    "value": _or_none(_is_number),
    "comparison": _one_of(*COMPARISONS),
    "threshold": _is_number,
    "rule": _is_text,
}
_ROW = _record(
    **_RULE,
    state=_one_of(*STATES),
    method=_or_none(_is_text),
    since=_or_none(_is_text),
    checked=_is_text,
    silenced_until=_or_none(_is_text),
    detail=_is_text,
)
_PAST = _record(
    **_RULE,
    key=_is_text,
    since=_is_text,
    noticed=_is_text,
    ended=_or_none(_is_text),
)
_ALERT = _record(
    **_RULE,
    id=_is_text,
    state=_one_of("firing", "resolved"),
    since=_is_text,
    at=_is_text,
    host=_is_text,
    link=_or_none(_is_text),
    app=_is_text,
    is_repeat=_is_flag,
    detail=_is_text,
)
_STATUS = _record(
    state=_one_of(*STATES),
    since=_is_number,
    beyond_at=_is_time,
    value=_or_none(_is_number),
    step=_is_count,
    told_at=_or_none(_is_number),
    carried=_is_flag,
    changed=_or_none(_is_time),
)
_PENDING = _record(alert=_ALERT, receivers=_list_of(_is_text), queued=_is_number)
_STATE: dict[str, Check] = {
    "alerts": _dict_of(_ROW),
    "statuses": _dict_of(_STATUS),
    "past": _list_of(_PAST),
    "outbox": _list_of(_PENDING),
    "sent": _is_count,
    "failed_attempts": _is_count,
    "given_up": _is_count,
}


def as_alert_state(note: Note) -> AlertState:
    """Return the state in an alerter's note; that of an alerter without a check for an empty note.

    Raises:
        CorruptNoteError: No alerter has saved that.
    """
    if not note.keys() & _STATE.keys():
        return no_state()
    for name, check in _STATE.items():
        if not check(note.get(name)):
            raise CorruptNoteError(f"{name} cannot be read")
    return cast("AlertState", {name: note[name] for name in _STATE})
