"""The sub-apps on Werkzeug and Starlette: the same answers, however they are mounted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from metricsmw import MetricsMonitor
from metricsmw.adapters import arguments
from metricsmw.adapters.api import asgi_app, wsgi_app
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BEARER = {"Authorization": "Bearer secret"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Answer]  # ask(path below the mount, method, headers)


def over_wsgi(app: WSGIApplication, mount: str = "") -> Ask:
    client = Client(validator(app))

    def ask(path: str, method: str = "GET", headers: Mapping[str, str] = {}) -> Answer:
        response = client.open(mount + path, method=method, headers=dict(headers), buffered=True)
        names = {name.lower(): value for name, value in response.headers}
        assert len(names) == len(response.headers), "a header came twice"
        return Answer(response.status_code, names, response.data)

    return ask


def over_asgi(app: ASGIApp, mount: str = "", root_path: str = "") -> Ask:
    client = TestClient(app, root_path=root_path, follow_redirects=False)

    def ask(path: str, method: str = "GET", headers: Mapping[str, str] = {}) -> Answer:
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        response = client.request(method, mount + path, headers=raw)
        names = {name.lower(): value for name, value in response.headers.items()}
        assert len(names) == len(response.headers.multi_items()), "a header came twice"
        return Answer(response.status_code, names, response.content)

    return ask


def stripping(app: ASGIApp, mount: str) -> ASGIApp:
    """Mount as hosts do that leave only the rest in `path`."""

    async def host(scope: Scope, receive: Receive, send: Send) -> None:
        below = scope["path"].removeprefix(mount)
        await app(dict(scope, path=below or "/", root_path=mount), receive, send)

    return host


def wsgi_dispatched(app: WSGIApplication) -> Ask:
    return over_wsgi(DispatcherMiddleware(app, {"/internal/metrics": app}), "/internal/metrics")


def starlette_mounted(app: ASGIApp) -> Ask:
    host = Starlette(routes=[Mount("/internal", routes=[Mount("/metrics", app)])])
    return over_asgi(host, "/internal/metrics")


def fastapi_mounted(app: ASGIApp, root_path: str = "") -> Ask:
    host = FastAPI()
    host.mount("/internal/metrics", app)
    return over_asgi(host, "/internal/metrics", root_path)


WSGI: dict[str, Callable[[WSGIApplication], Ask]] = {
    "bare": over_wsgi,
    "werkzeug": wsgi_dispatched,
}
ASGI: dict[str, Callable[[ASGIApp], Ask]] = {
    "bare": over_asgi,
    "root_path": lambda app: over_asgi(app, "/proxied", root_path="/proxied"),
    "root_path/": lambda app: over_asgi(app, "/proxied", root_path="/proxied/"),
    "stripped": lambda app: over_asgi(stripping(app, "/internal/metrics"), "/internal/metrics"),
    "starlette": starlette_mounted,
    "fastapi": fastapi_mounted,
    # A proxy strips the prefix that `root_path` names.
    "fastapi-proxied": lambda app: fastapi_mounted(app, root_path="/proxied"),
}
HOSTS = [("wsgi", name) for name in WSGI] + [("asgi", name) for name in ASGI]


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


@pytest.fixture(params=HOSTS, ids="-".join)
def ask(request: pytest.FixtureRequest, monitor: MetricsMonitor) -> Ask:
    kind, name = request.param
    if kind == "wsgi":
        return WSGI[name](wsgi_app.metrics_app(monitor, token("secret")))
    return ASGI[name](asgi_app.metrics_app(monitor, token("secret")))


class TestEverywhere:
    """One set of questions, asked of each sub-app under each host."""

    def test_current(self, ask: Ask, monitor: MetricsMonitor) -> None:
        monitor.record_request(10.0)
        answer = ask("/current", headers=BEARER)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.json()["metrics"]["total_requests"] == 1

    def test_query(self, ask: Ask) -> None:
        assert ask("/history?minutes=7", headers=BEARER).json()["minutes"] == 7
        assert ask("/history?minutes=%37", headers=BEARER).json()["minutes"] == 7
        assert ask("/history?minutes=%FF%00&a=%", headers=BEARER).status == 400

    def test_reset(self, ask: Ask, monitor: MetricsMonitor) -> None:
        monitor.record_request(10.0)
        assert ask("/reset", "POST", BEARER).status == 200
        assert monitor.total_requests == 0

    @pytest.mark.parametrize("path", ["/export/json", "/export/csv", "/routes", "/statistics", "/"])
    def test_others(self, ask: Ask, path: str) -> None:
        assert ask(path, headers=BEARER).status == 200

    def test_refusals(self, ask: Ask) -> None:
        answer = ask("/current")
        assert (answer.status, answer.json()["error"]) == (401, "Authentication required")
        assert list(answer.json()) == ["error", "ways_in"]
        assert answer.headers["www-authenticate"] == 'Bearer realm="metrics"'
        answer = ask("/current", "DELETE", BEARER)
        assert (answer.status, answer.json()) == (405, {"error": "Method not allowed"})
        assert answer.headers["allow"] == "GET, HEAD"
        answer = ask("/nope", headers=BEARER)
        assert (answer.status, answer.json()) == (404, {"error": "Not found"})

    def test_health_is_open(self, ask: Ask) -> None:
        answer = ask("/health")
        assert answer.status == 200
        assert answer.json()["status"] == "healthy"

    @pytest.mark.parametrize("path", ["/export/csv", "/", "/nope"])
    def test_head(self, ask: Ask, path: str) -> None:
        got, head = ask(path, headers=BEARER), ask(path, "HEAD", BEARER)
        assert head.body == b""
        assert head.status == got.status
        assert head.headers["content-length"] == str(len(got.body)) != "0"
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.headers.keys() == got.headers.keys()

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/%63urrent", 200),
            ("/export%2Fjson", 200),
            ("/%FF%FE", 404),
            ("/caf%C3%A9", 404),
            ("/current%00", 404),
            ("/current%0A", 404),
            ("/%25", 404),
            ("/current/", 404),
        ],
    )
    def test_odd_paths(self, ask: Ask, path: str, status: int) -> None:
        assert ask(path, headers=BEARER).status == status

    @pytest.mark.parametrize("value", ["Bearer \xff\xfe", "Basic \xc3\xa9", "\x80"])
    def test_odd_headers(self, ask: Ask, value: str) -> None:
        assert ask("/current", headers={"Authorization": value}).status == 401


def call(app: ASGIApp, scope: Scope, *received: Message) -> list[Message]:
    """Return what an ASGI app sends for a scope; it receives the messages, then nothing more."""
    sent: list[Message] = []
    waiting = list(received)

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent


def scope_of(path: str, **fields: object) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [],
    } | fields


def status_of(app: ASGIApp, scope: Scope) -> int:
    status = call(app, scope)[0]["status"]
    assert isinstance(status, int)
    return status


class TestMount:
    @pytest.mark.parametrize(
        ("path", "root_path", "link"),
        [
            ("/m", "/m", "./m/current"),
            ("/m/", "/m", "./current"),
            ("/a/m", "/a/m", "./m/current"),
            ("/a/m/", "/a/m/", "./current"),
            ("/", "", "./current"),
        ],
    )
    def test_asgi_index_with_and_without_slash(
        self, monitor: MetricsMonitor, path: str, root_path: str, link: str
    ) -> None:
        app = asgi_app.metrics_app(monitor, public())
        start, body = call(app, scope_of(path, root_path=root_path))
        assert start["status"] == 200
        assert f'href="{link}"' in body["body"].decode()

    @pytest.mark.parametrize(("path", "link"), [("", "./metrics/current"), ("/", "./current")])
    def test_wsgi_index_with_and_without_slash(
        self, monitor: MetricsMonitor, path: str, link: str
    ) -> None:
        answer = wsgi_dispatched(wsgi_app.metrics_app(monitor, public()))(path)
        assert answer.status == 200
        assert f'href="{link}"' in answer.body.decode()

    @pytest.mark.parametrize(
        ("path", "root_path", "status"),
        [
            ("/m/current", "/m", 200),
            ("/current", "/m", 200),  # stripped by the host
            ("/m/m/current", "/m", 404),
            ("/metrics/current", "/m", 404),  # "/m" is no segment of it
            ("/current/current", "/current", 200),
            ("/current", "/current", 200),  # the mount itself
            ("current", "", 404),
            ("", "", 200),
        ],
    )
    def test_asgi_path_below(
        self, monitor: MetricsMonitor, path: str, root_path: str, status: int
    ) -> None:
        app = asgi_app.metrics_app(monitor, public())
        assert status_of(app, scope_of(path, root_path=root_path)) == status

    def test_asgi_scope_without_the_optional(self, monitor: MetricsMonitor) -> None:
        scope = scope_of("/current")
        del scope["root_path"]
        del scope["query_string"]
        assert status_of(asgi_app.metrics_app(monitor, public()), scope) == 200

    @pytest.mark.parametrize("path", ["/\udcff", "/caf\xe9", "/\0", "//current", "\u2603"])
    def test_asgi_odd_path_in_scope(self, monitor: MetricsMonitor, path: str) -> None:
        assert status_of(asgi_app.metrics_app(monitor, public()), scope_of(path)) == 404

    @pytest.mark.parametrize("path", ["/\xff", "/caf\xe9", "/\0", "//current"])
    def test_wsgi_odd_path_in_environ(self, monitor: MetricsMonitor, path: str) -> None:
        environ = EnvironBuilder().get_environ() | {"PATH_INFO": path}
        _, status, _ = run_wsgi_app(wsgi_app.metrics_app(monitor, public()), environ)
        assert status == "404 NOT FOUND"

    def test_wsgi_environ_without_the_optional(self, monitor: MetricsMonitor) -> None:
        environ = EnvironBuilder().get_environ()
        for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING"):
            del environ[name]
        _, status, _ = run_wsgi_app(wsgi_app.metrics_app(monitor, public()), environ)
        assert status == "200 OK"

    def test_asgi_takes_a_repeated_header_as_both(self, monitor: MetricsMonitor) -> None:
        headers = [
            (b"host", b"app.example"),
            (b"origin", b"https://app.example"),
            (b"origin", b"https://evil.example"),
        ]
        app = asgi_app.metrics_app(monitor, public(hosts="app.example"))
        assert status_of(app, scope_of("/reset", method="POST", headers=headers)) == 403
        assert status_of(app, scope_of("/reset", method="POST", headers=headers[:2])) == 200


class TestIdentity:
    def test_wsgi(self, monitor: MetricsMonitor) -> None:
        app = wsgi_app.metrics_app(monitor, identity=lambda environ: environ.get("HTTP_X_USER"))
        ask = over_wsgi(app)
        assert ask("/current").status == 401
        assert ask("/current", headers={"X-User": "ann"}).status == 200

    def test_wsgi_without_one_knows_nobody(self, monitor: MetricsMonitor) -> None:
        environ = EnvironBuilder("/current").get_environ() | {"REMOTE_USER": "ann"}
        _, status, _ = run_wsgi_app(wsgi_app.metrics_app(monitor), environ)
        assert status == "401 UNAUTHORIZED"

    def test_asgi(self, monitor: MetricsMonitor) -> None:
        app = asgi_app.metrics_app(monitor, identity=lambda scope: scope.get("user_of_test"))
        assert status_of(app, scope_of("/current")) == 401
        assert status_of(app, scope_of("/current", user_of_test="ann")) == 200

    def test_asgi_asynchronous(self, monitor: MetricsMonitor) -> None:
        async def identity(scope: Scope) -> str | None:
            await asyncio.sleep(0)
            user: str | None = scope.get("user_of_test")
            return user

        app = asgi_app.metrics_app(monitor, identity=identity)
        assert status_of(app, scope_of("/current")) == 401
        assert status_of(app, scope_of("/current", user_of_test="ann")) == 200

    def test_asgi_asynchronous_policy(self, monitor: MetricsMonitor) -> None:
        async def policy(request: Request) -> bool:
            await asyncio.sleep(0)
            return request.headers.get("x-user") == "ann"

        app = asgi_app.metrics_app(monitor, policy)
        assert status_of(app, scope_of("/current")) == 401
        assert status_of(app, scope_of("/current", headers=[(b"x-user", b"bob")])) == 401
        assert status_of(app, scope_of("/current", headers=[(b"x-user", b"ann")])) == 200

    @pytest.mark.parametrize(
        ("session", "status"),
        [
            ({"user": "ann"}, 200),
            ({"user_id": 7}, 200),
            ({}, 401),
            ({"user": None}, 401),
            ({"user": ""}, 401),
            ({"other": "ann"}, 401),
            (None, 401),
            ("user", 401),
        ],
    )
    def test_asgi_session_by_default(
        self, monitor: MetricsMonitor, session: object, status: int
    ) -> None:
        app = asgi_app.metrics_app(monitor)
        assert status_of(app, scope_of("/current", session=session)) == status

    def test_session_of_a_host_and_its_cookie(self, monitor: MetricsMonitor) -> None:
        async def log_in(request: StarletteRequest) -> PlainTextResponse:
            request.session["user"] = "ann"
            return PlainTextResponse("")

        host = Starlette(
            routes=[Route("/in", log_in), Mount("/metrics", asgi_app.metrics_app(monitor))]
        )
        host.add_middleware(SessionMiddleware, secret_key="for tests")
        client = TestClient(host)
        monitor.record_request(1.0)
        assert client.get("/metrics/current").status_code == 401
        client.get("/in")
        assert client.get("/metrics/current").status_code == 200
        theirs = {"Origin": "http://evil.example"}
        assert client.post("/metrics/reset", headers=theirs).status_code == 403
        assert monitor.total_requests == 1
        ours = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/metrics/reset", headers=ours).status_code == 200
        assert monitor.total_requests == 0


class Measuring:
    """The measurement that a middleware around the app has put into environ or scope."""

    def __init__(self) -> None:
        self.excluded = 0

    def exclude(self) -> None:
        self.excluded += 1


class TestOwnRequests:
    """The sub-app's own requests are in nobody's numbers."""

    @pytest.mark.parametrize("path", ["/current", "/nope", "/health"])
    def test_wsgi_takes_itself_out(self, monitor: MetricsMonitor, path: str) -> None:
        outer, inner = Measuring(), Measuring()
        marks = {"metricsmw.1": outer, "metricsmw.2": inner, "metricsmw.3": None, "other": outer}
        environ = EnvironBuilder(path).get_environ() | marks
        app = wsgi_app.metrics_app(monitor)
        assert list(app(environ, lambda status, headers, error=None: list[bytes]().append))
        assert (outer.excluded, inner.excluded) == (1, 1)

    @pytest.mark.parametrize("path", ["/current", "/nope", "/health"])
    def test_asgi_takes_itself_out(self, monitor: MetricsMonitor, path: str) -> None:
        outer, inner = Measuring(), Measuring()
        marks = {"metricsmw.1": outer, "metricsmw.2": inner, "metricsmw.3": None, "other": outer}
        scope = scope_of(path, **marks)
        call(asgi_app.metrics_app(monitor), scope)
        assert (outer.excluded, inner.excluded) == (1, 1)

    def test_wsgi_below_a_middleware(self, monitor: MetricsMonitor) -> None:
        def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]

        metrics = wsgi_app.metrics_app(monitor, public())
        ask = over_wsgi(
            WSGIMetricsMiddleware(DispatcherMiddleware(hello, {"/metrics": metrics}), monitor)
        )
        ask("/")
        for path in ("/metrics/current", "/metrics/nope", "/metrics/health"):
            ask(path)
        snapshot = ask("/metrics/current").json()["metrics"]
        assert (snapshot["total_requests"], snapshot["requests_in_flight"]) == (1, 0)

    def test_asgi_below_a_middleware(self, monitor: MetricsMonitor) -> None:
        async def hello(request: StarletteRequest) -> PlainTextResponse:
            return PlainTextResponse("hello")

        metrics = asgi_app.metrics_app(monitor, public())
        host = Starlette(routes=[Route("/", hello), Mount("/metrics", metrics)])
        ask = over_asgi(ASGIMetricsMiddleware(host, monitor))
        ask("/")
        for path in ("/metrics/current", "/metrics/nope", "/metrics/health"):
            ask(path)
        snapshot = ask("/metrics/current").json()["metrics"]
        assert (snapshot["total_requests"], snapshot["requests_in_flight"]) == (1, 0)


class TestASGIScopes:
    def test_websocket_is_refused(self, monitor: MetricsMonitor) -> None:
        client = TestClient(Starlette(routes=[Mount("/m", asgi_app.metrics_app(monitor))]))
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/m/current"):
            pass

    def test_websocket_below_a_middleware_is_no_connection(self, monitor: MetricsMonitor) -> None:
        metrics = asgi_app.metrics_app(monitor, public())
        client = TestClient(ASGIMetricsMiddleware(metrics, monitor))
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/current"):
            pass
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.websocket_connections, snapshot.requests_in_flight) == (0, 0)

    def test_lifespan(self, monitor: MetricsMonitor) -> None:
        sent = call(
            asgi_app.metrics_app(monitor),
            {"type": "lifespan", "asgi": {"version": "3.0"}},
            {"type": "lifespan.startup"},
            {"type": "lifespan.shutdown"},
        )
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]


class TestSettings:
    def test_without_a_monitor_the_servers(
        self, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arguments, "get_metrics_monitor", lambda: monitor)
        monitor.record_request(1.0)
        for ask in (
            over_wsgi(wsgi_app.metrics_app(auth=public())),
            over_asgi(asgi_app.metrics_app(auth=public())),
        ):
            assert ask("/current").json()["metrics"]["total_requests"] == 1

    @pytest.mark.parametrize("metrics_app", [wsgi_app.metrics_app, asgi_app.metrics_app])
    def test_a_wrong_policy_is_told_at_once(
        self, monitor: MetricsMonitor, metrics_app: Callable[..., object]
    ) -> None:
        with pytest.raises(TypeError, match=r"got str$"):
            metrics_app(monitor, "secret")


@pytest.mark.parametrize(
    ("module", "imported", "others"),
    [
        ("handlers", [], ["werkzeug", "starlette", "flask", "django"]),
        ("wsgi_app", ["werkzeug"], ["starlette", "flask", "django"]),
        ("asgi_app", ["starlette"], ["werkzeug", "fastapi", "django"]),
    ],
)
def test_imports_no_other_framework(module: str, imported: list[str], others: list[str]) -> None:
    code = f"import sys, metricsmw.adapters.api.{module}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(imported) <= set(modules)
    assert not set(others) & set(modules)
