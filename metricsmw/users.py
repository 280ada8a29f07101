"""Active users: who was seen within the timeout, exact up to a cap, an estimate beyond it.

Each worker keeps rows of (last seen, key, text); the key is a 64-bit hash that is the same in
every worker, so that the union over workers counts a user once. A known user costs one dict
look-up and one store.

Past `max_users` the table keeps only the users whose key lies below a threshold, which halves
whenever the table is full: threshold sampling (the adaptive sampling of Wegman, analysed by
Flajolet, "On adaptive sampling", Computing 43, 1990). The count is then the number of kept users
times 2**k. With n kept users its relative standard error is about 1/sqrt(n), and n is at least
about half the cap: 1.4 % for the default 10,000. When activity falls, the threshold doubles
again; it is recorded with at once, but counted with only a full timeout later, when every user
below it has had the time to be seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import blake2b

from metricsmw.config import Settings
from metricsmw.segment import Field, Kind, Segment

KEY_BITS = 64
SHORT_TEXT, LONG_TEXT = 64, 1024
LENGTH_BYTES = 2
CHUNKS_PER_POOL = 16


def user_key(text: str) -> int:
    """The 64-bit hash by which all workers know a user."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BITS // 8).digest()
    return int.from_bytes(digest, "little")


def stored_text(text: str) -> bytes:
    """The id as it is stored: whole up to 1022 bytes of UTF-8, else shortened, with its hash."""
    raw = text.encode("utf-8", "surrogatepass")
    room = LONG_TEXT - LENGTH_BYTES
    if len(raw) <= room:
        return raw
    tail = f"…{user_key(text):016x}".encode()
    return raw[: room - len(tail)].decode("utf-8", "ignore").encode() + tail


class _Pool:
    """Rows of one text width, in chunks of the segment."""

    def __init__(self, segment: Segment, width: int, chunk_rows: int) -> None:
        self._segment = segment
        self._width = width
        self._chunk_rows = chunk_rows
        self.columns: list[tuple[memoryview[float], memoryview[int], memoryview[int]]] = []
        self.free: list[tuple[int, int]] = []
        for chunk in segment.chunks:
            if chunk.kind is Kind.USERS and chunk.width == width:
                self._add(chunk.view, chunk.rows)

    def _add(self, view: memoryview, rows: int) -> None:
        seen = view[: rows * 8].cast("d")
        keys = view[rows * 8 : rows * 16].cast("Q")
        texts = view[rows * 16 : rows * (16 + self._width)]
        place = len(self.columns)
        self.columns.append((seen, keys, texts))
        self.free.extend((place, row) for row in range(rows - 1, -1, -1) if not seen[row])

    def grow(self) -> bool:
        """Add a chunk; False where the pool or the memory is at its end."""
        if len(self.columns) == CHUNKS_PER_POOL:
            return False
        try:
            chunk = self._segment.append(Kind.USERS, self._chunk_rows, self._width)
        except OSError:
            return False
        self._add(chunk.view, chunk.rows)
        self._segment.publish()
        return True

    def write(self, key: int, raw: bytes, now: float) -> tuple[memoryview[float], int]:
        """Fill a free row; last seen goes last, as it is what makes the row count."""
        place, row = self.free.pop()
        seen, keys, texts = self.columns[place]
        start = row * self._width
        keys[row] = key
        texts[start : start + LENGTH_BYTES] = len(raw).to_bytes(LENGTH_BYTES, "little")
        texts[start + LENGTH_BYTES : start + LENGTH_BYTES + len(raw)] = raw
        seen[row] = now
        return seen, row

    def text(self, place: int, row: int) -> str:
        _, _, texts = self.columns[place]
        return read_text(bytes(texts[row * self._width : (row + 1) * self._width]))

    def drop(self, keep: Callable[[float, int], bool]) -> int:
        """Free the rows that are not to be kept; how many are in use now."""
        used = 0
        self.free.clear()
        for place, (seen, keys, _) in enumerate(self.columns):
            for row in range(len(seen)):
                if seen[row] and keep(seen[row], keys[row]):
                    used += 1
                else:
                    seen[row] = 0.0
                    self.free.append((place, row))
        return used


def read_text(row: bytes) -> str:
    """The id in a row's text column."""
    length = int.from_bytes(row[:LENGTH_BYTES], "little")
    return row[LENGTH_BYTES : LENGTH_BYTES + length].decode("utf-8", "surrogatepass")


class UserTable:
    """The writer's side. ``known`` is the recorder's look-up, id -> (last-seen column, row)."""

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        known: dict[str, tuple[memoryview[float], int]],
    ) -> None:
        cap = settings.max_users
        self._header = segment.header
        self._timeout = float(settings.user_timeout_seconds)
        self._cap = cap
        self._short = _Pool(segment, SHORT_TEXT, max(min(512, cap), -(-cap // CHUNKS_PER_POOL)))
        self._long = _Pool(segment, LONG_TEXT, max(min(32, cap), -(-cap // CHUNKS_PER_POOL)))
        self._lock = threading.Lock()
        self._known = known
        self._relink()

    def add(self, text: str, now: float) -> None:
        """A user that is not in ``known`` was active at monotonic ``now``."""
        key = user_key(text)
        with self._lock:
            if text in self._known:
                seen, row = self._known[text]
                seen[row] = now
                return
            if len(self._known) >= self._cap:
                self._make_room(now)
            if key >> self._shift:
                return
            raw = stored_text(text)
            pool = self._short if len(raw) <= SHORT_TEXT - LENGTH_BYTES else self._long
            if not pool.free and not pool.grow():
                self._make_room(now)
                if not pool.free:
                    self._shrink(now)
                if key >> self._shift or not pool.free:
                    return
            self._known[text] = pool.write(key, raw, now)

    def clear(self) -> None:
        """Forget all users."""
        with self._lock:
            for pool in (self._short, self._long):
                pool.drop(lambda seen, key: False)
            self._relink()
            self._header[Field.SAMPLE_RECORD] = self._header[Field.SAMPLE_COUNT] = 0.0

    @property
    def _shift(self) -> int:
        return KEY_BITS - int(self._header[Field.SAMPLE_RECORD])

    def _make_room(self, now: float) -> None:
        """Drop the expired; where that frees too little, sample; where it frees much, unsample."""
        used = self._keep(now)
        k = self._header[Field.SAMPLE_RECORD]
        if used >= self._cap:
            self._shrink(now)
        elif k and used * 4 < self._cap:
            self._header[Field.SAMPLE_COUNT] = k
            self._header[Field.SAMPLE_SINCE] = now
            self._header[Field.SAMPLE_RECORD] = k - 1

    def _shrink(self, now: float) -> None:
        k = self._header[Field.SAMPLE_RECORD] + 1
        self._header[Field.SAMPLE_COUNT] = k
        self._header[Field.SAMPLE_RECORD] = k
        self._keep(now)

    def _keep(self, now: float) -> int:
        oldest = now - self._timeout
        shift = self._shift

        def keep(seen: float, key: int) -> bool:
            return seen >= oldest and not key >> shift

        used = self._short.drop(keep) + self._long.drop(keep)
        self._relink()
        return used

    def _relink(self) -> None:
        """Make ``known`` what the rows say; in place, as the hot path holds it."""
        known = {}
        for pool in (self._short, self._long):
            for place, (seen, _, _) in enumerate(pool.columns):
                for row in range(len(seen)):
                    if seen[row]:
                        known[pool.text(place, row)] = (seen, row)
        self._known.clear()
        self._known.update(known)
