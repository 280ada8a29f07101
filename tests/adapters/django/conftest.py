"""Fixtures of Django's tests: its database, and the middleware in place or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.test.utils import override_settings
from kits.django_site import SESSIONS, Measured, database

from metricsmw import MetricsMonitor


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> MetricsMonitor:
    monitor = MetricsMonitor()
    monkeypatch.setattr(Measured, "monitor", monitor)
    return monitor


@pytest.fixture(scope="session", autouse=True)
def _database() -> Iterator[None]:
    with database():
        yield


@pytest.fixture
def measured() -> Iterator[None]:
    with override_settings(MIDDLEWARE=["kits.django_site.Measured", *SESSIONS]):
        yield


@pytest.fixture
def bare() -> Iterator[None]:
    with override_settings(MIDDLEWARE=SESSIONS):
        yield
