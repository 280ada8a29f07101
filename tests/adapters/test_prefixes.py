"""A mount that a client names by a header makes no rows; one that the server was told stays."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import bottle
import pytest
import werkzeug.test
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap


def flask_app() -> Any:
    app = Flask(__name__)
    app.add_url_rule("/items/<int:i>", view_func=lambda i: "item")
    return app


def bottle_app() -> Any:
    app = bottle.Bottle()
    app.route("/items/<i:int>", callback=lambda i: "item")
    return app


APPS: dict[str, tuple[Callable[[], Any], str]] = {
    "flask": (flask_app, "/items/<int:i>"),
    "flask below": (
        lambda: DispatcherMiddleware(bottle_app(), {"/shop": flask_app()}),
        "/shop/items/<int:i>",
    ),
    "bottle": (bottle_app, "/items/<i:int>"),
}


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    return {row["route"]: row["requests"] for row in monitor.get_routes()}


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("given", ["{0}", "/other,{0}", "{0},{0}"])
def test_a_script_name_by_a_header_makes_no_rows(name: str, given: str) -> None:
    """As gunicorn makes the environ: the header is its SCRIPT_NAME, and an HTTP_ variable, too."""
    make, template = APPS[name]
    monitor = MetricsMonitor()
    client = werkzeug.test.Client(wrap(make(), monitor))
    below = "/shop" if "below" in name else ""
    for junk in ("/x", "/y/z", "/secret-4711", "/a,b"):
        environ = {"SCRIPT_NAME": junk, "HTTP_SCRIPT_NAME": given.format(junk)}
        client.get(f"{below}/items/7", environ_overrides=environ).close()
    assert rows(monitor) == {template: 4}


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("by_header", [True, False])
def test_a_mount_that_the_server_was_told_stays(
    monkeypatch: pytest.MonkeyPatch, name: str, by_header: bool
) -> None:
    make, template = APPS[name]
    environ = {"SCRIPT_NAME": "/site"}
    if by_header:  # the proxy says what the server knows
        monkeypatch.setenv("SCRIPT_NAME", "/site")
        environ["HTTP_SCRIPT_NAME"] = "/site"
    monitor = MetricsMonitor()
    below = "/shop" if "below" in name else ""
    client = werkzeug.test.Client(wrap(make(), monitor))
    client.get(f"{below}/items/7", environ_overrides=environ).close()
    assert rows(monitor) == {f"/site{template}": 1}


@pytest.mark.parametrize(("daphne", "shown"), [(True, "/shop/items/{i}"), (False, None)])
def test_a_root_path_by_a_header_makes_no_rows(
    monkeypatch: pytest.MonkeyPatch, daphne: bool, shown: str | None
) -> None:
    """As Daphne makes the scope; under other servers that header means nothing."""
    if daphne:
        monkeypatch.setitem(sys.modules, "daphne.server", ModuleType("daphne.server"))
    else:
        monkeypatch.delitem(sys.modules, "daphne.server", raising=False)
    routes = [Route("/items/{i}", lambda request: PlainTextResponse("item"))]
    monitor = MetricsMonitor()
    app = wrap(Starlette(routes=[Mount("/shop", routes=routes)]), monitor)

    async def send(message: Any) -> None:
        pass

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    for junk in ("/x", "/secret 4711"):
        scope = {
            "type": "http",
            "method": "GET",
            "path": f"{junk}/shop/items/7",
            "root_path": junk,
            "query_string": b"",
            "headers": [(b"daphne-root-path", junk.replace(" ", "%20").encode())],
        }
        asyncio.run(app(scope, receive, send))
    found = (
        {"/x/shop/items/{i}": 1, "/secret 4711/shop/items/{i}": 1} if shown is None else {shown: 2}
    )
    assert rows(monitor) == found
