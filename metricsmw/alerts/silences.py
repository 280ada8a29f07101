"""Silences: until a time, no receiver is told of a rule, or of any.

They are a note in the server's directory, so that every worker can set one, and the worker that
checks sees it. The rules go on meanwhile: `GET /alerts` shows where they stand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import TypedDict

from metricsmw.alerts.grammar import seconds
from metricsmw.engine.workers.leader import LeaderLock
from metricsmw.engine.workers.membership import ServerMember
from metricsmw.engine.workers.notes import CorruptNoteError

NAME = "silences"
MAX_SECONDS = 30 * 86_400.0
MAX_SILENCES = 100
# Another worker holds the lock for as long as a file takes to be written.
PATIENCE_SECONDS = 2.0


class Silence(TypedDict):
    """No receiver is told of a rule until a time.

    ``type``: the rule's name; None: all rules. ``until`` and ``at``, when it was set: Unix time.
    """

    type: str | None
    until: float
    at: float


def read_silences(member: ServerMember, wall: float) -> list[Silence]:
    """Return the silences in force at Unix time ``wall``."""
    try:
        note = LeaderLock(member, NAME).read()
    except CorruptNoteError:
        return []
    found = note.get("silences")
    rows = [row for row in found if _is_silence(row)] if isinstance(found, list) else []
    return [row for row in rows if wall < row["until"] <= wall + MAX_SECONDS + 1]


def _is_silence(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"type", "until", "at"}
        and (row["type"] is None or isinstance(row["type"], str))
        and all(isinstance(row[name], float) and isfinite(row[name]) for name in ("until", "at"))
    )


def silenced_until(silences: Sequence[Silence], name: str, wall: float) -> float | None:
    """Return the Unix time until which a rule of that name is silenced; None: it is not."""
    found = [
        one["until"] for one in silences if one["type"] in (None, name) and one["until"] > wall
    ]
    return max(found, default=None)


def set_silence(member: ServerMember, type: str | None, until: float, wall: float) -> list[Silence]:
    """Silence a rule, or all of them, for all workers of the server.

    Args:
        member: The monitor.
        type: The rule's name; None: all rules, with which all other silences end.
        until: Unix time, at most 30 days ahead; a time that has passed ends the silence.
        wall: Unix time of now.

    Returns:
        The silences in force.

    Raises:
        ValueError: The time is too far ahead.
        OSError: The silence cannot be saved now.
    """
    if not until <= wall + MAX_SECONDS:
        days = (until - wall) / 86_400
        raise ValueError(f"a silence lasts for at most 30 days, got {days:.1f}")
    lock = LeaderLock(member, NAME)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not lock.acquire():
        if time.monotonic() >= deadline:
            raise OSError("another worker is setting a silence")
        time.sleep(0.01)
    try:
        lock.promise(PATIENCE_SECONDS)  # else a process that is stopped here would keep it
        kept = [
            one for one in read_silences(member, wall) if type is not None and one["type"] != type
        ]
        if until > wall:
            kept.append({"type": type, "until": float(until), "at": float(wall)})
        kept = kept[-MAX_SILENCES:]
        if not lock.write({"silences": kept}):
            raise OSError("another worker is setting a silence")
        return kept
    finally:
        lock.release()


def until_time(text: str, wall: float) -> float:
    """Return the Unix time that a text means.

    Args:
        text: A duration from now, such as "2h", or a time in ISO 8601; without an offset it is in
            UTC.
        wall: Unix time of now.

    Raises:
        ValueError: It is neither, or a time that has passed.
    """
    try:
        return wall + seconds(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        if moment.tzinfo is None:
            moment = datetime.fromisoformat(f"{moment.isoformat()}+00:00")
        until = moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f'a silence lasts for a time such as "2h", or until one such as '
            f'"2026-01-25T08:00:00Z", got {text[:80]!r}'
        ) from error
    if until <= wall:
        raise ValueError(f"a silence lasts until a time that is yet to come, got {text!r}")
    return until
