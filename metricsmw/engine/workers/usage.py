"""A worker measures its own CPU and memory, for readers that cannot see its process.

Where workers of several containers share a directory, they cannot see each other's processes. So
each worker writes its CPU and memory into the header of its segment, with records and reads.
"""

from __future__ import annotations

import os

from metricsmw.engine.storage.layout import Field
from metricsmw.engine.workers.surroundings import Surroundings

# Looks that follow each other more closely say little about the CPU.
LOOK_SECONDS = 1.0


class OwnUsage:
    """The resources of this process; CPU is the average since the look before."""

    def __init__(self, here: Surroundings) -> None:
        self._here = here
        self._at = 0.0
        self._cpu_seconds = _cpu_seconds()

    def note(self, header: memoryview[float], now: float) -> None:
        """Write them into a segment's header, at monotonic ``now``; not oftener than each second.

        The first look has none before it, and says nothing of the CPU.
        """
        elapsed = now - self._at
        if self._at and elapsed < LOOK_SECONDS:
            return
        used = _cpu_seconds()
        share = 100 * (used - self._cpu_seconds) / elapsed if self._at else 0.0
        self._at, self._cpu_seconds = now, used
        header[Field.CPU_PCT] = max(share, 0.0)
        header[Field.MEMORY_BYTES] = float(self._here.resident_bytes())
        header[Field.SAMPLED] = now


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
