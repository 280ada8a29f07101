"""The token that a server makes for itself, where nobody has set one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metricsmw.engine.workers.token import process_token, server_token

if TYPE_CHECKING:
    from metricsmw import MetricsMonitor


def own_token(monitor: MetricsMonitor) -> str:
    """Return the token of a monitor's server; of this process, where the monitor is private."""
    try:
        directory = monitor.shared_directory
        made = None if directory is None else server_token(directory)
    except OSError:
        monitor.recorder.faults.report("the server's token")
        made = None
    return process_token() if made is None else made
