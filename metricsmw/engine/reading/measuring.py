"""The state of the measuring itself, as one reading finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from metricsmw.engine.reading.components import count_processes, left_out
from metricsmw.engine.reading.health import OPERATIONAL, ServerHealth
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.workers.group import Group
from metricsmw.engine.workers.job import job_health
from metricsmw.engine.workers.membership import ServerMember

if TYPE_CHECKING:
    from metricsmw.engine.reading.resources import Usage


class Measured(Protocol):
    """A reading, as far as its health is of it."""

    @property
    def group(self) -> Group:
        """The workers that are read."""

    @property
    def server(self) -> ServerReading:
        """All their segments, read once."""

    @property
    def usage(self) -> Usage:
        """CPU and memory of the live workers."""


def server_health(reading: Measured, member: ServerMember, measured: bool) -> ServerHealth:
    """Return the state of the measuring itself. Never raises.

    Args:
        reading: The reading whose state it is.
        member: The monitor, whose jobs are asked.
        measured: Whether this process is known to measure.
    """
    report = member.faults.report
    components = dict.fromkeys(
        ("metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"),
        OPERATIONAL,
    )
    workers = number_left_out = faults = 0
    processes: int | None = None
    mode, mode_reason = "private", "not open"
    try:
        group = reading.group
        mode, mode_reason = group.mode, group.reason
        server = reading.server
        number_left_out, workers, faults = len(server.damaged), server.workers, server.faults()
        measured = measured or server.total.requests > 0
        shared = group.problems()
    except Exception:
        report("reading the metrics")
        for name in ("metrics_monitor", "request_tracking", "websocket_tracking"):
            components[name] = "unavailable"
    else:
        if number_left_out:
            components["request_tracking"] = left_out(server.damaged.values())
        if shared:
            components["metrics_monitor"] = "; ".join(shared)
        try:
            processes = count_processes() if mode == "private" else None
        except Exception:
            report("counting the server's processes")
        try:
            if workers and not reading.usage.memory_mb:
                components["resource_monitoring"] = "unavailable"
        except Exception:
            report("reading CPU and memory")
            components["resource_monitoring"] = "unavailable"
        try:
            components.update(job_health(member))
        except Exception:
            report("reading what is done once for the server")
    healthy = all(state == OPERATIONAL for state in components.values())
    return {
        "status": "healthy" if healthy else "degraded",
        "components": components,
        "workers": workers,
        "mode": mode,
        "mode_reason": mode_reason,
        "segments_left_out": number_left_out,
        "faults": faults,
        "measured": measured,
        "server_processes": processes,
    }
