"""An open live page holds up no server, and is offered a stream only where one can be kept.

No time is asserted: a server that waits for a stream waits longer than these tests have patience.
"""

from __future__ import annotations

import asyncio
import http.client
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from kits.servers import COMMANDS, Server, serve, wait_until
from mangum import Mangum

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import metrics_app
from metricsmw.adapters.auth import public

STREAM = "/api/metrics/stream"
ENV = {"METRICSMW_TOKEN": "of-these-tests-only"}
AUTH = {"Authorization": "Bearer of-these-tests-only"}
# Less than any of these servers waits for an open response, and more than a busy machine takes.
PATIENCE = 28.0
REQUESTS = 40

# How a server is told to begin anew after so many requests.
RECYCLING = {
    "uvicorn": ("uvicorn", ["--limit-max-requests"]),
    "uvicorn-h11": ("uvicorn", ["--http", "h11", "--limit-max-requests"]),
    "uvicorn-asyncio": ("uvicorn", ["--loop", "asyncio", "--limit-max-requests"]),
    "gunicorn-uvicorn": ("gunicorn", ["-k", "uvicorn_worker.UvicornWorker", "--max-requests"]),
    "gunicorn-asgi": ("gunicorn", ["-k", "asgi", "--max-requests"]),
}
# How a server is started that is stopped while a page is open.
STOPPED = {
    **{name: (command, args[:-1]) for name, (command, args) in RECYCLING.items()},
    "hypercorn": ("hypercorn", []),
    "granian": ("granian", ["--interface", "asgi"]),
    "thread": ("thread", []),
}


@pytest.fixture(autouse=True)
def in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs uvicorn in a thread and stops it itself."""

    def command(app: str, port: int, workers: int) -> list[str]:
        return ["python", "-m", "apps.own_thread", str(port)]

    monkeypatch.setitem(COMMANDS, "thread", command)


@contextmanager
def listener(server: Server) -> Iterator[http.client.HTTPResponse]:
    """Have a client of the stream that has got its first bytes.

    As behind a proxy, it asks for the connection to be closed after the answer.
    """
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request("GET", STREAM, headers={"Connection": "close", **AUTH})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.readline().startswith(b"retry")
        yield answer
    finally:
        connection.close()


def ended(pids: list[int]) -> Callable[[], bool]:
    """Return what tells whether these processes have ended."""

    def probe() -> bool:
        alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)

    return probe


@pytest.mark.parametrize("name", RECYCLING)
def test_a_worker_is_recycled_while_a_page_is_open(name: str) -> None:
    command, args = RECYCLING[name]
    app = "apps.starlette_app:app"
    with serve(command, app, args=[*args, str(REQUESTS)], env=ENV) as server:
        before = server.worker_pids()
        with listener(server):
            for _ in range(REQUESTS):
                try:
                    server.get("/hello")
                except (OSError, http.client.HTTPException):
                    break  # the worker listens no more
            wait_until(ended(before), "the end of the worker", PATIENCE)


@pytest.mark.parametrize("name", STOPPED)
def test_a_server_ends_while_a_page_is_open(name: str) -> None:
    command, args = STOPPED[name]
    with (
        serve(command, "apps.starlette_app:app", args=args, env=ENV) as server,
        listener(server),
    ):
        pids = server.worker_pids()
        server.signal(signal.SIGTERM)
        wait_until(ended(pids), "the end of the server", PATIENCE)


def test_a_django_app_that_is_wrapped_streams() -> None:
    with serve("uvicorn", "apps.django_asgi:app", env=ENV) as server, listener(server) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        lines = iter(answer.readline, b"")
        assert any(line.startswith(b"data: {") for line in lines)


def test_below_a_bridge_from_wsgi_the_page_polls() -> None:
    with serve("gunicorn", "apps.bridged:app", env=ENV) as server:
        assert server.get(STREAM, AUTH).status == 406
        page = server.get("/api/metrics/", AUTH)
        assert page.status == 200
        assert 'data-streams="no"' in page.text
        assert server.get("/api/metrics/current", AUTH).json()["success"]


def test_in_a_function_of_a_cloud_the_page_polls() -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    try:
        with MetricsMonitor() as monitor:
            call: Any = Mangum(metrics_app(monitor, public()), lifespan="off")
            event = {
                "version": "2.0",
                "routeKey": "$default",
                "rawPath": "/stream",
                "rawQueryString": "",
                "headers": {"host": "example.org"},
                "requestContext": {
                    "http": {"method": "GET", "path": "/stream", "sourceIp": "192.0.2.1"}
                },
                "isBase64Encoded": False,
            }
            assert call(event, {})["statusCode"] == 406
    finally:
        asyncio.get_event_loop().close()
        asyncio.set_event_loop(None)
