"""A measured request leaves nothing more to the garbage collector than a bare one.

Servers hold the scope in the object whose methods an app is given: whatever of the middleware's
stays in scope or environ makes a circle of them, which no stand-in for a server shows.
"""

from __future__ import annotations

import http.client

import pytest
from kits.servers import COMMANDS, Server, serve

REQUESTS = 60  # more than the objects that a connection leaves, which ends sooner or later

WSGI = {
    "gunicorn": ("gunicorn", []),
    "gunicorn-gthread": ("gunicorn", ["-k", "gthread", "--threads", "1"]),
    "gunicorn-gevent": ("gunicorn", ["-k", "gevent"]),
    "granian": ("granian", ["--interface", "wsgi"]),
    "waitress": ("waitress", []),
    "uwsgi": ("uwsgi", []),
    "wsgiref": ("wsgiref", []),
    "werkzeug": ("werkzeug", []),
}
ASGI = {
    "uvicorn": ("uvicorn", ["--http", "httptools"]),
    "uvicorn-h11": ("uvicorn", ["--http", "h11", "--loop", "asyncio"]),
    "gunicorn-uvicorn": ("gunicorn", ["-k", "uvicorn_worker.UvicornWorker"]),
    "gunicorn-asgi": ("gunicorn", ["-k", "asgi"]),
    "hypercorn": ("hypercorn", []),
    "hypercorn-trio": ("hypercorn", ["-k", "trio"]),
    "granian": ("granian", ["--interface", "asgi"]),
}
APPS = {"wsgi": WSGI, "flask": WSGI, "asgi": ASGI, "starlette": ASGI, "fastapi": ASGI}
CASES = [
    (app, name)
    for app, servers in APPS.items()
    # Frameworks under one server of either kind: what differs from server to server is below them.
    for name in (servers if app in ("wsgi", "asgi") else ["waitress", "uvicorn"])
    if name in servers
]
PATHS = ["/hello", "/stream", "/generator", "/fail"]


@pytest.fixture(autouse=True)
def werkzeug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Werkzeug's own server, as an app's program runs it."""

    def command(app: str, port: int, workers: int) -> list[str]:
        module, _, name = app.partition(":")
        code = (
            f"from werkzeug.serving import run_simple; from {module} import {name} as app;"
            f" run_simple('127.0.0.1', {port}, app)"
        )
        return ["python", "-c", code]

    monkeypatch.setitem(COMMANDS, "werkzeug", command)


@pytest.mark.parametrize(("app", "name"), CASES)
def test_a_request_leaves_no_more_than_a_bare_one(app: str, name: str) -> None:
    bare, wrapped = (left_by(kind, app, name) for kind in ("bare", "wrapped"))
    for path in PATHS:
        more = wrapped[path] - bare[path]
        # An exception that is part of a circle anyhow has the middleware's frame in its traceback.
        most = 10 * REQUESTS if path == "/fail" and bare[path] >= REQUESTS else REQUESTS
        assert more < most, f"{path}: {bare[path]} objects bare, {wrapped[path]} wrapped"


def left_by(kind: str, app: str, name: str) -> dict[str, int]:
    """Return how many objects some requests of each path leave, under a server of their own."""
    command, args = APPS[app][name]
    with serve(command, f"apps.leaving:{kind}_{app}", args=args, ready="/hello") as server:
        # The least of some: a server's own tasks come and go meanwhile.
        return {path: min(left_after(server, path) for _ in range(3)) for path in PATHS}


def left_after(server: Server, path: str) -> int:
    """Return how many objects requests of one path leave; all over a connection where it lasts."""
    ask(server, path, 2)  # fills what is filled once
    server.get("/left")
    ask(server, path, REQUESTS)
    return int(server.get("/left").text)


def ask(server: Server, path: str, times: int) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        for _ in range(times):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                if response.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException):  # a server's way to answer an exception
                connection.close()
    finally:
        connection.close()
