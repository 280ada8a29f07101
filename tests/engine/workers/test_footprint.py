"""What a worker takes of the file system, after a whole window in use."""

from __future__ import annotations

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.workers.shared import SharedGroup

MB = 1 << 20
LATENCIES_MS = [0.5, 4.0, 30.0, 250.0, 1500.0]


@pytest.mark.parametrize(
    ("routes", "statuses", "most"),
    [
        (0, (200,), 0.9),
        (20, (200,), 1.8),
        (20, (200, 404, 500), 2.5),
        (50, (200, 404, 500), 6.0),
        (200, (200,), 6.5),
        (200, (200, 404, 500), 16.0),
    ],
)
def test_memory(routes: int, statuses: tuple[int, ...], most: float, clock: ManualClock) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        for step in range(13):
            for route in range(routes):
                for number, status in enumerate(statuses):
                    latency = LATENCIES_MS[(step + route + number) % len(LATENCIES_MS)]
                    monitor.record_request(latency, method="GET", route=f"/{route}", status=status)
            clock.advance(30.0)
            monitor.record_request(1.0)
        group = monitor.membership.group
        assert isinstance(group, SharedGroup)
        taken = (group.directory.path / group.name).stat().st_blocks * 512
        assert taken <= most * MB
        totals = {total.name.route for total in monitor.read().server.route_totals()}
        assert len(totals) == routes
