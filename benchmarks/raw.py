"""The smallest WSGI and ASGI apps, driven as a server would but without one, and what they count.

Every request gets a fresh scope or environ, because middlewares write into them. Standard library
only: `tests/test_call_counts.py` loads this file too.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import io
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Requests = Callable[[int], None]
"""Sends the given number of requests."""

USER_KEY = "bench.user"
ROUTE_KEY = "bench.route"
"""Where the scope and the environ name the user and the route template, for those who ask."""

USER = "user-17"

LOGGED_IN_SCOPE = {"session": {"user": USER}}
LOGGED_IN_ENVIRON = {"REMOTE_USER": USER}
"""What names the user to those who are not told where to look."""

HEADERS = {"host": "bench.example", "user-agent": "bench/1.0", "accept": "*/*"}


# --- the apps -------------------------------------------------------------------------------------


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Five bytes, in one start and one body."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")],
        }
    )
    await send({"type": "http.response.body", "body": b"hello"})


def wsgi_list_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Five bytes, in a list."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def wsgi_generator_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Five bytes, from a generator."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    yield b"hello"


# --- the drivers ----------------------------------------------------------------------------------


def scope(path: str = "/") -> dict[str, object]:
    """Return the HTTP scope of a GET of `path`, as uvicorn would send it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
        "state": {},
        USER_KEY: USER,
        ROUTE_KEY: "/items/{id}",
    }


def environ(path: str = "/") -> dict[str, object]:
    """Return the environ of a GET of `path`."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        USER_KEY: USER,
        ROUTE_KEY: "/items/{id}",
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in HEADERS.items()},
    }


def user_of(request: Scope) -> str:
    """Return the user of a scope or an environ."""
    user: str = request[USER_KEY]
    return user


def route_of(request: Scope) -> str:
    """Return the route of a scope or an environ."""
    route: str = request[ROUTE_KEY]
    return route


class Client:
    """The server's side of a connection, as a middleware sees it under uvicorn: bound methods."""

    __module__ = "uvicorn.protocols.http.httptools_impl"

    def __init__(self) -> None:
        self.disconnected = False

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        pass


def write(data: bytes) -> None:
    pass


def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> object:
    return write


def drive_asgi(
    app: ASGIApp, path: str = "/", more: Mapping[str, object] = MappingProxyType({})
) -> Requests:
    """Run the app's coroutine to its end without an event loop (it never has to wait)."""
    fresh = {**scope(path), **more}.copy
    client = Client()
    receive, send = client.receive, client.send

    def requests(n: int) -> None:
        for _ in repeat(None, n):
            coroutine = app(fresh(), receive, send)
            try:
                coroutine.send(None)  # type: ignore[attr-defined]
            except StopIteration:
                continue
            raise RuntimeError("the app waited for something")

    return requests


def begin_asgi(app: ASGIApp, path: str = "/") -> None:
    """Send the app's first request in an event loop: in that one it may have to wait.

    To be called before `drive_asgi` where that then runs inside a loop.
    """
    client = Client()

    async def begin() -> None:
        await app(scope(path), client.receive, client.send)

    asyncio.run(begin())


def drive_wsgi(
    app: WSGIApplication, path: str = "/", more: Mapping[str, object] = MappingProxyType({})
) -> Requests:
    """Call the app, iterate the body and close it."""
    fresh = {**environ(path), **more}.copy

    def requests(n: int) -> None:
        for _ in repeat(None, n):
            body = app(fresh(), start_response)  # type: ignore[arg-type]
            for _chunk in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()

    return requests


# --- what can be counted --------------------------------------------------------------------------


def calls_per_request(requests: Requests) -> float:
    """Return the calls of Python and C functions a request, counted by cProfile."""
    return sum(calls_by_function(requests).values())


def calls_by_function(requests: Requests) -> dict[str, float]:
    """Return the calls a request of each function, by its name and place."""
    n = 200
    requests(n)
    # The least of three: in the others a step of the window, or a minute, may have begun.
    least = min((_calls(requests, n) for _ in range(3)), key=lambda calls: sum(calls.values()))
    return {name: calls / n for name, calls in least.items()}


def _calls(requests: Requests, n: int) -> dict[str, int]:
    profile = cProfile.Profile()
    # What is called at a collection is not the request's.
    enabled = gc.isenabled()
    gc.disable()
    try:
        profile.enable()
        requests(n)
        profile.disable()
    finally:
        if enabled:
            gc.enable()
    return {str(entry.code): entry.callcount for entry in profile.getstats()}


def garbage_per_request(requests: Requests) -> float:
    """Objects in reference cycles that a request leaves to the garbage collector."""
    n = 200
    requests(n)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        requests(n)
        return gc.collect() / n
    finally:
        if enabled:
            gc.enable()
