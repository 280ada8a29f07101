"""No file is read or written in an app's event loop: not at the first request, nor every minute."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import to_thread
from blockbuster import BlockBuster, blockbuster_ctx

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.answers import ROUTES
from metricsmw.adapters.asgi import ASGIMetricsMiddleware, metrics_app
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.segment import Segment


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    """One of a server's workers, which has files."""
    with MetricsMonitor(shared=True, clock=clock) as monitor:
        yield monitor


@pytest.fixture
def strict() -> Iterator[BlockBuster]:
    """Raises where a thread that runs an event loop reads, writes or waits."""
    with blockbuster_ctx() as blockbuster:
        yield blockbuster


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def ask(app: Any, kind: str = "http", path: str = "/") -> int:
    """Return the status; 0 where there is none."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": kind, "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return status


def test_the_guard_sees_a_file_read_in_the_loop(strict: BlockBuster) -> None:
    async def test() -> None:
        with open(__file__) as file:
            file.read()

    with pytest.raises(Exception, match="Blocking call"):
        asyncio.run(test())


@pytest.mark.parametrize("first", ["http", "lifespan"])
def test_requests_of_an_hour_touch_no_file_in_the_loop(
    first: str, monitor: MetricsMonitor, clock: ManualClock, strict: BlockBuster
) -> None:
    async def test() -> None:
        app = ASGIMetricsMiddleware(
            hello, monitor, route=lambda scope: "/", user=lambda scope: "somebody"
        )
        await ask(app, first)
        for seconds in (0, 6, 61, 3600, 6):
            clock.advance(seconds)
            await ask(app)

    asyncio.run(test())
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == 5 + (first == "http")
    health = monitor.get_health()
    assert (health["faults"], health["mode"]) == (0, "shared")


READ = [path for path, methods in ROUTES.items() if "GET" in methods and path != "/stream"]


@pytest.mark.parametrize("path", READ)
def test_no_answer_about_the_metrics_reads_a_file_in_the_loop(
    path: str, monitor: MetricsMonitor, strict: BlockBuster
) -> None:
    assert asyncio.run(ask(metrics_app(monitor, public()), path=path)) == 200
    assert monitor.get_health()["faults"] == 0


def test_the_metrics_are_answered_while_the_app_holds_all_of_its_threads(
    monitor: MetricsMonitor,
) -> None:
    async def test() -> int:
        to_thread.current_default_thread_limiter().total_tokens = 1
        held = threading.Event()
        app = asyncio.create_task(to_thread.run_sync(held.wait))
        try:
            await asyncio.sleep(0)
            return await asyncio.wait_for(ask(metrics_app(monitor, public()), path="/current"), 30)
        finally:
            held.set()
            await app

    assert asyncio.run(test()) == 200


def test_many_first_requests_at_once_are_all_counted(
    monitor: MetricsMonitor, strict: BlockBuster
) -> None:
    async def test() -> None:
        app = ASGIMetricsMiddleware(hello, monitor)
        await asyncio.gather(*(ask(app) for _ in range(50)))

    asyncio.run(test())
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.requests_in_flight) == (50, 0)


def test_a_first_request_that_is_cancelled_is_in_flight_no_more(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, open_segment = threading.Event(), monitor.recorder.open

    def held() -> Segment:
        cancelled.wait(30)
        return open_segment()

    monkeypatch.setattr(monitor.recorder, "open", held)

    async def test() -> None:
        app = ASGIMetricsMiddleware(hello, monitor)
        task = asyncio.create_task(ask(app))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        await ask(app)

    asyncio.run(test())
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.requests_in_flight) == (1, 0)
