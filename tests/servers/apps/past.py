"""Writes a lasting history, as if servers had run."""

from __future__ import annotations

import time
from pathlib import Path

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.history import SQLiteHistory


def write(path: Path, days: int) -> None:
    """One server on the first day, and one since half a day ago; a row in 20 minutes."""
    for begun, hours in ((24 * days, 24), (12, 12)):
        # Monotonic times tell servers apart.
        clock = ManualClock(start=1000.0 * begun, wall=time.time() - 3600 * begun)
        with MetricsMonitor(clock=clock) as monitor:
            lasting = SQLiteHistory(monitor, path, days=days, start=False)
            for _ in range(3 * hours):
                monitor.record_request(20.0, method="GET", route="/ok", status=200)
                clock.advance(1200)
                lasting.check()
