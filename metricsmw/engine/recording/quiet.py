"""Rows of routes that have counted nothing in the window, and so can go to other routes.

A row keeps its lanes when it gets another name, because lanes only ever grow: what they had counted
becomes the row's base, which readers add to ``<other>`` of the earlier name's method. So a row can
get another name as long as its base is of one method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from metricsmw.engine.recording.answers import Answers, Row
from metricsmw.engine.storage.keys import LENGTH_BYTES
from metricsmw.engine.storage.layout import (
    NAME_BYTES,
    ROUTE_STEPS_PER_WINDOW,
    BlockShape,
    Field,
)
from metricsmw.engine.storage.reader import Reset
from metricsmw.engine.storage.segment import BlockTable, Segment


class QuietRows:
    """Finds quiet rows: all are looked through once a step, and after a reset.

    Args:
        segment: The segment.
        tables: Its tables of routes; more may be added.
        answers: Its rows of answers.
        last_reset: Returns the server's last reset.
    """

    def __init__(
        self,
        segment: Segment,
        tables: Sequence[BlockTable],
        answers: Answers,
        last_reset: Callable[[], Reset],
    ) -> None:
        self._segment = segment
        self._tables = tables
        self._answers = answers
        self._last_reset = last_reset
        self._step = -1
        self._found: list[Row] = []

    def forget(self) -> None:
        """Look through all rows again, as there was a reset."""
        self._step = -1

    def find(self, names: Mapping[bytes, Row], method: str, step: int) -> Row | None:
        """Return the plain row of a route that is quiet, if there is one.

        Args:
            names: All rows, by their packed names.
            method: That of the new name, which a row had better have.
            step: The tables' step.
        """
        reset = self._last_reset()
        if step != self._step:
            self._step = step
            quiet = {id(table): self._quiet(table, step, reset) for table in self._tables}
            self._found = [
                row
                for row in names.values()
                if row.name.is_own
                and row.facts.other in ("", row.name.method)
                and all(quiet[id(each.table)][each.number] for each in parts(row))
            ]
        while self._found:
            same = [row for row in self._found if row.name.method == method]
            row = (same or self._found)[-1]
            self._found.remove(row)
            # It may have counted since.
            if all(self._quiet(each.table, step, reset)[each.number] for each in parts(row)):
                return row
        return None

    def _quiet(self, table: BlockTable, step: int, reset: Reset) -> list[bool]:
        """Return of each row of a table whether it has counted nothing in the window."""
        shape: BlockShape = table.shape
        now = table.rows(shape.current)
        begin = table.checkpoint_since(step - ROUTE_STEPS_PER_WINDOW)
        before = now if begin is None else table.rows(begin)
        nonce = int(self._segment.header[Field.NONCE])
        at_reset = reset.states.get((nonce, table.offset))
        if at_reset is None:
            return [row == then for row, then in zip(now, before, strict=True)]
        # A state at a reset is without the bias of lanes.
        since = table.rows(shape.current, at_reset)
        return [row == then or not new for row, then, new in zip(now, before, since, strict=True)]

    @contextmanager
    def renaming(self, rows: Sequence[Row], method: str) -> Iterator[None]:
        """Take rows their names, and make what they have counted their base.

        In the ``with`` block they get their new names. At no moment is anything counted twice or
        not at all, whenever the process may end.

        Args:
            rows: The rows of a route.
            method: The method whose ``<other>`` has the base.

        Raises:
            OSError: There is no room for the base; nothing has changed.
        """
        places = [(row.table, row.number) for row in rows]
        places += [place for row in rows for place in self._answers.places(row)]
        for table, _ in places:
            table.allocate_base()
        header = self._segment.header
        header[Field.RENAMINGS] = float(int(header[Field.RENAMINGS]) // 2 * 2 + 1)
        for row in rows:
            row.facts = row.facts._replace(other=method)
            row.table.facts(row.number)[:] = row.facts.pack()
            # Without a name, all that it has counted is of <other>.
            start = row.number * NAME_BYTES
            row.table.names[start : start + LENGTH_BYTES] = bytes(LENGTH_BYTES)
        for table, number in places:
            table.rebase(number)
        for row in rows:
            row.table.drop_peaks(row.number)
            row.step_max = row.limit = row.slow_from = 0.0
        yield
        header[Field.RENAMINGS] += 1.0


def parts(row: Row) -> list[Row]:
    """Return the rows of a route, of which this is the plain one."""
    return [row] if row.others is None else [row, row.others]
