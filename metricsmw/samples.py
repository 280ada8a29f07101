"""What steps cannot be told from counts: requests in flight, CPU and memory, as they were seen.

A ring behind the minute history that all workers of a server share, one row a step:

    step's number, requests in flight, CPU in percent, memory in MiB, the number again

Whoever reads the metrics leaves what it saw under the step of that moment; the last one counts. A
row whose two numbers differ is being written. Nothing runs in the background, so a step in which
nobody looked has no row; the minute history's own look is always there.
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from typing import NamedTuple, Protocol

ROW = struct.Struct("5d")
ROWS = 64
SIZE = ROW.size * ROWS


class Bytes(Protocol):
    """Where the ring lives."""

    def read(self, offset: int, size: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...


class Sample(NamedTuple):
    """What was seen of the server at one moment."""

    requests_in_flight: int
    cpu_usage_pct: float
    memory_usage_mb: float


class Samples:
    """The ring, from byte ``offset`` on."""

    def __init__(self, data: Bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def put(self, step: int, sample: Sample) -> None:
        """Keep what was seen in that step, unless a later step has its place."""
        place = self._offset + step % ROWS * ROW.size
        with suppress(OSError):  # the numbers themselves do without
            kept = self._data.read(place, ROW.size)
            if len(kept) == ROW.size and ROW.unpack(kept)[0] > step:
                return
            self._data.write(place, ROW.pack(step, *sample, step))

    def get(self, first: int, last: int) -> dict[int, Sample]:
        """What was seen in the steps from ``first`` to ``last``; they count from 1."""
        found: dict[int, Sample] = {}
        data = self._data.read(self._offset, SIZE)
        for number, in_flight, cpu, memory, again in ROW.iter_unpack(
            data[: len(data) // ROW.size * ROW.size]
        ):
            if (
                number == again
                and max(first, 1) <= number <= last  # 0: no row yet
                and all(map(math.isfinite, (number, in_flight, cpu, memory)))
            ):
                found[int(number)] = Sample(int(in_flight), cpu, memory)
        return found
