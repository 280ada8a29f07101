"""When each kind of error was seen first, also by servers before this one."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import TypedDict, cast

from metricsmw.engine.reading.errors import ErrorKind
from metricsmw.engine.storage.errors import OTHER_KEY
from metricsmw.engine.workers.notes import CorruptNoteError

MOST_SEEN = 1000  # kinds that are remembered, as a server has some dozens
# Where nothing can be known of earlier servers, all kinds of so long a time are taken as old.
LEARNING_SECONDS = 3600.0
NOT_KNOWN = (
    "failing: which errors were seen before could not be read, so that all of one hour are taken "
    "as old"
)


class SavedSeen(TypedDict):
    """What is saved: the Unix times of `SeenErrors`, by fingerprint."""

    first_seen: dict[str, float]
    old_before: float


class SeenErrors:
    """The kinds of error that this server and those before it have seen.

    Args:
        saved: What was saved last; None: that cannot be known.
        wall: Unix time.

    Attributes:
        is_saved: Nothing has changed since it was saved.
    """

    def __init__(self, saved: SavedSeen | None, wall: float) -> None:
        self.is_saved = saved is not None
        if saved is None:
            saved = {"first_seen": {}, "old_before": wall + LEARNING_SECONDS}
        self._before = saved["first_seen"]
        self._old_before = saved["old_before"]
        self._noted = dict(self._before)

    def is_learning(self, wall: float) -> bool:
        """Return whether a kind that is seen first at this Unix time is taken as old."""
        return wall < self._old_before

    def saved(self) -> SavedSeen:
        """Return what is to be saved."""
        return {"first_seen": dict(self._noted), "old_before": self._old_before}

    def note(self, kinds: Iterable[ErrorKind], now: float, wall: float, reset_at: float) -> None:
        """Note the kinds of a reading, and correct when they were seen first.

        Args:
            kinds: The kinds.
            now: The moment of the reading, in monotonic seconds.
            wall: The same as Unix time.
            reset_at: Monotonic time of the server's last reset, before which nothing counts; 0.0:
                there was none.
        """
        noted = self._noted
        if reset_at:
            since = wall - (now - reset_at)
            noted = {key: at for key, at in noted.items() if at >= since}
            self._before = {key: at for key, at in self._before.items() if at >= since}
            self._old_before = 0.0
        for kind in kinds:
            if kind.key == OTHER_KEY:
                continue
            key = f"{kind.key:016x}"
            first = kind.first_seen or wall - max(now - kind.first_at, 0.0)
            noted[key] = noted.pop(key, first)  # those that are seen now go last
            before = self._before.get(key)
            if before is not None:
                # What is said to be seen later than now was so by a clock that was set back since.
                kind.first_at = min(kind.first_at, now - (wall - before if before <= wall else inf))
            if first < self._old_before:
                kind.first_at = -inf
        noted = dict(list(noted.items())[-MOST_SEEN:])
        self.is_saved = self.is_saved and noted == self._noted
        self._noted = noted


def as_saved_seen(value: object) -> SavedSeen:
    """Return what was saved; of None, of an alerter that has saved none, that nothing was seen.

    Raises:
        CorruptNoteError: No alerter has saved that.
    """
    if value is None:
        return {"first_seen": {}, "old_before": 0.0}
    if isinstance(value, dict) and value.keys() == SavedSeen.__annotations__.keys():
        first_seen, old_before = value["first_seen"], value["old_before"]
        if isinstance(first_seen, dict) and len(first_seen) <= MOST_SEEN:
            times = [old_before, *first_seen.values()]
            if all(isinstance(at, (int, float)) and isfinite(at) for at in times):
                return cast("SavedSeen", value)
    raise CorruptNoteError("the errors that were seen cannot be read")
