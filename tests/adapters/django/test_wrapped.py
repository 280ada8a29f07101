"""A handler of Django's, wrapped, over WSGI and over ASGI."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin
from wsgiref.util import setup_testing_defaults

import pytest
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.test.utils import override_settings
from kits.django_site import (
    TEMPLATES,
    Wrapped,
    both,
    called,
    environ_of,
    in_flight,
    logged_in,
    rows,
)
from starlette.applications import Starlette
from starlette.testclient import TestClient
from werkzeug.test import run_wsgi_app
from werkzeug.wsgi import FileWrapper

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public


@both
@pytest.mark.parametrize(("path", "row"), TEMPLATES)
def test_wrapped_template(
    monitor: MetricsMonitor, bare: None, path: str, row: str, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor)
    for _ in range(2):
        app.get(path)
    assert rows(monitor) == {row: 2}
    assert in_flight(monitor) == 0


@both
def test_wrapped_user(monitor: MetricsMonitor, bare: None, asynchronous: bool) -> None:
    app = Wrapped(asynchronous).wrap(monitor)
    cookie = logged_in()
    app.get("/", cookie)
    assert monitor.get_active_users() == 0
    app.get("/async-user" if asynchronous else "/user", cookie)
    assert monitor.get_active_user_ids() == [str(User.objects.get(username="ann").pk)]


@both
@pytest.mark.parametrize(
    ("path", "user"), [("/keep?user=ann", ["ann"]), ("/keep?x=1", []), ("/items/7/", [])]
)
def test_two_monitors_read_the_same(
    monitor: MetricsMonitor, bare: None, path: str, user: list[str], asynchronous: bool
) -> None:
    with MetricsMonitor() as other:
        app = Wrapped(asynchronous).wrap(monitor).wrap(other)
        app.get(path)
        assert monitor.get_active_user_ids() == other.get_active_user_ids() == user
        assert rows(monitor) == rows(other)
        assert len(rows(monitor)) == 1


@both
@pytest.mark.parametrize("mount", ["/api/metrics", "/m"])
def test_wrapped_sub_app(
    monitor: MetricsMonitor, bare: None, mount: str, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor, path=mount)
    app.get("/")
    assert app.get(f"{mount}/current")[0] == 401
    assert app.get(f"{mount}/health")[0] == 200
    status, body = app.get(f"{mount}/current", logged_in())
    assert status == 200
    assert b'"total_requests":1,' in body
    for page in (mount, mount + "/"):
        status, body = app.get(page, logged_in())
        links = [urljoin(page, link) for link in re.findall(r'href="([^"]*)"', body.decode())]
        assert f"{mount}/current" in links
        # As a browser asks: without what follows the hash.
        assert {app.get(urldefrag(link).url, logged_in())[0] for link in links} == {200}
    assert app.get(f"{mount}/none", logged_in()) == (404, b'{"error":"Not found"}')
    assert app.get(f"{mount}x")[0] == 404
    assert rows(monitor) == {"GET /": 1, "GET <unmatched>": 1}
    assert in_flight(monitor) == 0


@both
def test_wrapped_twice_counts_once(monitor: MetricsMonitor, bare: None, asynchronous: bool) -> None:
    app = Wrapped(asynchronous).wrap(monitor).wrap(monitor)
    app.get("/items/7/")
    assert rows(monitor) == {"GET /items/<int:id>/": 1}
    assert app.get("/api/metrics/current")[0] == 401
    assert app.get("/api/metrics/current", logged_in())[0] == 200
    assert monitor.total_requests == 1
    assert in_flight(monitor) == 0


@both
def test_wrapped_and_in_middleware_counts_once(
    monitor: MetricsMonitor, measured: None, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor, auth=public())
    app.get("/items/7/")
    assert rows(monitor) == {"GET /items/<int:id>/": 1}
    assert app.get("/api/metrics/current")[0] == 200
    assert monitor.total_requests == 1
    assert in_flight(monitor) == 0


def test_route_is_known_through_other_middleware(monitor: MetricsMonitor, bare: None) -> None:
    """Around a handler that is covered, the middleware in MIDDLEWARE still names the route."""

    def covered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return handler(environ, start_response)

    with override_settings(MIDDLEWARE=["metricsmw.adapters.django.MetricsMiddleware"]):
        handler = get_wsgi_application()
    body, _, _ = run_wsgi_app(wrap(covered, monitor), environ_of("/items/7/"), buffered=True)
    assert b"".join(body) == b"hello"
    assert rows(monitor) == {"GET /items/<int:id>/": 1}


def test_wrapped_file_wrapper(monitor: MetricsMonitor, bare: None, tmp_path: Path) -> None:
    app = wrap(get_wsgi_application(), monitor)
    body = called(app, environ_of("/file") | {"wsgi.file_wrapper": FileWrapper})
    assert isinstance(body, FileWrapper)
    assert b"".join(body) == b"file"
    body.close()
    assert rows(monitor) == {"GET /file": 1}


def test_script_name_is_part_of_the_template(monitor: MetricsMonitor, bare: None) -> None:
    app = wrap(get_wsgi_application(), monitor)
    environ = environ_of("/items/7/") | {"SCRIPT_NAME": "/shop"}
    called(app, environ).close()
    assert rows(monitor) == {"GET /shop/items/<int:id>/": 1}


def test_root_path_is_part_of_the_template(monitor: MetricsMonitor, bare: None) -> None:
    client = TestClient(wrap(get_asgi_application(), monitor), root_path="/shop")
    assert client.get("/shop/items/7/").text == "hello"
    assert rows(monitor) == {"GET /shop/items/<int:id>/": 1}


def test_mounted_in_another_app(monitor: MetricsMonitor) -> None:
    """The outer app names the mount, Django's own middleware the rest."""
    outer = Starlette()
    with override_settings(MIDDLEWARE=["metricsmw.adapters.django.MetricsMiddleware"]):
        outer.mount("/sites/{site}", get_asgi_application())
    client = TestClient(wrap(outer, monitor))
    assert client.get("/sites/acme/items/7/").text == "hello"
    assert client.get("/sites/acme/none").status_code == 404
    assert rows(monitor) == {"GET /sites/{site}/items/<int:id>/": 1, "GET <unmatched>": 1}


@override_settings(MIDDLEWARE=[])  # that of users leaves circles of its own
@pytest.mark.parametrize("settings", [{}, {"user": lambda carrier: "somebody"}, {"exclude": ["/"]}])
def test_a_request_leaves_nothing_to_the_garbage_collector(
    settings: dict[str, Any], monitor: MetricsMonitor
) -> None:
    """Django's request refers to the environ that its own place is in."""
    app = wrap(get_wsgi_application(), monitor, **settings)
    for _ in range(2):  # the first one fills what is filled once
        gc.collect()
        gc.disable()
        try:
            environ: dict[str, Any] = {}
            setup_testing_defaults(environ)
            app(environ, lambda *_: bytearray).close()  # type: ignore[attr-defined]
            del environ
            left = gc.collect()
        finally:
            gc.enable()
    assert left == 0
