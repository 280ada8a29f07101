"""The errors of a server by their kind: the rows of all workers, joined by fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypedDict, get_args

from metricsmw.engine.storage.errors import (
    MINUTES,
    OTHER_KEY,
    Frame,
    StoredError,
    minute_of,
)
from metricsmw.engine.storage.keys import OTHER
from metricsmw.snapshot import iso_timestamp
from metricsmw.validation import whole

Sort = Literal["last_seen", "count"]
SORTS: tuple[Sort, ...] = get_args(Sort)
DEFAULT_LIMIT, MAX_LIMIT = 50, 1000
NEW_SECONDS = 300  # a kind is new for so long
MAX_NEW_SECONDS = 86_400
MOST_ROUTES = 20


class FrameRow(TypedDict):
    """One line of a traceback; ``own``: it is the app's own."""

    file: str
    line: int
    module: str
    function: str
    own: bool


class ErrorRow(TypedDict):
    """One kind of error, over all workers since the last reset.

    ``type``: the exception's, or "HTTP 503" of answers without one. ``where``: the innermost line
    of the app's own; None where there is none. ``bars``: how often in each minute of the last hour,
    the oldest first, the last one in progress. ``routes``: method and template, with ``<other>``
    where there are more. ``workers``: the processes that saw it. ``traceback``: of the first time,
    outermost first, with ``cut`` frames left out before the one at ``cut_at``. ``message``: None
    unless the monitor keeps it. ``new``: it was seen first not long ago.
    """

    fingerprint: str
    type: str
    status: int | None
    where: FrameRow | None
    message: str | None
    count: int
    bars: list[int]
    first_seen: str
    last_seen: str
    new: bool
    routes: list[str]
    workers: list[int]
    traceback: list[FrameRow]
    cut: int
    cut_at: int


class ErrorKind:
    """What all workers have seen of one kind.

    Attributes:
        key: The fingerprint.
        text: Its texts, of the worker that saw it first.
        count: How often it was seen.
        minutes: The same by minute.
        first_at: When it was seen first, monotonic seconds.
        last_at: When it was seen last.
        first_seen: The first as Unix time; 0.0: not known.
        last_seen: The last as Unix time.
        status: The status of the last answer.
        routes: The routes.
        has_more_routes: There are others.
        pids: The processes.
    """

    def __init__(self, one: StoredError) -> None:
        self.key, self.text = one.key, one.text
        self.count, self.minutes = one.total, dict(one.minutes)
        self.first_at, self.first_seen = one.first_at, one.first_seen
        self.last_at, self.last_seen, self.status = one.last_at, one.last_seen, one.status
        self.routes = dict.fromkeys(one.routes)
        self.has_more_routes = one.has_more_routes
        self.pids = {one.pid}

    def add(self, one: StoredError) -> None:
        """Add what another worker has seen."""
        self.count += one.total
        for minute, count in one.minutes.items():
            self.minutes[minute] = self.minutes.get(minute, 0) + count
        if one.first_at < self.first_at:
            self.first_at, self.first_seen, self.text = one.first_at, one.first_seen, one.text
        if one.last_at > self.last_at:
            self.last_at, self.last_seen, self.status = one.last_at, one.last_seen, one.status
        self.routes |= dict.fromkeys(one.routes)
        self.has_more_routes |= one.has_more_routes
        self.pids.add(one.pid)

    @property
    def where(self) -> Frame | None:
        """The innermost line of the app's own."""
        return next((frame for frame in reversed(self.text.frames) if frame.is_own), None)

    def is_new(self, now: float, seconds: float) -> bool:
        """Return whether it was seen first in the last so many seconds before monotonic now.

        What all further kinds share is not one that was seen first at any time.
        """
        return self.key != OTHER_KEY and now - self.first_at <= seconds

    def bars(self, now: float) -> list[int]:
        """Return the counts of the last hour's minutes, the oldest first."""
        last = minute_of(now)
        return [self.minutes.get(minute, 0) for minute in range(last - MINUTES + 1, last + 1)]

    def row(self, now: float, wall: float, new_seconds: float) -> ErrorRow:
        """Return it as `GET /errors` shows it.

        Args:
            now: The moment, in monotonic seconds.
            wall: The same as Unix time.
            new_seconds: It is new for so long.
        """
        where = self.where
        routes = list(self.routes)[:MOST_ROUTES]
        if self.has_more_routes or len(self.routes) > MOST_ROUTES:
            routes.append(OTHER)
        return {
            "fingerprint": f"{self.key:016x}",
            "type": self.text.type,
            "status": self.status or None,
            "where": None if where is None else frame_row(where),
            "message": self.text.message,
            "count": self.count,
            "bars": self.bars(now),
            "first_seen": iso_timestamp(self.first_seen or wall - max(now - self.first_at, 0.0)),
            "last_seen": iso_timestamp(self.last_seen),
            "new": self.is_new(now, new_seconds),
            "routes": routes,
            "workers": sorted(self.pids),
            "traceback": [frame_row(frame) for frame in self.text.frames],
            "cut": self.text.cut,
            "cut_at": self.text.cut_at,
        }


def frame_row(frame: Frame) -> FrameRow:
    """Return a line of a traceback as `GET /errors` shows it."""
    return {
        "file": frame.file,
        "line": frame.line,
        "module": frame.module,
        "function": frame.function,
        "own": frame.is_own,
    }


def place_text(where: Frame) -> str:
    """Return a place in one line: module, function, line."""
    return f"{where.module}.{where.function}:{where.line}"


def join_errors(rows: Iterable[StoredError]) -> list[ErrorKind]:
    """Return the kinds of all workers, those that were seen last first."""
    kinds: dict[int, ErrorKind] = {}
    for one in rows:
        kind = kinds.get(one.key)
        if kind is None:
            kinds[one.key] = ErrorKind(one)
        else:
            kind.add(one)
    return sorted(kinds.values(), key=lambda kind: (-kind.last_at, kind.key))


def error_rows(
    kinds: Iterable[ErrorKind],
    now: float,
    wall: float,
    limit: int,
    sort: Sort,
    new_seconds: int,
    *,
    messages: bool,
) -> list[ErrorRow]:
    """Return the rows of the first kinds in an order.

    Args:
        kinds: The kinds, those that were seen last first.
        now: The moment, in monotonic seconds.
        wall: The same as Unix time.
        limit: At most so many, at least 1.
        sort: "last_seen" or "count", the latest or most frequent first.
        new_seconds: A kind is new for so long, 1 to 86400.
        messages: Tell the messages that other workers may have kept.

    Raises:
        TypeError: A number is no whole number.
        ValueError: A number is out of its range, or there is no such order.
    """
    whole("limit", limit, 1)
    whole("new_seconds", new_seconds, 1, MAX_NEW_SECONDS)
    if sort not in SORTS:
        raise ValueError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
    found = list(kinds)
    if sort == "count":
        found.sort(key=lambda kind: -kind.count)
    rows = [kind.row(now, wall, new_seconds) for kind in found[:limit]]
    if not messages:
        for row in rows:
            row["message"] = None
    return rows
