"""Fixtures of the conformance kit: a monitor on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

pytest.register_assert_rewrite(f"{__package__}.framework_kit")


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    """A private monitor with the default settings on the manual clock."""
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor
