"""`wrap`: what it takes an application for, what comes back, and what it refuses."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import bottle  # type: ignore[import-untyped]
import falcon
import falcon.asgi
import litestar
import litestar.types
import pytest
import quart
import werkzeug.test
from fastapi import FastAPI
from flask import Flask, request
from pyramid.config import Configurator  # type: ignore[import-untyped]
from pyramid.wsgi import wsgiapp2  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


# --- applications of every make: each answers "hello" -----------------------------------------


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


class WSGIObject:
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return wsgi(environ, start_response)

    def method(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return wsgi(environ, start_response)


class WSGIClass:
    """An application that is a class: its instances are the bodies."""

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.body = wsgi(environ, start_response)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)


class ASGIObject:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asgi(scope, receive, send)

    async def method(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asgi(scope, receive, send)


class ASGIClass(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")


def plain_asgi(scope: Scope, receive: Receive, send: Send) -> Any:
    """An ASGI application that is no coroutine function, but returns what it made."""
    return asgi(scope, receive, send)


def with_settings(setting: str, *, app: Callable[..., Any]) -> Callable[..., Any]:
    return app


def configured_wsgi(
    setting: str, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    return wsgi(environ, start_response)


async def configured_asgi(setting: str, scope: Scope, receive: Receive, send: Send) -> None:
    await asgi(scope, receive, send)


@functools.wraps(wsgi)
def decorated_wsgi(*args: Any) -> Iterable[bytes]:
    return wsgi(*args)


async def asgi_of_any_arguments(*args: Any) -> None:
    await asgi(*args)


def wsgi_with_an_option(
    environ: WSGIEnvironment, start_response: StartResponse, option: str | None = None
) -> Iterable[bytes]:
    return wsgi(environ, start_response)


def of_bottle() -> bottle.Bottle:
    app = bottle.Bottle()
    app.route("/", callback=lambda: "hello")
    return app


class Hello:
    """A Falcon resource."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.text = "hello"


class AsyncHello:
    async def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.text = "hello"


def of_falcon() -> falcon.App[Any, Any]:
    app = falcon.App()
    app.add_route("/", Hello())
    return app


def of_async_falcon() -> falcon.asgi.App[Any, Any]:
    app = falcon.asgi.App()
    app.add_route("/", AsyncHello())
    return app


def of_pyramid() -> Any:
    from pyramid.response import Response  # type: ignore[import-untyped]

    with Configurator() as config:
        config.add_route("hello", "/")
        config.add_view(lambda request: Response("hello"), route_name="hello")
        return config.make_wsgi_app()


def of_quart() -> quart.Quart:
    app = quart.Quart(__name__)

    @app.get("/")
    async def hello() -> str:
        return "hello"

    return app


def of_litestar() -> litestar.Litestar:
    @litestar.get("/", media_type="text/plain")
    async def hello() -> str:
        return "hello"

    return litestar.Litestar([hello])


WSGI = {
    "function": lambda: wsgi,
    "object": WSGIObject,
    "bound method": lambda: WSGIObject().method,
    "class": lambda: WSGIClass,
    "partial": lambda: functools.partial(configured_wsgi, "setting"),
    "decorated": lambda: decorated_wsgi,
    "with an option": lambda: wsgi_with_an_option,
    "Bottle": of_bottle,
    "Falcon": of_falcon,
    "Pyramid": of_pyramid,
    "wrapped": lambda: WSGIMetricsMiddleware(wsgi, MetricsMonitor()),
}
ASGI = {
    "function": lambda: asgi,
    "object": ASGIObject,
    "bound method": lambda: ASGIObject().method,
    "class": lambda: ASGIClass,
    "plain function": lambda: plain_asgi,
    "partial": lambda: functools.partial(configured_asgi, "setting"),
    "of any arguments": lambda: asgi_of_any_arguments,
    "Falcon": of_async_falcon,
    "Quart": of_quart,
    "Litestar": of_litestar,
    "wrapped": lambda: ASGIMetricsMiddleware(asgi, MetricsMonitor()),
}


@pytest.mark.parametrize("make", WSGI.values(), ids=WSGI)
def test_wsgi_applications(make: Callable[[], Any], monitor: MetricsMonitor) -> None:
    app = wrap(make(), monitor, auth=public())
    assert isinstance(app, WSGIMetricsMiddleware)
    client = werkzeug.test.Client(app)
    answer = client.get("/")
    assert answer.get_data() == b"hello"
    answer.close()
    assert monitor.total_requests == 1
    current: Any = client.get("/api/metrics/current").json
    assert current["metrics"]["total_requests"] == 1
    assert monitor.total_requests == 1


@pytest.mark.parametrize("make", ASGI.values(), ids=ASGI)
def test_asgi_applications(make: Callable[[], Any], monitor: MetricsMonitor) -> None:
    app = wrap(make(), monitor, auth=public())
    assert isinstance(app, ASGIMetricsMiddleware)
    client = TestClient(app)  # without its context: not all of these know lifespan
    assert client.get("/").content == b"hello"
    assert monitor.total_requests == 1
    assert client.get("/api/metrics/current").json()["metrics"]["total_requests"] == 1
    assert monitor.total_requests == 1


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def test_bottle_s_templates(monitor: MetricsMonitor) -> None:
    app, mounted = bottle.Bottle(), bottle.Bottle()
    app.route("/items/<id:int>", callback=lambda id: "item")
    mounted.route("/<x>", callback=lambda x: "mounted")
    app.mount("/sub/", mounted)
    client = werkzeug.test.Client(wrap(app, monitor))
    for path in ("/items/7", "/items/x", "/sub/8", "/none"):
        client.get(path).close()
    client.get("/items/9", environ_overrides={"SCRIPT_NAME": "/shop"}).close()
    assert rows(monitor) == {
        "GET /items/<id:int>": 1,
        "GET /sub/<x>": 1,
        "GET <unmatched>": 2,
        "GET /shop/items/<id:int>": 1,
    }


def test_litestar_s_templates(monitor: MetricsMonitor) -> None:
    @litestar.get("/items/{id:int}")
    async def item(id: int) -> int:
        return id

    router = litestar.Router("/sub/{tenant:str}", route_handlers=[item])
    app: Any = litestar.Litestar([item, router])
    client = TestClient(wrap(app, monitor))
    for path in ("/items/7", "/items/x", "/sub/acme/items/8", "/none"):
        client.get(path)
    assert rows(monitor) == {
        "GET /items/{id}": 1,
        "GET /sub/{tenant}/items/{id}": 1,
        "GET <unmatched>": 2,
    }


@pytest.mark.parametrize("copy_scope", [False, True])
def test_templates_of_what_litestar_mounts(copy_scope: bool, monitor: MetricsMonitor) -> None:
    """Below the mount, also in a copied scope."""
    inner = Starlette()
    inner.add_route("/items/{id}/", lambda request: PlainTextResponse("item"))

    def mount(path: str, app: Any) -> Any:
        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)

        for name in ("scope", "receive", "send"):
            mounted.__annotations__[name] = getattr(litestar.types, name.title())
        return litestar.asgi(path, is_mount=True, copy_scope=copy_scope)(mounted)

    known = mount("/known", inner)
    versions = [litestar.Router(path, route_handlers=[known]) for path in ("/v1", "/v2")]
    app: Any = litestar.Litestar([*versions, mount("/raw", asgi)])
    client = TestClient(wrap(app, monitor), root_path="/shop")
    for path in ("/v1/known/items/7", "/v2/known/items/7", "/raw", "/raw/a/b", "/none"):
        client.get(f"/shop{path}")
    assert rows(monitor) == {
        "GET /shop/v1/known/items/{id}/": 1,
        "GET /shop/v2/known/items/{id}/": 1,
        "GET /shop/raw/{path:path}": 2,
        "GET <unmatched>": 1,
    }
    assert monitor.get_health()["faults"] == 0


def test_falcon_s_template_below_a_bottle(monitor: MetricsMonitor) -> None:
    outer = bottle.Bottle()
    outer.mount("/mounted/", of_falcon())
    answer = werkzeug.test.Client(wrap(outer, monitor)).get("/mounted/")
    assert answer.get_data() == b"hello"
    answer.close()
    assert rows(monitor) == {"GET /mounted/": 1}


def test_wrapped_inside_and_outside_of_a_copy(monitor: MetricsMonitor) -> None:
    """The template is left in the copy and found there, unless the outer app has one of its own."""
    inner = wrap(of_falcon(), monitor)
    outer = Flask(__name__)

    def copying(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/rewritten":
            return inner({**environ, "PATH_INFO": "/"}, start_response)
        mounted = {**environ, "SCRIPT_NAME": "/mounted", "PATH_INFO": environ["PATH_INFO"][8:]}
        return inner(mounted, start_response)

    @outer.get("/many")
    def many() -> str:
        werkzeug.test.run_wsgi_app(copying, {**request.environ, "PATH_INFO": "/rewritten"})
        return "made up by itself"

    client = werkzeug.test.Client(wrap(copying, monitor))
    for path in ("/mounted/", "/rewritten", "/mounted/none"):
        client.get(path).close()
    assert rows(monitor) == {"GET /mounted/": 1, "GET /": 1, "GET <unmatched>": 1}
    monitor.reset_statistics()
    werkzeug.test.Client(wrap(outer, monitor)).get("/many").close()
    assert rows(monitor) == {"GET /many": 1}


def test_wrapped_inside_and_outside_of_a_copied_scope(monitor: MetricsMonitor) -> None:
    inner = wrap(of_async_falcon(), monitor)

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/rewritten":
            await inner({**scope, "path": "/"}, receive, send)
            return
        path = scope["path"].removeprefix("/mounted")
        copy = {**scope, "root_path": "/mounted", "path": path, "session": {"user": "ann"}}
        await inner(copy, receive, send)

    client = TestClient(wrap(copying, monitor))
    for path in ("/mounted/", "/rewritten", "/mounted/none"):
        client.get(path)
    assert rows(monitor) == {"GET /mounted/": 1, "GET /": 1, "GET <unmatched>": 1}


def test_pyramid_around_what_is_not_pyramid(monitor: MetricsMonitor) -> None:
    """Nobody looks into that; and a middleware around the whole hides nothing."""
    with Configurator() as config:
        config.add_route("mounted", "/mounted/*subpath")
        config.add_view(wsgiapp2(wsgi), route_name="mounted")
        app = config.make_wsgi_app()

    def around(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    client = werkzeug.test.Client(wrap(around, monitor))
    for path in ("/mounted/a/b", "/none"):
        client.get(path).close()
    assert rows(monitor) == {"GET /mounted/*subpath": 1, "GET <unmatched>": 1}


@pytest.mark.parametrize(
    "app",
    [Flask(__name__), Starlette(), FastAPI()],
    ids=lambda app: type(app).__name__,
)
def test_instrumented_in_place(app: Any, monitor: MetricsMonitor) -> None:
    assert wrap(app, monitor) is app


def ask(app: Any, path: str) -> tuple[int, bytes]:
    if isinstance(app, (WSGIMetricsMiddleware, Flask)):
        answer = werkzeug.test.Client(app).get(path)
        return answer.status_code, answer.get_data()
    response = TestClient(app).get(path)
    return response.status_code, response.content


def hosts() -> list[Any]:
    flask = Flask(__name__)
    flask.add_url_rule("/", view_func=lambda: "hello")
    starlette = Starlette()
    starlette.add_route("/", lambda request: PlainTextResponse("hello"))
    return [wsgi, asgi, flask, starlette]


@pytest.mark.parametrize("number", range(4), ids=["WSGI", "ASGI", "Flask", "Starlette"])
class TestEverywhere:
    """What `wrap` promises whatever it wraps."""

    @pytest.fixture
    def app(self, number: int) -> Any:
        return hosts()[number]

    def test_wrapping_twice_counts_once(self, app: Any, monitor: MetricsMonitor) -> None:
        twice = wrap(wrap(app, monitor, auth=public()), monitor, auth=public())
        assert ask(twice, "/") == (200, b"hello")
        assert monitor.total_requests == 1
        assert monitor.get_current_snapshot().requests_in_flight == 0
        status, body = ask(twice, "/api/metrics/current")
        assert (status, json.loads(body)["metrics"]["total_requests"]) == (200, 1)
        assert monitor.total_requests == 1
        assert monitor.get_current_snapshot().requests_in_flight == 0

    def test_two_monitors_each_count_once(self, app: Any, monitor: MetricsMonitor) -> None:
        other = MetricsMonitor()
        both = wrap(wrap(app, monitor), other)
        assert ask(both, "/") == (200, b"hello")
        assert (monitor.total_requests, other.total_requests) == (1, 1)

    @pytest.mark.parametrize("path", ["/deep/er", "/deep/er/"])
    def test_path(self, app: Any, monitor: MetricsMonitor, path: str) -> None:
        app = wrap(app, monitor, path=path, auth=public())
        for asked in ("/deep/er/health", "/deep/er/", "/deep/er"):
            assert ask(app, asked)[0] == 200
        assert monitor.total_requests == 0
        # What only starts the same is the app's.
        assert b"metrics" not in ask(app, "/deep/ernest")[1]
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("path", ["", "/", "//", "metrics", "http://x/metrics"])
    def test_bad_path(self, app: Any, path: str) -> None:
        with pytest.raises(ValueError, match="path") as caught:
            wrap(app, MetricsMonitor(), path=path)
        assert repr(path) in str(caught.value)

    def test_bad_path_type(self, app: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="path"):
            wrap(app, MetricsMonitor(), path=b"/metrics")  # type: ignore[arg-type]

    def test_bad_auth(self, app: Any) -> None:
        with pytest.raises(TypeError, match="auth"):
            wrap(app, MetricsMonitor(), auth="secret")  # type: ignore[arg-type]

    def test_exclude(self, app: Any, monitor: MetricsMonitor) -> None:
        app = wrap(app, monitor, exclude=["/static", re.compile(r"\.ico$")])
        for path in ("/static/a.css", "/favicon.ico"):
            ask(app, path)
        assert monitor.total_requests == 0
        ask(app, "/icons")
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("wrong", [[b"/static"], [None], [r"/x", 3]])
    def test_bad_exclude(self, app: Any, wrong: list[Any]) -> None:
        with pytest.raises(TypeError, match="exclude"):
            wrap(app, MetricsMonitor(), exclude=wrong)

    def test_user(self, app: Any, monitor: MetricsMonitor) -> None:
        def user(request: dict[str, Any]) -> str | None:
            asked: str = request.get("path") or request["PATH_INFO"]
            return asked.strip("/") or None

        app = wrap(app, monitor, user=user)
        for path in ("/", "/ann", "/bob", "/ann"):
            ask(app, path)
        assert monitor.get_active_user_ids() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("app", "what"),
    [
        (None, "NoneType"),
        ("app", "'app'"),
        (42, "42"),
        (object(), "object"),
        (dict, "dict"),
        (print, "print"),
        (lambda: None, "lambda"),
        (lambda request: None, "lambda"),
        (lambda a, b, c, d: None, "lambda"),
        (lambda a, b=None, c=None: None, "lambda"),
        (Flask, "flask"),
        (FastAPI, "fastapi"),
        (falcon.App, "falcon"),
    ],
)
def test_neither(app: Any, what: str) -> None:
    with pytest.raises(TypeError, match="must be a WSGI or an ASGI application") as caught:
        wrap(app, MetricsMonitor())
    assert what in str(caught.value)


def test_coroutine_function_of_two_arguments_is_neither() -> None:
    async def handler(request: Any, response: Any) -> None: ...

    with pytest.raises(TypeError, match="handler"):
        wrap(handler, MetricsMonitor())


def test_asgi_2_is_told_the_way_out() -> None:
    class Application:
        def __init__(self, scope: Scope) -> None: ...

        async def __call__(self, receive: Receive, send: Send) -> None: ...

    with pytest.raises(TypeError, match="guarantee_single_callable"):
        wrap(Application, MetricsMonitor())


def test_ambiguous_arguments_are_told_the_way_out() -> None:
    with pytest.raises(TypeError, match=r'either; .* wrap\(app, kind="asgi"\) or kind="wsgi"'):
        wrap(lambda a, b=None, c=None: None, MetricsMonitor())


def imported_by(code: str) -> set[str]:
    """Return the web packages that a fresh process has imported after running `code`."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    web = {"flask", "werkzeug", "starlette", "fastapi", "django", "bottle", "orjson", "asyncio"}
    return web & set(output.split())


def test_wrap_imports_no_framework_that_the_app_does_not_use() -> None:
    assert imported_by("from metricsmw.adapters import wrap") == set()
    app = "from metricsmw.adapters import wrap\ndef app(environ, start_response): ...\nwrap(app)"
    assert imported_by(app) <= {"werkzeug", "orjson"}
    app = "from metricsmw.adapters import wrap\nasync def app(scope, receive, send): ...\nwrap(app)"
    assert not imported_by(app) & {"flask", "werkzeug", "fastapi", "django", "bottle"}
