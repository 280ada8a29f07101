"""Real servers in a thread of the test's own process: quick, and their numbers are at hand.

Each `with` block yields the port; leaving it shuts the server down.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import hypercorn.asyncio
import hypercorn.config
import uvicorn
import waitress.server
from kits.servers import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from metricsmw.adapters.types import ASGIApp, Receive, Scope, Send


@contextmanager
def threaded(target: Any) -> Iterator[None]:
    """Run `target` beside the block; leaving it waits for its end."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


@contextmanager
def uvicorn_server(app: ASGIApp, http: Any, **settings: Any) -> Iterator[int]:
    config = uvicorn.Config(
        app, port=0, http=http, lifespan="off", log_level="critical", **settings
    )
    server = uvicorn.Server(config)
    with threaded(server.run):
        try:
            wait_until(lambda: server.started, "uvicorn")
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True


@contextmanager
def hypercorn_server(app: ASGIApp, **settings: Any) -> Iterator[int]:
    async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await app(scope, receive, send)

    loop = asyncio.new_event_loop()
    end = asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "CRITICAL"
    for name, value in settings.items():
        setattr(config, name, value)

    def run() -> None:
        try:
            serving = hypercorn.asyncio.serve(without_lifespan, config, shutdown_trigger=end.wait)  # type: ignore[arg-type]
            loop.run_until_complete(serving)
        finally:
            loop.close()

    with threaded(run):
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(end.set)


@contextmanager
def waitress_server(app: WSGIApplication, **settings: Any) -> Iterator[int]:
    server = waitress.server.create_server(app, host="127.0.0.1", port=0, **settings)
    with threaded(server.run):
        try:
            yield server.effective_port
        finally:
            server.trigger.pull_trigger(server.close)
            server.task_dispatcher.shutdown()


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def wsgiref_server(app: WSGIApplication) -> Iterator[int]:
    with (
        make_server("127.0.0.1", 0, app, handler_class=Quiet) as server,
        threaded(lambda: server.serve_forever(0.01)),
    ):
        try:
            yield server.server_port
        finally:
            server.shutdown()
