"""The summary of a long span, for `GET /history?summary=1` where a lasting history is kept."""

from __future__ import annotations

from metricsmw import MetricsMonitor
from metricsmw.history import RangeSummary


def summary_of(monitor: MetricsMonitor, minutes: int) -> RangeSummary | None:
    """Return what a lasting history says of the last minutes as a whole.

    None where there is none, or it cannot be read.
    """
    if monitor.lasting is None:
        return None
    now = monitor.clock.time()
    try:
        return monitor.lasting.summary(now - 60 * minutes, now)
    except Exception:
        monitor.recorder.faults.report("reading the lasting history")
        return None
