"""Fixtures: an alerter and a lasting history that are run by hand, and what the first told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter, Retry
from metricsmw.history import SQLiteHistory

QUICKLY = Retry(first_delay=0.02, longest_delay=0.05)


@pytest.fixture
def told() -> list[Alert]:
    """What the receiver of `alerter` was told."""
    return []


@pytest.fixture
def alerter(monitor: MetricsMonitor, told: list[Alert]) -> Iterator[Callable[..., MetricsAlerter]]:
    """Makes alerters that check only when told to, tell `told`, and try again quickly."""
    made: list[MetricsAlerter] = []

    def make(**settings: Any) -> MetricsAlerter:
        usual = {"notify": told.append, "start": False, "retry": QUICKLY}
        made.append(MetricsAlerter(monitor, **usual | settings))
        return made[-1]

    yield make
    for one in made:
        one.stop(0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a lasting history is kept."""
    return tmp_path / "metrics.db"


@pytest.fixture
def lasting(monitor: MetricsMonitor, path: Path) -> Iterator[SQLiteHistory]:
    """A lasting history that writes only when told to."""
    lasting = SQLiteHistory(monitor, path, start=False)
    yield lasting
    lasting.stop()
