"""The rows of a segment's sparse tables, of routes or of answers: tables are made as rows are."""

from __future__ import annotations

from metricsmw.engine.storage.layout import TABLE_ROWS, Kind
from metricsmw.engine.storage.segment import BlockTable, Chunk, Segment

CHUNKS = 24  # of each kind that a segment may need for its most rows


class BlockRows:
    """The tables of one kind in this worker's segment.

    Attributes:
        tables: Those in use.
        next: The next row of the last table that was never in use.
    """

    def __init__(self, segment: Segment, kind: Kind, most_rows: int) -> None:
        """Take over the tables of a segment.

        Args:
            segment: The segment.
            kind: The kind of the tables.
            most_rows: How many rows there may ever be.
        """
        self._segment = segment
        self._kind = kind
        self._chunk_tables = -(-most_rows // (TABLE_ROWS * CHUNKS))
        self._chunk: Chunk | None = None
        self._place = 0  # of the next table in the chunk
        self.tables: list[BlockTable] = []
        self.next = TABLE_ROWS
        for chunk in segment.chunks:
            if chunk.kind is kind:
                found = list(segment.block_tables(chunk))
                self.tables += found
                self._chunk, self._place = chunk, len(found)

    def take(self) -> tuple[BlockTable, int]:
        """Return a row that was never in use. Raises OSError where there is no room for one."""
        if self.next >= TABLE_ROWS:
            self.tables.append(self._new_table())
            self.next = 0
        self.next += 1
        return self.tables[-1], self.next - 1

    def _new_table(self) -> BlockTable:
        chunk = self._chunk
        if chunk is None or self._place * TABLE_ROWS >= chunk.rows:
            rows = self._chunk_tables * TABLE_ROWS
            with self._segment.appended(self._kind, rows) as chunk:
                pass
            self._chunk, self._place = chunk, 0
        # The first one is for what has no row of its own, which shall be there in any case.
        growth = bool(self.tables)
        table = self._segment.block_table(chunk, self._place, fresh=True, growth=growth)
        assert table is not None
        self._place += 1
        return table
