"""Opening a worker's segment before its first request, away from the event loop.

Files are made for the segment of a worker that shares its numbers. An event loop that waits for a
file holds up every request in it, so a thread does that, and the first request waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from metricsmw import MetricsMonitor
    from metricsmw.engine.recording.exchange import Begun


# Called with the monitor once its segment is open; they never raise.
ON_OPEN: list[Callable[[MetricsMonitor], None]] = []


class NotOpenError(Exception):
    """The worker's segment is not open yet."""


def not_open(exchange: Begun) -> None:
    """Stand for the recorder's `begin_exchange` until the segment is open."""
    raise NotOpenError


async def open_segment(monitor: MetricsMonitor) -> None:
    """Open the segment of this process, unless it is open; what fails is reported."""
    import asyncio  # here, as a WSGI app has no need of it

    recorder = monitor.recorder
    try:
        if recorder.segment is None and monitor.settings.shared is not False:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # Trio's
                recorder.open()
            else:
                try:
                    await loop.run_in_executor(None, recorder.open)
                except RuntimeError:  # no thread can be started
                    recorder.open()
        else:
            recorder.open()
    except Exception:
        recorder.faults.report("opening the worker's segment")
    for call in ON_OPEN:
        call(monitor)
