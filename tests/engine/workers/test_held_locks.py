"""A process that is stopped keeps its locks: nobody waits for it without end, and that is said."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits.handlers import ask

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock
from metricsmw.engine.workers import directories, shared

REASON = "another process holds the server's lock for too long"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "WAIT_SECONDS", 0.1)


@pytest.fixture
def server(clock: ManualClock) -> Iterator[MetricsMonitor]:
    """A worker that has recorded."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        monitor.record_request(10.0)
        yield monitor


@pytest.fixture
def held(server: MetricsMonitor) -> Iterator[int]:
    """The server's lock, as another process holds it that is stopped."""
    assert server.directory is not None
    lock = os.open(server.directory / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield lock
    os.close(lock)


def test_a_worker_that_starts_is_private_until_it_is_let_go(
    server: MetricsMonitor, held: int, clock: ManualClock
) -> None:
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        monitor.record_request(10.0)
        health = monitor.get_health()
        assert (health["mode"], health["mode_reason"]) == ("private", REASON)
        assert health["status"] == "degraded"
        clock.advance(5)
        monitor.record_request(10.0)
        assert monitor.get_health()["mode"] == "private"
        fcntl.flock(held, fcntl.LOCK_UN)
        clock.advance(5)
        monitor.record_request(10.0)
        assert monitor.get_health()["mode"] == "shared"
        assert server.total_requests == monitor.total_requests == 4


def test_a_reset_is_refused(server: MetricsMonitor, held: int) -> None:
    with pytest.raises(TimeoutError, match="holds the server's lock"):
        server.reset_statistics()
    response = ask(Handlers(server, public()), "/reset", "POST")
    assert response.status == 503
    assert REASON in response.body.decode()
    assert server.total_requests == 1
    fcntl.flock(held, fcntl.LOCK_UN)
    server.reset_statistics()
    assert server.total_requests == 0


def test_health_says_so_while_it_lasts(
    server: MetricsMonitor, held: int, clock: ManualClock
) -> None:
    assert server.get_health()["status"] == "healthy"
    clock.advance(70)  # the history has a minute to write
    server.record_request(10.0)
    clock.advance(10)
    assert server.get_health()["status"] == "degraded"
    assert REASON in str(server.get_health()["components"])
    fcntl.flock(held, fcntl.LOCK_UN)
    assert server.get_health()["status"] == "healthy"


@pytest.mark.parametrize("path", ["/alerts", "/current", "/statistics", "/history", "/series"])
def test_reading_goes_on(server: MetricsMonitor, held: int, clock: ManualClock, path: str) -> None:
    clock.advance(70)
    assert ask(Handlers(server, public()), path).status == 200


def test_a_start_does_not_wait_for_one_that_clears(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METRICSMW_DIR")
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    monkeypatch.setattr(directories, "bases", lambda: [base])
    folder = base / f"metricsmw-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with MetricsMonitor(shared=True, clock=clock) as monitor:
            monitor.record_request(10.0)
            assert monitor.get_health()["mode_reason"] == REASON
    finally:
        os.close(lock)
