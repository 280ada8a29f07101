"""What readers have seen of the workers, for those readers that have not looked before.

Since when a worker finishes no request is known from two looks at it. The file `sightings` in the
server's directory has the earlier one, whoever looked: JSON, replaced as a whole, without a lock.
Of two readers that write at the same time the later one stays, and the other one writes again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from metricsmw.engine.directory import Directory
from metricsmw.engine.workers.notes import CorruptNoteError, note_text, parse_note

SIGHTINGS = "sightings"
MAX_BYTES = 1 << 20
# Who reads more often shares what it has seen no oftener.
SHARE_SECONDS = 1.0


class Sighting(NamedTuple):
    """What was seen of a worker since it last finished a request. Times are monotonic seconds.

    Attributes:
        pid: Its process id.
        joined: When it joined the server.
        counted: What stands for all that it had counted.
        at: When it was seen last.
        since: When it was seen first with no more than this.
        busy_since: The same with requests in flight; None where there were none.
        server_requests: What the server had counted by `since`.
    """

    pid: int
    joined: float
    counted: int
    at: float
    since: float
    busy_since: float | None
    server_requests: int

    def is_as(self, other: Sighting) -> bool:
        """Return whether another one is of the same worker, which has finished nothing between."""
        return self[:3] == other[:3]

    def plus(self, other: Sighting) -> Sighting:
        """Return what this one and another one of the same segment say together."""
        late, early = (self, other) if self.at >= other.at else (other, self)
        if not late.is_as(early):
            return late
        first = min(late, early, key=lambda one: one.since)
        busy = [one.busy_since for one in (late, early) if one.busy_since is not None]
        return late._replace(
            since=first.since,
            busy_since=None if late.busy_since is None else min(busy),
            server_requests=first.server_requests,
        )

    def adds_to(self, other: Sighting | None) -> bool:
        """Return whether this one says what an earlier one does not."""
        if other is None or not self.is_as(other) or self.since < other.since:
            return True
        return (self.busy_since is None) != (other.busy_since is None)


class Readable(Protocol):
    """A server's directory, as far as it is needed here."""

    def read(self, name: str, most: int) -> bytes:
        """Return what a file holds, ``most`` bytes of it. Raises OSError."""


def read_sightings(directory: Readable) -> dict[str, Sighting]:
    """Return what was seen of each worker, by the names of their segments; never raises."""
    try:
        note = parse_note(directory.read(SIGHTINGS, MAX_BYTES + 1))
        return {name: _sighting(row) for name, row in note.items()}
    except (OSError, CorruptNoteError):
        return {}


def write_sightings(directory: Directory, sightings: Mapping[str, Sighting]) -> None:
    """Save what was seen of each worker; never raises."""
    with contextlib.suppress(OSError):  # no room
        directory.replace(SIGHTINGS, note_text(dict(sightings)).encode())


def _sighting(row: object) -> Sighting:
    """Return what a row of the file says. Raises `CorruptNoteError`."""
    if not isinstance(row, list) or len(row) != len(Sighting._fields):
        raise CorruptNoteError("it has other fields")
    found = Sighting(*row)
    numbers = [0.0 if found.busy_since is None else found.busy_since, *row[:5], row[6]]
    if not all(isinstance(one, (int, float)) for one in numbers):
        raise CorruptNoteError("it has impossible values")
    return found
