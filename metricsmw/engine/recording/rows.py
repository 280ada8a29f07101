"""The rows of the app's own numbers in this worker's segment, and what records into which."""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Callable
from typing import ParamSpec, Protocol

from metricsmw.engine.builds import NEEDS_LOCK
from metricsmw.engine.fork import on_fork
from metricsmw.engine.recording.recorder import Recorder
from metricsmw.engine.storage.keys import LENGTH_BYTES, unpack_text
from metricsmw.engine.storage.layout import (
    NAME_BYTES,
    GaugeColumn,
    Kind,
    instrument_shape,
    zero_lanes,
)
from metricsmw.engine.storage.segment import Chunk, Segment

P = ParamSpec("P")
VALUE, SET_AT = int(GaugeColumn.VALUE), int(GaugeColumn.SET_AT)
FIRST_ROWS = {Kind.COUNTERS: 32, Kind.GAUGES: 32, Kind.HISTOGRAMS: 8}


class Bound(Protocol):
    """A series that records into lanes."""

    kind: Kind
    packed: bytes
    bind: Callable[[memoryview[float]], None]


class Rows:
    """This process's rows, in the segment of the moment."""

    def __init__(self, recorder: Recorder, step: float) -> None:
        self.clock = recorder.clock
        self.deadline = -math.inf
        self._recorder = recorder
        self._step = step
        self.lock = threading.RLock()
        self._segment: Segment | None = None
        self._series: list[Bound] = []
        self._free: dict[Kind, list[tuple[memoryview[float], memoryview[int]]]] = {}
        self._known: dict[tuple[Kind, str], memoryview[float]] = {}
        recorder.on_release = self.unbind
        _all.add(self)

    def locked(self, function: Callable[P, None]) -> Callable[P, None]:
        """Return the function, behind the lock where additions to lanes need one."""
        if not NEEDS_LOCK:
            return function

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> None:
            with self.lock:
                function(*args, **kwargs)

        return locked

    def add(self, series: Bound) -> None:
        """Keep a series bound from now on."""
        with self.lock:
            self._series.append(series)
            if self._segment is not None:
                series.bind(self._find(series))

    def refresh(self, now: float, serves: bool = True) -> None:
        """Look whether the segment is whole and the one of before; else bind all series anew."""
        with self.lock:
            if serves:
                self._recorder.serve()
            segment = self._recorder.open()
            if segment is not self._segment:
                self._segment = segment
                self._free = {kind: [] for kind in FIRST_ROWS}
                self._known = {}
                for chunk in segment.chunks:
                    if chunk.kind in FIRST_ROWS:
                        self._take(chunk)
                for series in self._series:
                    series.bind(self._find(series))
            self.deadline = now + self._step

    def unbind(self) -> None:
        """Have the next record look for the segment."""
        self.deadline = -math.inf
        self._segment = None

    def after_fork(self) -> None:
        """Replace a lock that another thread of the parent may have held."""
        self.lock = threading.RLock()
        self.unbind()

    def _take(self, chunk: Chunk) -> None:
        """Take over the rows of a chunk: those in use by name, the others as free ones."""
        shape = instrument_shape(chunk.kind, chunk.rows)
        names = chunk.view[shape.names : shape.current]
        lanes = chunk.view[shape.current : shape.current + shape.stride].cast("d")
        for row in range(chunk.rows):
            of_row = lanes[row * shape.lanes : (row + 1) * shape.lanes]
            name = names[row * NAME_BYTES : (row + 1) * NAME_BYTES]
            text = unpack_text(bytes(name))
            if text:
                self._known[chunk.kind, text] = of_row
            else:
                self._free[chunk.kind].append((of_row, name))
        self._free[chunk.kind].reverse()

    def _find(self, series: Bound) -> memoryview[float]:
        kind = series.kind
        key = kind, unpack_text(series.packed)
        known = self._known.get(key)
        if known is not None:
            return known
        if not self._free[kind] and not self._grow(kind):
            # No room: it is counted where nobody reads it.
            lanes = instrument_shape(kind, 1).lanes
            return memoryview(bytearray(zero_lanes(lanes))).cast("d")
        lanes_of_row, name = self._free[kind].pop()
        # The length goes last: it is what makes the name count.
        name[LENGTH_BYTES : len(series.packed)] = series.packed[LENGTH_BYTES:]
        name[:LENGTH_BYTES] = series.packed[:LENGTH_BYTES]
        self._known[key] = lanes_of_row
        return lanes_of_row

    def _grow(self, kind: Kind) -> bool:
        """Append a chunk, twice as large as the last one of its kind; whether there was room."""
        assert self._segment is not None
        rows = FIRST_ROWS[kind]
        for chunk in self._segment.chunks:
            if chunk.kind is kind:
                rows = min(chunk.rows * 2, 4096)
        try:
            with self._segment.appended(kind, rows) as chunk:
                shape = instrument_shape(kind, rows)
                if kind is not Kind.GAUGES:
                    current = chunk.view[shape.current : shape.current + shape.stride]
                    current[:] = zero_lanes(rows * shape.lanes)
        except OSError:
            self._recorder.faults.report("making room for the app's own numbers")
            return False
        self._take(chunk)
        return True


_all: weakref.WeakSet[Rows] = weakref.WeakSet()


def _after_fork() -> None:
    for rows in list(_all):
        rows.after_fork()


on_fork(_after_fork)
