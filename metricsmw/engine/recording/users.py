"""Active users: who was seen within the timeout, exact up to a cap, an estimate beyond it.

Each worker keeps rows of (last seen, key, text); the key is a 64-bit hash that is the same in
every worker, so that the union over workers counts a user once. A known user costs one dict
look-up and one store.

Past `max_users` the table keeps only the users whose key lies below a threshold, which halves
whenever the table is full: threshold sampling (the adaptive sampling of Wegman, analysed by
Flajolet, "On adaptive sampling", Computing 43, 1990). The count is then the number of kept users
times 2**k. With n kept users its relative standard error is below 1/sqrt(n), and n is at least
about 15/32 of the cap: 1.5 % for the default 10,000. When activity has fallen, the threshold rises
again; it is recorded with at once, but counted with only a full timeout later, when every user
below it has had the time to be seen.

A full table is gone through once for many new users: it has a sixteenth more rows than it may
have active users, so that going through it frees at least that many.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from math import inf

from metricsmw.config import Settings
from metricsmw.engine.storage.keys import (
    KEY_BITS,
    LENGTH_BYTES,
    LONG_TEXT,
    MAX_SAMPLING,
    SHORT_TEXT,
    read_text,
    stored_text,
    user_key,
)
from metricsmw.engine.storage.layout import Field, Kind
from metricsmw.engine.storage.segment import Segment

logger = logging.getLogger("metricsmw")

CHUNKS_PER_POOL = 16
SLACK = 16  # going through a full table is to free at least this part of it
REVIEWS = 8  # a timeout; in each it is looked whether activity has fallen


class _Pool:
    """Rows of one text width, in chunks of the segment."""

    def __init__(
        self,
        segment: Segment,
        width: int,
        chunk_rows: int,
        known: dict[str, tuple[memoryview[float], int]],
    ) -> None:
        self._segment = segment
        self._chunk_rows = chunk_rows
        self._known = known
        self.width = width
        self.columns: list[tuple[memoryview[float], memoryview[int], memoryview[int]]] = []
        # Whose row it is. Not read back from the segment: a request must not depend on its bytes.
        self.owners: list[list[str | None]] = []
        self.free: list[tuple[int, int]] = []
        for chunk in segment.chunks:
            if chunk.kind is Kind.USERS and chunk.width == width:
                self._add(chunk.view, chunk.rows)

    def _add(self, view: memoryview, rows: int) -> None:
        seen = view[: rows * 8].cast("d")
        keys = view[rows * 8 : rows * 16].cast("Q")
        texts = view[rows * 16 : rows * (16 + self.width)]
        place = len(self.columns)
        self.columns.append((seen, keys, texts))
        self.owners.append([None] * rows)
        for row in range(rows - 1, -1, -1):
            if seen[row]:
                text = read_text(bytes(texts[row * self.width : (row + 1) * self.width]), keys[row])
                if text is not None and text not in self._known:
                    self.owners[place][row] = text
                    self._known[text] = seen, row
                    continue
                seen[row] = 0.0
            self.free.append((place, row))

    def grow(self) -> bool:
        """Add a chunk; False where the pool or the memory is at its end."""
        if len(self.columns) == CHUNKS_PER_POOL:
            return False
        try:
            growth = bool(self.columns)
            with self._segment.appended(
                Kind.USERS, self._chunk_rows, self.width, growth=growth
            ) as chunk:
                self._add(chunk.view, chunk.rows)
        except OSError:
            return False
        return True

    def write(self, text: str, key: int, raw: bytes, now: float) -> None:
        """Fill a free row; last seen goes last, as it is what makes the row count."""
        place, row = self.free.pop()
        seen, keys, texts = self.columns[place]
        start = row * self.width
        keys[row] = key
        texts[start : start + LENGTH_BYTES] = len(raw).to_bytes(LENGTH_BYTES, "little")
        texts[start + LENGTH_BYTES : start + LENGTH_BYTES + len(raw)] = raw
        seen[row] = now
        self.owners[place][row] = text
        self._known[text] = seen, row

    def drop(self, oldest: float, limit: int) -> None:
        """Free the rows last seen before monotonic ``oldest``, or whose key is at the limit."""
        self.free.clear()
        for place, ((seen, keys, _), owners) in enumerate(
            zip(self.columns, self.owners, strict=True)
        ):
            for row, at in enumerate(seen.tolist()):
                owner = owners[row]
                if owner is not None:
                    if at >= oldest and keys[row] < limit:
                        continue
                    owners[row] = None
                    self._known.pop(owner, None)
                if at:
                    seen[row] = 0.0
                self.free.append((place, row))


class UserTable:
    """The writer's side. ``known`` is the recorder's look-up, id -> (last-seen column, row).

    ``last_reset`` tells the monotonic time of the server's last reset, whoever made it.
    """

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        known: dict[str, tuple[memoryview[float], int]],
        last_reset: Callable[[], float],
    ) -> None:
        self._last_reset = last_reset
        self._reset_at = last_reset()
        self._cap = settings.max_users
        self._most = -(-self._cap * SLACK // (SLACK - 1))  # rows in use
        self._timeout = float(settings.user_timeout_seconds)
        self._header = segment.header
        self._known = known
        rows = -(-self._most // CHUNKS_PER_POOL)
        self._short = _Pool(segment, SHORT_TEXT, max(min(512, self._cap), rows), known)
        self._long = _Pool(segment, LONG_TEXT, max(min(32, self._cap), rows), known)
        self._lock = threading.Lock()
        self._refused = False
        header = segment.header
        self._room = 0
        self._sample(_sampling(header[Field.SAMPLE_RECORD]), _sampling(header[Field.SAMPLE_COUNT]))
        self._review_at = header[Field.SAMPLE_SINCE] + self._timeout

    def add(self, text: str, now: float) -> None:
        """Record that a user who is not in ``known`` was active at monotonic ``now``."""
        key = user_key(text)
        with self._lock:
            if self._count:
                self._begin_anew()
            if now >= self._review_at and self._record:
                self._review(now)
            if key >= self._limit:
                return
            raw = stored_text(text, key)
            pool = self._short
            if len(raw) > SHORT_TEXT - LENGTH_BYTES:
                pool = self._long
                text = raw.decode("utf-8", "surrogatepass")  # what was shortened is not kept whole
            if text in self._known:
                seen, row = self._known[text]
                seen[row] = now
                return
            if len(self._known) >= self._room:
                self._make_room(now)
            if not pool.free and not pool.grow():
                if not pool.columns:
                    self._refuse()
                    return
                self._room = len(self._known)
                self._make_room(now, pool)
            if key < self._limit and pool.free:
                pool.write(text, key, raw, now)

    def clear(self) -> None:
        """Forget all users."""
        with self._lock:
            self._reset_at = self._last_reset()
            self._drop(inf)
            self._sample(0, 0)

    def _begin_anew(self) -> None:
        """Sample no more, if another worker has reset the server since."""
        reset_at = self._last_reset()
        if reset_at > self._reset_at:
            self._reset_at = reset_at
            self._drop(reset_at)
            self._sample(0, 0)

    def _sample(self, record: int, count: int) -> None:
        """Keep one user of 2**record; until that has matured, count with one of 2**count."""
        self._record, self._count = record, max(count, record)
        self._limit = 1 << KEY_BITS - record
        self._room = self._cap if record else self._most
        # Readers look at these before and after the rows: first the ways to count, then the rows.
        self._header[Field.SAMPLE_COUNT] = float(self._count)
        self._header[Field.SAMPLE_RECORD] = float(record)

    def _make_room(self, now: float, short_of: _Pool | None = None) -> None:
        """Drop the expired, and where that frees too little, sample."""
        oldest = max(now - self._timeout, self._last_reset())
        active = self._room * (SLACK - 1) // SLACK
        self._drop(oldest)
        while len(self._known) > active or (short_of is not None and not short_of.free):
            if self._record == MAX_SAMPLING:
                break
            self._sample(self._record + 1, self._count)
            self._drop(oldest)

    def _review(self, now: float) -> None:
        """Where activity has fallen, sample less."""
        self._drop(now - self._timeout)
        less = 0
        while less < self._record and len(self._known) << less + 2 <= self._cap:
            less += 1
        # Not again before what is changed now has matured.
        self._review_at = now + (self._timeout if less else self._timeout / REVIEWS)
        if less:
            count = self._record
            self._header[Field.SAMPLE_COUNT] = float(count)
            self._header[Field.SAMPLE_SINCE] = now
            self._sample(count - less, count)

    def _drop(self, oldest: float) -> None:
        for pool in (self._short, self._long):
            pool.drop(oldest, self._limit)

    def _refuse(self) -> None:
        """There is no memory for a single row: say so, once."""
        if not self._refused:
            self._refused = True
            self._header[Field.FAULTS] += 1.0
            logger.warning("metricsmw: no room for users, who are not counted")


def _sampling(value: float) -> int:
    """Return a sampling that a worker wrote; 0 for a number that none can have written."""
    return int(value) if 0 <= value <= MAX_SAMPLING else 0
