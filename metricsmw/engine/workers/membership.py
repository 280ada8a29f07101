"""What a job of the server needs to know of the member of it that this process is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from metricsmw.engine.faults import FaultLog


class ServerMember(Protocol):
    """This process as a worker of its server: a monitor, to the jobs that run beside it."""

    @property
    def directory(self) -> Path | None:
        """Return the directory of the server's workers; None where the monitor is private.

        Opens the member's segment.
        """

    @property
    def is_open(self) -> bool:
        """Whether this process takes part in the measuring: it has recorded or read."""

    @property
    def is_closed(self) -> bool:
        """Whether the member was closed and not used since."""

    @property
    def faults(self) -> FaultLog:
        """Where a job reports what it raised."""
