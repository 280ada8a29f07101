"""Rows of routes, and where their answers are counted that are not plain.

A row counts the answers of a (method, template) that have its plain status and URL scheme. All
others are counted in a second row of the same shape, and each once more in a row of answers, which
has no checkpoints: a histogram of those answers that have one status, one scheme, and the exception
that escaped if there was one. A lane of the second row counts the same answers, so that the window
knows them, too. A route has `MAX_ANSWERS` rows of answers, and one more for all further ones.
"""

from __future__ import annotations

from metricsmw.engine.recording.blocks import BlockRows
from metricsmw.engine.storage.keys import (
    SHARED_ANSWER,
    AnswerName,
    AnswerRow,
    Name,
    RouteFacts,
    known_scheme,
)
from metricsmw.engine.storage.layout import (
    ANSWER_NAME_BYTES,
    MAX_ANSWERS,
    TABLE_ROWS,
    Kind,
    Lane,
    RouteLane,
    place_of,
)
from metricsmw.engine.storage.segment import BlockTable, Segment

# A status, or more than one status tells; None: no status by hand.
AnswerKey = int | AnswerName | None
Place = tuple[int, int]  # a table's offset, and a row's number in it

STATUSES = range(100, 600)


NO_NAME = Name("", "")


class Row:
    """A row of a table of routes: where its lanes are, and the step's peak in seconds so far.

    Attributes:
        answers: Where the answers that are not plain are counted, by status.
        lanes: The lanes, by their places in a state.
        limit: A latency up to this is no new peak, neither of the row nor of the server, and none
            to be captured.
        name: Its name.
        numbers: How many of its answers have a row of answers, in a row of what is not plain.
        others: The route's row of answers that are not plain, if there were any.
        plain: The plain status.
        scheme: The URL scheme of its plain answers; "": it is not known. An answer whose key has no
            scheme is of this one.
        shared: The lanes of the row of answers that all further ones share, if there is one.
        slow_from: A latency above this is slow, as `RouteTables.slow_from` says; 0.0: it is to be
            asked first.
    """

    __slots__ = (
        "answers",
        "facts",
        "lanes",
        "limit",
        "name",
        "number",
        "numbers",
        "others",
        "plain",
        "scheme",
        "shared",
        "slow_from",
        "step_max",
        "table",
    )

    def __init__(
        self, table: BlockTable, number: int, facts: RouteFacts, name: Name = NO_NAME
    ) -> None:
        self.name = name
        self.lanes = table.lanes_of(number)
        self.number = number
        self.table = table
        self.facts = facts
        self.plain = facts.status
        self.scheme = facts.scheme
        self.answers: dict[AnswerKey, AnswerPlace] = {}
        self.numbers = 0
        self.others: Row | None = None
        self.shared: memoryview[float] | None = None
        self.step_max = table.peak(number)
        self.limit = self.slow_from = 0.0

    def raise_peak(self, seconds: float) -> None:
        """Set the step's peak where this one is higher."""
        if seconds > self.step_max:
            self.step_max = seconds
            self.table.set_peak(self.number, seconds)


class AnswerPlace:
    """Where the answers of a row with one status are counted.

    Attributes:
        class_lane: The server's lane of their class; 0 where they are 2xx, which have none.
        counter: The place of their counter among the lanes of ``row``.
        is_error: Whether they are errors; then they have a ``class_lane``.
        is_server_error: Whether they are errors of the server: a status of 500 or above.
        lanes: Those of their own row, by their places in a state.
        row: The row of what is not plain of their route, or of ``_OTHER <other>`` where there is no
            room for them there.
    """

    __slots__ = ("class_lane", "counter", "is_error", "is_server_error", "lanes", "row")

    def __init__(self, row: Row, counter: int, lanes: memoryview[float], key: AnswerKey) -> None:
        self.row = row
        self.counter = place_of(counter)
        self.lanes = lanes
        status = key.status if isinstance(key, AnswerName) else key
        self.is_error = _is_error(key)
        self.class_lane = class_lane(status)
        self.is_server_error = status is not None and status >= 500

    @classmethod
    def uncounted(cls, row: Row, key: AnswerKey) -> AnswerPlace:
        """Return one that has no row of answers, where not even the last resort has room."""
        lanes = memoryview(bytearray(row.table.shape.stride)).cast("d")
        return cls(row, RouteLane.REST + _class_of(key), lanes, key)


def of_scheme(row: Row, key: AnswerKey, scheme: str) -> AnswerKey:
    """Return the key of those of a row's answers that have this scheme, too."""
    told = known_scheme(scheme)
    if not told or told == row.scheme:
        return key
    return key._replace(scheme=told) if isinstance(key, AnswerName) else AnswerName(key or 0, told)


def _name_of(key: AnswerKey, scheme: str) -> AnswerName:
    """Return the name of answers of a row with that scheme."""
    if isinstance(key, AnswerName):
        return key if key.scheme else key._replace(scheme=scheme)
    return AnswerName(_status(key), scheme)


def _key_of(name: AnswerName, scheme: str) -> AnswerKey:
    """Return the key of the name."""
    if name.scheme == scheme:
        name = name._replace(scheme="")
    return name if name.scheme or name.error else name.status


def _status(key: AnswerKey) -> int:
    """Return the status of a key; 0 for none, and for one that no app should send."""
    status = key.status if isinstance(key, AnswerName) else key
    return status if status is not None and status in STATUSES else 0


def _class_of(key: AnswerKey) -> int:
    return _status(key) // 100


def class_lane(status: int | None, *, is_error: bool = False) -> int:
    """Return the server's lane of a status' class; 0 where it is 2xx, which has none.

    Args:
        status: The status; above 599 it is one of 5xx, below 100 it has no lane.
        is_error: What is known of an answer without a status: an error is one of 5xx.
    """
    if status is None:
        status = 500 if is_error else 200
    number = min(status // 100, 5)
    return Lane.CLASSES + number if number in (1, 3, 4, 5) else 0


def _is_error(key: AnswerKey) -> bool:
    status = key.status if isinstance(key, AnswerName) else key
    return status is not None and status >= 400


class Answers:
    """The rows of answers in this worker's segment.

    Args:
        segment: The segment.
        routes: How many routes there may ever be.
        by_place: The rows of routes, by the offset of their table and their number in it; they
            get the answers that they have in the segment.
    """

    def __init__(self, segment: Segment, routes: int, by_place: dict[Place, Row]) -> None:
        self._block_rows = BlockRows(segment, Kind.ANSWERS, routes * (MAX_ANSWERS + 1))
        self.is_full = False  # there was no room for a row in this step
        self._places: dict[Place, list[tuple[BlockTable, int]]] = {}
        for table in self.tables:
            self._adopt(table, by_place)

    @property
    def tables(self) -> list[BlockTable]:
        """The tables in use."""
        return self._block_rows.tables

    def places(self, row: Row) -> list[tuple[BlockTable, int]]:
        """Return the rows of answers of a row of what is not plain."""
        return self._places.get((row.table.offset, row.number), [])

    def _adopt(self, table: BlockTable, by_place: dict[Place, Row]) -> None:
        self._block_rows.next = TABLE_ROWS
        for number in range(TABLE_ROWS):
            packed = bytes(table.names[number * ANSWER_NAME_BYTES :][:ANSWER_NAME_BYTES])
            name = AnswerRow.unpack(packed)
            if name is None:
                self._block_rows.next = number
                break
            row = by_place.get((name.table, name.row))
            if row is not None:
                self._add(row, name, table, number)

    def _add(self, row: Row, name: AnswerRow, table: BlockTable, number: int) -> AnswerPlace | None:
        """Note a row of answers; return where they are counted, if it is not shared."""
        lanes = table.lanes_of(number)
        self._places.setdefault((name.table, name.row), []).append((table, number))
        if name.number == MAX_ANSWERS:
            row.shared = lanes
            return None
        key = _key_of(name.answer, row.scheme)
        answer = AnswerPlace(row, RouteLane.ANSWERS + name.number, lanes, key)
        row.answers[key] = answer
        row.numbers = max(row.numbers, name.number + 1)
        return answer

    def find(self, row: Row, key: AnswerKey, *, shared: bool = False) -> AnswerPlace:
        """Return where an answer is counted.

        Args:
            row: The row of what is not plain of its route.
            key: Its status, and what else tells it apart.
            shared: Count it in the row of answers that is shared.

        Raises:
            OSError: There is no room.
        """
        found = row.answers.get(key)
        if found is not None and not shared:
            return found
        if _status(key) and row.numbers < MAX_ANSWERS and not shared:
            answer = self._create(row, row.numbers, _name_of(key, row.scheme))
            assert answer is not None
            return answer
        if row.shared is None:
            self._create(row, MAX_ANSWERS, SHARED_ANSWER)
            assert row.shared is not None
        return AnswerPlace(row, RouteLane.REST + _class_of(key), row.shared, key)

    def _create(self, row: Row, number: int, name: AnswerName) -> AnswerPlace | None:
        if self.is_full:
            raise OSError("there was no room in this step")
        try:
            table, place = self._block_rows.take()
        except OSError:
            self.is_full = True
            raise
        full_name = AnswerRow(row.table.offset, row.number, number, name)
        packed = full_name.pack()
        start = place * ANSWER_NAME_BYTES
        # The first double goes last: it is what makes the row count.
        table.names[start + 8 : start + len(packed)] = packed[8:]
        table.names[start : start + 8] = packed[:8]
        return self._add(row, full_name, table, place)
