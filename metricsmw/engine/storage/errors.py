"""The rows of a chunk of errors: one kind of error each, written by one worker, read by all.

A row is 4096 bytes; docs/layout.md has each offset. Its lane, how often the kind was seen, lies
behind all rows (`error_shape`), so that a reset knows it as it knows every other lane.

Texts are written before `Cell.IN_USE`, which makes the row count. From then on only numbers and
further routes are written, in an order of which every beginning is a row that could have been, and
the lane goes last: a worker may be killed between any two stores. `Cell.SEQUENCE` is odd meanwhile,
so that no reader takes a copy of which one half is older than the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from metricsmw.engine.storage.keys import LENGTH_BYTES
from metricsmw.engine.storage.layout import BIAS, ERROR_BYTES, error_shape
from metricsmw.engine.storage.tables import (
    ATTEMPTS,
    CorruptSegmentError,
    Read,
    read_total,
)

MINUTE = 60.0
MINUTES = 60  # of the last hour, the one in progress included
MAX_ROUTES, ROUTES_BYTES = 6, 768
MOST_TIME = 2.0**53
MOST_UNIX_TIME = 2.0**37  # of the year 6325
MOST_LINE = MOST_PID = 2**31

# The key of the kind that all further kinds of a worker share.
OTHER_KEY = 1


class Cell(IntEnum):
    """Doubles of a row, by their place; the key is an integer of 8 bytes."""

    IN_USE = 0  # 1 once the texts are whole
    SEQUENCE = 1  # odd while the row is written
    BASE = 2  # what the lane had counted when the row got this kind
    KEY = 3
    FIRST_AT = 4  # monotonic seconds: seen first since the last reset,
    LAST_AT = 5  # and last
    FIRST_SEEN = 6  # the same as Unix time
    LAST_SEEN = 7
    PID = 8  # the process that saw it last
    STATUS = 9  # of the last answer; 0: none was made
    MORE_ROUTES = 10  # 1: there are routes beside those that are named
    MINUTES = 12  # for each minute of the hour two doubles: its number, the lane at its start


ROUTES_OFFSET = (Cell.MINUTES + 2 * MINUTES) * 8
TEXT_OFFSET = ROUTES_OFFSET + ROUTES_BYTES
TEXT_BYTES = ERROR_BYTES - TEXT_OFFSET


class Frame(NamedTuple):
    """One line of a traceback.

    Attributes:
        file: The file's name.
        line: The line's number.
        module: The module.
        function: The function, with its class where the Python tells it.
        is_own: It is the app's own, and of no package or the standard library.
    """

    file: str
    line: int
    module: str
    function: str
    is_own: bool


class ErrorText(NamedTuple):
    """The texts of a kind of error.

    Attributes:
        type: The exception's type; of an answer without one "HTTP 503".
        message: The exception's message, where it is kept.
        frames: The traceback, outermost frame first.
        cut: How many frames are left out.
        cut_at: So many frames are in front of those.
    """

    type: str
    message: str | None = None
    frames: tuple[Frame, ...] = ()
    cut: int = 0
    cut_at: int = 0

    def pack(self) -> bytes:
        """Return its stored form, which fits: frames are left out from the middle."""
        text = self
        while len(packed := text._json()) > TEXT_BYTES - LENGTH_BYTES:
            text = text._without_one() if text.frames else text._halved()
        return len(packed).to_bytes(LENGTH_BYTES, "little") + packed

    def _json(self) -> bytes:
        fields = [self.type, self.message, [list(frame) for frame in self.frames]]
        text = json.dumps([*fields, self.cut, self.cut_at], ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace")

    def _without_one(self) -> ErrorText:
        """Leave out one more frame: the one before the gap, or before the middle."""
        at = self.cut_at if self.cut else (len(self.frames) + 1) // 3
        # The innermost frames say most.
        at = at - 1 if at else 0
        frames = self.frames[:at] + self.frames[at + 1 :]
        return self._replace(frames=frames, cut=self.cut + 1, cut_at=at)

    def _halved(self) -> ErrorText:
        """Keep half of the message, or of the type where there is none."""
        if self.message:
            return self._replace(message=self.message[: len(self.message) // 2])
        return self._replace(type=self.type[: len(self.type) // 2])

    @classmethod
    def unpack(cls, packed: bytes) -> ErrorText:
        """Return what is stored there. Raises `CorruptSegmentError`."""
        length = int.from_bytes(packed[:LENGTH_BYTES], "little")
        try:
            raw = packed[LENGTH_BYTES : LENGTH_BYTES + length]
            name, message, frames, cut, at = json.loads(raw.decode("utf-8", "replace"))
            return cls(
                _plain(name),
                None if message is None else _plain(message),
                tuple(
                    Frame(_plain(file), _whole(line), _plain(module), _plain(function), bool(own))
                    for file, line, module, function, own in frames
                ),
                _whole(cut),
                _whole(at),
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptSegmentError("impossible error") from error


def _whole(number: int) -> int:
    """Return a whole number. Raises ValueError where it is none that a worker has written."""
    if not isinstance(number, int) or not 0 <= number < MOST_LINE:
        raise ValueError(number)
    return number


def _plain(text: str) -> str:
    """Return a text that can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


class StoredError(NamedTuple):
    """One kind of error of one worker, since the last reset.

    Attributes:
        key: The fingerprint, by which all workers know the kind.
        text: Its texts.
        total: How often it was seen.
        minutes: The same by minute, which is a whole number of monotonic minutes.
        first_at: When it was seen first, in monotonic seconds.
        last_at: When it was seen last, likewise.
        first_seen: The first of these as Unix time; 0.0: it was before the reset.
        last_seen: The last of these as Unix time.
        pid: The process that saw it last.
        status: The status of the last answer; 0: none was made.
        routes: The routes: method, space, template.
        has_more_routes: There are further ones.
    """

    key: int
    text: ErrorText
    total: int
    minutes: dict[int, int]
    first_at: float
    last_at: float
    first_seen: float
    last_seen: float
    pid: int
    status: int
    routes: tuple[str, ...]
    has_more_routes: bool


def minute_of(now: float) -> int:
    """Return the number of the minute around monotonic ``now``: 1 or more, as 0 is none."""
    return int(now // MINUTE) + 1


def read_errors(
    read: Read, offset: int, rows: int, reset_at: float, baseline: int | None
) -> Iterator[StoredError]:
    """Yield the kinds of error in a chunk that were seen since the last reset.

    Args:
        read: Reads bytes of the segment.
        offset: The chunk's place in the segment.
        rows: Its number of rows.
        reset_at: Monotonic time of the last reset.
        baseline: What the lanes had counted then; None: the chunk was not there.

    Raises:
        CorruptSegmentError: The bytes cannot be what a worker wrote.
    """
    shape = error_shape(rows)
    size = shape.current + shape.stride
    read_total(read, offset, shape, baseline)  # no lane has ever counted less
    states: dict[int, bytes] = {}
    waiting = set(range(rows))
    before = _rows(read(offset, size), rows)
    # A row that is the same in two copies was not written between them. One that is written again
    # and again, or whose worker stands still in the middle, is taken as it is then.
    for _ in range(ATTEMPTS):
        again = _rows(read(offset, size), rows)
        for row in sorted(waiting):
            states[row] = again[row]
            if again[row] == before[row] and not _is_written(again[row]):
                waiting.discard(row)
        if not waiting:
            break
        before = again
    for row, state in sorted(states.items()):
        since = BIAS + ((baseline or 0) >> 64 * row & (1 << 52) - 1)
        found = _parsed(state, since, reset_at)
        if found is not None:
            yield found


def _rows(chunk: bytes, rows: int) -> list[bytes]:
    """Return the bytes of each row, and its lane."""
    shape = error_shape(rows)
    if len(chunk) != shape.current + shape.stride:
        raise CorruptSegmentError("truncated")
    return [
        chunk[row * ERROR_BYTES : (row + 1) * ERROR_BYTES]
        + chunk[shape.current + row * 8 : shape.current + (row + 1) * 8]
        for row in range(rows)
    ]


def _is_written(row: bytes) -> bool:
    return bool(memoryview(row[:ROUTES_OFFSET]).cast("d")[Cell.SEQUENCE] % 2)


def _parsed(row: bytes, since: float, reset_at: float) -> StoredError | None:
    """Return what a row and its lane say; None: it was not seen since."""
    cells = memoryview(row[:ROUTES_OFFSET]).cast("d")
    if not cells[Cell.IN_USE]:
        return None
    (lane,) = memoryview(row[ERROR_BYTES:]).cast("d")
    numbers = cells.tolist()
    del numbers[Cell.KEY]  # which is no double
    if not all(0.0 <= number < MOST_TIME for number in numbers):  # NaN, too
        raise CorruptSegmentError("impossible error")
    if max(cells[Cell.FIRST_SEEN], cells[Cell.LAST_SEEN]) > MOST_UNIX_TIME:
        raise CorruptSegmentError("impossible time")
    if max(cells[Cell.PID], cells[Cell.STATUS]) >= MOST_PID:
        raise CorruptSegmentError("impossible error")
    start = max(since, cells[Cell.BASE])
    total = int(lane - start)
    if total <= 0:
        return None
    pairs = cells[Cell.MINUTES :].tolist()
    steps = sorted(zip(map(int, pairs[::2]), pairs[1::2], strict=True))
    begins = [(minute, max(before, start)) for minute, before in steps if minute]
    ends = [*(before for _, before in begins[1:]), lane]
    minutes = {
        minute: int(end - before)
        for (minute, before), end in zip(begins, ends, strict=True)
        if end > before
    }
    is_older = cells[Cell.FIRST_AT] < reset_at
    return StoredError(
        key=int.from_bytes(row[Cell.KEY * 8 : (Cell.KEY + 1) * 8], "little"),
        text=ErrorText.unpack(row[TEXT_OFFSET:ERROR_BYTES]),
        total=total,
        minutes=minutes,
        first_at=reset_at if is_older else cells[Cell.FIRST_AT],
        last_at=cells[Cell.LAST_AT],
        first_seen=0.0 if is_older else cells[Cell.FIRST_SEEN],
        last_seen=cells[Cell.LAST_SEEN],
        pid=int(cells[Cell.PID]),
        status=int(cells[Cell.STATUS]),
        routes=tuple(
            bytes(row[start:end]).decode("utf-8", "replace") for start, end in _routes(row)
        ),
        has_more_routes=bool(cells[Cell.MORE_ROUTES]),
    )


def _routes(row: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield where the text of each of a row's routes begins and ends, as far as they are there."""
    end = ROUTES_OFFSET
    for _ in range(MAX_ROUTES):
        start = end + LENGTH_BYTES
        length = int.from_bytes(row[end:start], "little")
        end = start + length
        if not length or end > TEXT_OFFSET:
            return
        yield start, end


class ErrorCells:
    """The writer's side of one row.

    Args:
        view: The row's bytes.
        lane: Its lane.

    Attributes:
        key: The fingerprint of its kind; 0: the row is not in use.
    """

    def __init__(self, view: memoryview, lane: memoryview[float]) -> None:
        self._view = view
        self._lane = lane
        self._cells = view[:ROUTES_OFFSET].cast("d")
        self._keys = view[Cell.KEY * 8 : (Cell.KEY + 1) * 8]
        cells = self._cells
        if cells[Cell.SEQUENCE] % 2:  # its worker died as it wrote
            cells[Cell.SEQUENCE] += 1.0
        self.key = int.from_bytes(self._keys, "little") if cells[Cell.IN_USE] else 0

    @property
    def last_at(self) -> float:
        """Monotonic time at which its kind was seen last."""
        return self._cells[Cell.LAST_AT]

    def begin(self, key: int, text: bytes) -> None:
        """Give the row to another kind, which was not seen yet; ``text``: an `ErrorText`, packed.

        Readers see it after the next `count`.
        """
        cells = self._cells
        cells[Cell.SEQUENCE] += 1.0
        cells[Cell.IN_USE] = 0.0
        self._view[TEXT_OFFSET : TEXT_OFFSET + len(text)] = text
        self._keys[:] = key.to_bytes(8, "little")
        for place in range(Cell.MINUTES, Cell.MINUTES + 2 * MINUTES):
            cells[place] = 0.0
        cells[Cell.BASE] = self._lane[0]
        self.restart(0.0, 0.0)
        cells[Cell.SEQUENCE] += 1.0
        self.key = key

    def restart(self, now: float, wall: float) -> None:
        """Have it seen first now: monotonic seconds and Unix time. It is on no route yet."""
        cells = self._cells
        cells[Cell.FIRST_AT], cells[Cell.FIRST_SEEN] = now, wall
        cells[Cell.MORE_ROUTES] = 0.0
        self._view[ROUTES_OFFSET : ROUTES_OFFSET + LENGTH_BYTES] = bytes(LENGTH_BYTES)

    def count(
        self, now: float, wall: float, reset_at: float, pid: int, status: int, route: bytes
    ) -> None:
        """Count one more of its kind.

        Args:
            now: Monotonic seconds.
            wall: Unix time.
            reset_at: Monotonic time of the server's last reset.
            pid: This process.
            status: The answer's status; 0: none was made.
            route: The route: method, space, template.
        """
        cells, lane = self._cells, self._lane
        cells[Cell.SEQUENCE] += 1.0
        first = cells[Cell.FIRST_AT]
        if not first or first < reset_at:
            self.restart(now, wall)
        minute = minute_of(now)
        place = Cell.MINUTES + 2 * (minute % MINUTES)
        if cells[place] != minute:
            cells[place] = 0.0
            cells[place + 1] = lane[0]
            cells[place] = float(minute)
        self._add(route)
        cells[Cell.PID], cells[Cell.STATUS] = float(pid), float(status)
        cells[Cell.LAST_AT], cells[Cell.LAST_SEEN] = now, wall
        lane[0] += 1.0
        cells[Cell.IN_USE] = 1.0
        cells[Cell.SEQUENCE] += 1.0

    def _add(self, route: bytes) -> None:
        """Note a route, if there is room and it is not noted yet."""
        view, count, place = self._view, 0, ROUTES_OFFSET
        for start, end in _routes(view):
            if view[start:end] == route:
                return
            count, place = count + 1, end
        start = place + LENGTH_BYTES
        end = start + len(route)
        if count == MAX_ROUTES or end > TEXT_OFFSET:
            self._cells[Cell.MORE_ROUTES] = 1.0
            return
        view[start:end] = route
        # What follows is of no route; the length goes last, as it makes the text count.
        view[end : min(end + LENGTH_BYTES, TEXT_OFFSET)] = bytes(
            min(LENGTH_BYTES, TEXT_OFFSET - end)
        )
        view[place:start] = len(route).to_bytes(LENGTH_BYTES, "little")


def error_rows(view: memoryview, rows: int) -> Iterator[ErrorCells]:
    """Yield the rows of a chunk, for their writer."""
    shape = error_shape(rows)
    lanes = view[shape.current : shape.current + shape.stride].cast("d")
    for row in range(rows):
        place = row * ERROR_BYTES
        yield ErrorCells(view[place : place + ERROR_BYTES], lanes[row : row + 1])
