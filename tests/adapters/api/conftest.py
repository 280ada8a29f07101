"""The sub-app's handlers over a monitor on a clock moved by hand, open to all."""

from __future__ import annotations

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public


@pytest.fixture
def handlers(monitor: MetricsMonitor) -> Handlers:
    return Handlers(monitor, public())
