"""A request and its response, as an adapter hands it to the recorder's hot path.

The states, and how each end state is reported to the recorder:

    OPEN -> WATCHED        nothing: the end has to look at more than is usual
    OPEN, WATCHED
         -> COMPLETE       `end`: the response is whole
         -> FAILED         `fail`: an exception, no response, or a server that stops
         -> DISCONNECTED   `abandon`: the client went away
         -> EXCLUDED       `cancel`: nothing is counted

No end state is ever left. Nearly every request takes the way from OPEN to COMPLETE: that one is
inlined in `Recorder.completing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from metricsmw.engine.recording.captures import Evidence


class State(Enum):
    """How far a request's measurement is."""

    OPEN = "open"
    WATCHED = "watched"
    COMPLETE = "complete"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    EXCLUDED = "excluded"


OPEN, WATCHED = State.OPEN, State.WATCHED
COMPLETE, FAILED = State.COMPLETE, State.FAILED
DISCONNECTED, EXCLUDED = State.DISCONNECTED, State.EXCLUDED

ENDS = frozenset({COMPLETE, FAILED, DISCONNECTED, EXCLUDED})

TRANSITIONS: dict[State, frozenset[State]] = {
    OPEN: ENDS | {WATCHED},
    WATCHED: ENDS,
    COMPLETE: frozenset(),
    FAILED: frozenset(),
    DISCONNECTED: frozenset(),
    EXCLUDED: frozenset(),
}

# Stands for environ or scope once the outcome is reported.
NO_CARRIER: dict[str, Any] = {}


class Begun(Protocol):
    """A request that has begun.

    Attributes:
        in_flight: The requests in flight in this worker as it began, itself included.
        start: When it began, in monotonic seconds.
    """

    in_flight: float
    start: float


class Answered(Begun, Protocol):
    """One request and its response.

    Attributes:
        carrier: The request's environ or scope.
        state: How far it is.
        status: The status that the app has sent, None before that.
    """

    carrier: Any
    state: State
    status: int | None

    def complete_otherwise(self) -> None:
        """Report a complete response that is not as most are, or none at all."""

    def evidence(self, carrier: Any, wanted: tuple[str, ...]) -> Evidence:
        """Return what is known of the request; see `CapturedRequest`."""

    def give_up(self) -> None:
        """Report a request that could not be recorded."""


@dataclass(frozen=True)
class Carriers:
    """How the environs or scopes of one middleware are read, once the response is complete.

    Attributes:
        method_key: The key of the request's method.
        scheme_key: The key of its URL scheme.
        marks: A key that there is where a framework has left route or user; another one, or None.
        read: Returns route and user of a request that has a mark, each None where there is none;
            never raises.
        always: Returns whether to read all requests, and not only those that have a mark. Asked
            again now and then, as an app may import its framework late.
        read_any: Reads all requests then.
        user_key: The key of the user of the others, or of what names the user.
        user_of: Returns the user that this names, or None. None: the value is the user.
        fault: Gets the name of `user_of` where that has raised.
        taken_out: The key to be deleted once the response is complete; None: none is.
    """

    method_key: str
    scheme_key: str
    marks: tuple[str, str | None]
    read: Callable[[Any], tuple[str | None, object | None]]
    always: Callable[[], bool]
    read_any: Callable[[Any], tuple[str | None, object | None]]
    user_key: str
    user_of: Callable[[Any], object | None] | None
    fault: Callable[[str], None]
    taken_out: str | None = None


Complete = Callable[[Any], None]
"""Reports that the response of an `Answered` is complete now; see `Recorder.completing`."""
