"""`FaultLog`: failures inside the metrics, which must never reach the host's app.

Each is caught where it happens, logged once a place, and counted; `/health` shows the count.
"""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("metricsmw")


class FaultLog:
    """The failures of one monitor in this process.

    The count lies in the worker's segment, where all workers' readers find it. Until the segment
    is open, and after it was lost, the count waits here.
    """

    def __init__(self) -> None:
        self._places: set[str] = set()
        self._counter: memoryview[float] | None = None
        self._waiting = 0

    def report(self, where: str) -> None:
        """Log the exception being handled, once a place, and count it.

        To be called in an ``except`` block. Never raises.

        Args:
            where: what failed, as the log names it; also the place that is logged once.
        """
        try:
            counter = self._counter
            if counter is not None:
                counter[0] += 1.0
            else:
                self._waiting += 1
            if where not in self._places:
                self._places.add(where)
                error = sys.exc_info()[1]
                if error is not None:
                    # What the app was handling is its own affair, and may hold a secret.
                    error.__suppress_context__ = True
                logger.exception("metricsmw: %s failed; the app is not affected", where)
        except Exception:
            logger.debug("metricsmw: a fault could not be counted", exc_info=True)

    def count_into(self, counter: memoryview[float] | None) -> None:
        """Count in the segment's field from now on; None: wait for the next segment.

        Args:
            counter: the one double that counts the worker's faults.
        """
        if counter is not None:
            waiting, self._waiting = self._waiting, 0
            counter[0] += waiting
        self._counter = counter
