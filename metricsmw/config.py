"""The settings of a monitor, validated once, with errors that name the allowed range."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from metricsmw.validation import number, whole

Shared = Literal[False, True, "auto"]

# setting -> (lowest, highest), whole numbers
RANGES: dict[str, tuple[int, int]] = {
    "window_seconds": (10, 3600),
    "user_timeout_seconds": (1, 86_400),
    "max_history_minutes": (1, 1440),
    "max_routes": (1, 10_000),
    "max_users": (1, 1_000_000),
    "history_days": (1, 3650),
}
# What is told of requests and errors only where the monitor's setting says so.
CAPTURE = ("path", "query", "user", "message")
MAX_NAME = 100
EVENT_STREAM = "text/event-stream"
# A content type without its parameters (RFC 9110, section 8.3.1).
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+/[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class Settings:
    """Settings of a `MetricsMonitor`; see there for their meaning.

    Raises `ValueError` for a value outside its range (see `RANGES`) and `TypeError` for one of
    another type than a whole number.
    """

    window_seconds: int = 300
    user_timeout_seconds: int = 300
    max_history_minutes: int = 60
    max_routes: int = 200
    max_users: int = 10_000
    shared: Shared = False
    history_days: int = 30
    name: str = ""
    errors_from: Literal[400, 500] = 400
    event_streams: Iterable[str] = ()
    capture: tuple[str, ...] = ()
    capture_threshold_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
                object.__setattr__(self, name, value)
            try:
                whole(name, value, lowest, highest)
            except TypeError as error:
                if isinstance(value, float):  # a number, but none that is allowed
                    raise ValueError(str(error)) from None
                raise
        if self.errors_from not in (400, 500) or isinstance(self.errors_from, float):
            raise ValueError(f"errors_from must be 400 or 500, got {self.errors_from!r}")
        object.__setattr__(self, "event_streams", _event_streams(self.event_streams))
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {self.name!r}")
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            raise ValueError(
                f"name must be one line of up to {MAX_NAME} characters, got {self.name!r}"
            )
        if not (self.shared is True or self.shared is False or self.shared == "auto"):
            raise ValueError(f'shared must be False, True or "auto", got {self.shared!r}')
        object.__setattr__(self, "capture", _captured(self.capture))
        number("capture_threshold_seconds", self.capture_threshold_seconds, 0.001, 3600, "seconds")

    @property
    def step(self) -> float:
        """Seconds by which the window slides: a sixtieth of it."""
        return self.window_seconds / 60


def _event_streams(given: Iterable[str]) -> frozenset[str]:
    """Return the content types and templates whose streams are event streams."""
    try:
        names = [given] if isinstance(given, str) else list(given)
    except TypeError:
        raise _no_event_streams(given) from None
    for name in names:
        if not isinstance(name, str):
            raise _no_event_streams(name)
        if not name.startswith("/") and not _CONTENT_TYPE.fullmatch(name):
            raise ValueError(
                "event_streams must hold content types, such as 'application/x-ndjson', and "
                f"templates of routes, which begin with a slash, got {name!r}"
            )
    return frozenset(name if name.startswith("/") else name.lower() for name in names)


def _no_event_streams(given: object) -> TypeError:
    return TypeError(
        f"event_streams must hold content types and templates of routes (str), got {given!r}"
    )


def _captured(names: Iterable[str]) -> tuple[str, ...]:
    """Return what is told of requests and errors, in the order of `CAPTURE`.

    Raises:
        TypeError: It is no tuple, list or set.
        ValueError: It has something else than what `CAPTURE` has.
    """
    allowed = ", ".join(f'"{name}"' for name in CAPTURE)
    if not isinstance(names, (tuple, list, set, frozenset)):
        raise TypeError(f"capture must be a tuple of any of {allowed}, got {names!r}")
    for name in names:
        if name not in CAPTURE:
            raise ValueError(f"capture may have {allowed}, got {name!r}")
    return tuple(name for name in CAPTURE if name in names)
