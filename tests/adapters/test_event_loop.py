"""No file is read or written in an app's event loop: not at the first request, nor every minute."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.clock import ManualClock


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


async def ask(app: Any, kind: str = "http") -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": kind, "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await app(scope, receive, send)


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


def test_many_first_requests_at_once_are_all_counted(
    monitor: MetricsMonitor, strict: BlockBuster
) -> None:
    async def test() -> None:
        app = ASGIMetricsMiddleware(hello, monitor)
        await asyncio.gather(*(ask(app) for _ in range(50)))

    asyncio.run(test())
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.requests_in_flight) == (50, 0)


def test_a_first_request_that_is_cancelled_is_in_flight_no_more(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        app = ASGIMetricsMiddleware(hello, monitor)
        task = asyncio.create_task(ask(app))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ask(app)

    asyncio.run(test())
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_requests, snapshot.requests_in_flight) == (1, 0)
