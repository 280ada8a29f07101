"""The states of an alert rule. Pure: no clock, thread or file.

    inactive --beyond--> pending --beyond for so long--> firing --past `clear`--> resolved
    pending --no longer beyond--> inactive               resolved --beyond--> pending

Without ``for_seconds`` a rule fires at once.
A value that is missing (no request, so no error rate and no latency) is not beyond anything; one
that is not a number (NaN: it is not known) says nothing, and changes nothing. A value of too few
requests lets no rule begin to fire; a rule that fires already it keeps firing while it is beyond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from typing import Literal, NamedTuple, get_args

from metricsmw.alerts.rules import AnyRule, is_beyond

State = Literal["inactive", "pending", "firing", "resolved"]
STATES: tuple[State, ...] = get_args(State)


class Look(NamedTuple):
    """What a rule found at one moment.

    Attributes:
        at: Monotonic time of the moment.
        wall: Unix time of it.
        value: The value; None: there is none, NaN: it is not known.
        is_enough: Whether the rule may begin to fire on it.
    """

    at: float
    wall: float
    value: float | None
    is_enough: bool = True


@dataclass(frozen=True)
class RuleStatus:
    """The state of a rule.

    Attributes:
        state: The state.
        since: The monotonic time at which the state began.
        beyond_at: In pending and firing, the Unix time at which the value was first seen beyond.
        value: The last value that was a number; None where there was none.
        step: The number of the last step that was looked at, of a rule that goes by steps.
        told_at: The monotonic time at which receivers were last told that it fires; None where
            they know of nothing.
        carried: It fired when an earlier server stopped, and this one has not seen enough yet.
    """

    state: State = "inactive"
    since: float = 0.0
    beyond_at: float = 0.0
    value: float | None = None
    step: int = 0
    told_at: float | None = None
    carried: bool = False


def advance(rule: AnyRule, status: RuleStatus, look: Look, least_seconds: float = 0) -> RuleStatus:
    """Return the status after a look.

    Args:
        rule: The rule.
        status: Its status before.
        look: What was found.
        least_seconds: The rule fires after having been beyond for so long, or for its own
            ``for_seconds`` where these are more.
    """
    at, wall, value, is_enough = look
    if value is not None and isnan(value):
        return status
    status = replace(status, value=value)
    if status.state == "firing":
        clear = rule.threshold if rule.clear is None else rule.clear
        if is_beyond(rule, value, clear):
            return status
        return replace(status, state="resolved", since=at)
    if not is_enough or not is_beyond(rule, value, rule.threshold):
        if status.state != "pending":
            return status
        return replace(status, state="inactive", since=at)
    if status.state != "pending":
        status = replace(status, state="pending", since=at, beyond_at=wall)
    # Times of steps are products: what rounding takes away is no time.
    rounding = 1e-6 if least_seconds else 0.0
    if at - status.since >= max(rule.for_seconds, least_seconds) - rounding:
        return replace(status, state="firing", since=at)
    return status
