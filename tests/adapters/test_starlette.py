"""Starlette: measured in place, outermost; the sub-app inside its middleware; route templates."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import auth
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.starlette import instrument

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

SESSION = Middleware(SessionMiddleware, secret_key="only for tests")


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def ask(app: Any, path: str, method: str = "GET", **options: Any) -> int:
    client = TestClient(app, raise_server_exceptions=False, **options)
    return int(client.request(method, path, follow_redirects=False).status_code)


# --- templates --------------------------------------------------------------------------------


class Endpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return ok(request)


def shared(request: Request) -> Response:
    return ok(request)


async def opaque(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("opaque")(scope, receive, send)


def tree(tmp_path: Path) -> list[Any]:
    (tmp_path / "a.txt").write_text("a")
    below = Router([Route("/", ok), Route("/posts/{post:int}", shared)])
    inner = Starlette(routes=[Mount("/{section}", below)], middleware=[Middleware(GZipMiddleware)])
    return [
        Route("/", ok),
        Route("/plain", ok),
        Route("/items/{id}", ok, methods=["GET", "PUT"]),
        Route("/numbers/{number:int}", ok),
        Route("/files/{rest:path}", ok),
        Route("/class/{x}", Endpoint),
        Route("/method/{x}", ok, methods=["GET"]),
        Route("/method/{x}", shared, methods=["POST"]),
        Route("/one", shared),
        Route("/two/{x}", shared),
        Mount("/users/{id:int}", routes=[Route("/posts/{post:int}", shared), Route("/", ok)]),
        Mount("/v1", below),
        Mount("/v2", below),
        Mount("/deep", inner),
        Mount("/covered", GZipMiddleware(Router([Route("/{x}", Endpoint)]))),
        Mount("/static", StaticFiles(directory=tmp_path)),
        Mount("/opaque/{x}", opaque),
        Host("{tenant}.example.org", Router([Route("/host/{x}", ok)])),
        Mount("/measured", ASGIMetricsMiddleware(Router([Route("/{y}", ok)]), MetricsMonitor())),
    ]


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/", "/"),
        ("/plain", "/plain"),
        ("/items/7", "/items/{id}"),
        ("/numbers/7", "/numbers/{number:int}"),
        ("/files/a/b/c", "/files/{rest:path}"),
        ("/class/7", "/class/{x}"),
        ("/one", "/one"),
        ("/two/one", "/two/{x}"),
        ("/users/7/posts/8", "/users/{id:int}/posts/{post:int}"),
        ("/users/7/", "/users/{id:int}/"),
        ("/v1/posts/8", "/v1/posts/{post:int}"),
        ("/v2/posts/8", "/v2/posts/{post:int}"),
        ("/v2/", "/v2/"),
        ("/deep/news/posts/8", "/deep/{section}/posts/{post:int}"),
        ("/covered/7", "/covered/{x}"),
        ("/static/a.txt", "/static/{path:path}"),
        ("/static/none.txt", "/static/{path:path}"),
        ("/opaque/7/a/b", "/opaque/{x}/{path:path}"),
        ("/measured/7", "/measured/{y}"),
        ("/plain?x=1", "/plain"),
        ("/items/a%20b", "/items/{id}"),
        ("/items/%C3%A9", "/items/{id}"),
        ("/items/%FF", "/items/{id}"),
        ("/none", "<unmatched>"),
        ("/plain/", "<unmatched>"),  # the redirect to /plain
        ("/users/seven/", "<unmatched>"),
        ("/users/7/none", "<unmatched>"),
        ("/deep/news/none", "<unmatched>"),
    ],
)
def test_template(path: str, template: str, tmp_path: Path, monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=tree(tmp_path)), monitor)
    for _ in range(2):
        ask(app, path)
    assert rows(monitor) == {f"GET {template}": 2}


def test_template_below_a_host(tmp_path: Path, monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=tree(tmp_path)), monitor)
    assert ask(app, "/host/1", base_url="http://acme.example.org") == 200
    assert ask(app, "/host/1") == 404
    assert rows(monitor) == {"GET /host/{x}": 1, "GET <unmatched>": 1}


def test_all_of_the_tree_at_once(tmp_path: Path, monitor: MetricsMonitor) -> None:
    """One table serves all; asking for one route does not spoil another."""
    app = instrument(Starlette(routes=tree(tmp_path)), monitor)
    for _ in range(3):
        for path in ("/one", "/two/x", "/v1/posts/1", "/v2/posts/1", "/users/1/posts/1", "/nope"):
            ask(app, path)
    assert rows(monitor) == {
        "GET /one": 3,
        "GET /two/{x}": 3,
        "GET /v1/posts/{post:int}": 3,
        "GET /v2/posts/{post:int}": 3,
        "GET /users/{id:int}/posts/{post:int}": 3,
        "GET <unmatched>": 3,
    }


def test_wrong_method_names_the_template(tmp_path: Path, monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=tree(tmp_path)), monitor)
    assert ask(app, "/items/7", "DELETE") == 405
    assert ask(app, "/two/7", "DELETE") == 405
    assert ask(app, "/v2/posts/8", "DELETE") == 405
    assert rows(monitor) == {
        "DELETE /items/{id}": 1,
        "DELETE /two/{x}": 1,
        "DELETE /v2/posts/{post:int}": 1,
    }


def test_same_path_two_endpoints_by_method(tmp_path: Path, monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=tree(tmp_path)), monitor)
    for method in ("GET", "POST", "HEAD"):
        assert ask(app, "/method/1", method) == 200
    assert rows(monitor) == {"GET /method/{x}": 1, "POST /method/{x}": 1, "HEAD /method/{x}": 1}


def test_one_endpoint_by_several_paths_and_methods(monitor: MetricsMonitor) -> None:
    routes = [Route("/{a}", shared, methods=["GET"]), Route("/x", shared, methods=["POST"])]
    app = instrument(Starlette(routes=routes), monitor)
    for method in ("GET", "POST", "PUT"):
        ask(app, "/x", method)
    # PUT fits neither: the first that fits but for the method answers 405.
    assert rows(monitor) == {"GET /{a}": 1, "POST /x": 1, "PUT /{a}": 1}


def test_routes_added_after_the_first_request(monitor: MetricsMonitor) -> None:
    nested = Router()
    app = instrument(Starlette(routes=[Route("/", ok), Mount("/nested", nested)]), monitor)
    assert ask(app, "/") == 200
    app.router.routes.append(Route("/late/{x}", shared))
    assert ask(app, "/late/1") == 200
    app.router.routes.append(Route("/later/{x}", shared))  # an endpoint that is known already
    assert ask(app, "/later/1") == 200
    nested.routes.append(Route("/latest/{x}", Endpoint))
    assert ask(app, "/nested/latest/1") == 200
    assert rows(monitor) == {
        "GET /": 1,
        "GET /late/{x}": 1,
        "GET /later/{x}": 1,
        "GET /nested/latest/{x}": 1,
    }


def test_middleware_that_hands_on_a_copy_of_the_scope(monitor: MetricsMonitor) -> None:
    """As the specification has it: what the router and a session leave in it is found there."""

    class Copying:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, "session": {"user": "ann"}}, receive, send)

    app = Starlette(routes=[Route("/items/{id}", ok)], middleware=[Middleware(Copying)])
    instrument(app, monitor, auth=public())
    for path in ("/items/1", "/none", "/api/metrics/current"):
        ask(app, path)
    assert rows(monitor) == {"GET /items/{id}": 1, "GET <unmatched>": 1}
    assert monitor.get_active_user_ids() == ["ann"]
    assert monitor.get_current_snapshot().requests_in_flight == 0


def test_app_mounted_below_itself_ends(monitor: MetricsMonitor) -> None:
    app = Starlette(routes=[Route("/x", ok)])
    app.mount("/again", app)
    instrument(app, monitor)
    assert ask(app, "/x") == 200
    assert rows(monitor) == {"GET /x": 1}


def test_root_path_is_part_of_the_template(monitor: MetricsMonitor) -> None:
    routes = [Route("/items/{id}", ok), Mount("/v1", routes=[Route("/{x}", shared)])]
    routes.append(Mount("/v2", routes=[Route("/{x}", shared)]))
    client = TestClient(instrument(Starlette(routes=routes), monitor), root_path="/proxy")
    assert client.get("/items/1").status_code == 200  # from a proxy that strips its prefix
    for path in ("/proxy/items/1", "/proxy/v1/1", "/proxy/v2/1"):  # as the specification has it
        assert client.get(path).status_code == 200
    assert rows(monitor) == {
        "GET /proxy/items/{id}": 2,
        "GET /proxy/v1/{x}": 1,
        "GET /proxy/v2/{x}": 1,
    }


def test_instrumented_below_an_app_that_is_not(monitor: MetricsMonitor) -> None:
    inner = instrument(Starlette(routes=[Route("/x/{y}", ok)]), monitor, auth=public())
    outer = Starlette(routes=[Mount("/tenants/{tenant}", inner)])
    assert ask(outer, "/tenants/acme/x/1") == 200
    assert ask(outer, "/tenants/acme/none") == 404
    assert ask(outer, "/elsewhere") == 404
    assert ask(outer, "/tenants/acme/api/metrics/current") == 200
    assert rows(monitor) == {"GET /tenants/{tenant}/x/{y}": 1, "GET <unmatched>": 1}


def test_endpoints_that_no_walk_finds_cost_a_bounded_number_of_walks(
    monitor: MetricsMonitor,
) -> None:
    class Counted(list[Any]):
        """Routes that count how often somebody goes through them."""

        walks = 0

        def __iter__(self) -> Iterator[Any]:
            type(self).walks += 1
            return super().__iter__()

    class Own(Mount):
        """A route that chooses an endpoint of its own for each request."""

        def matches(self, scope: Scope) -> Any:
            match, child = super().matches(scope)
            return match, {**child, "endpoint": object()}

    def walks_of(app: Starlette) -> int:
        app.router.routes = Counted(app.router.routes)
        Counted.walks = 0
        for _ in range(120):
            assert ask(app, "/own/x") == 200
        return Counted.walks

    alone = walks_of(Starlette(routes=[Own("/own", opaque)]))
    assert alone >= 120
    measured = walks_of(instrument(Starlette(routes=[Own("/own", opaque)]), monitor))
    assert measured - alone == 1 + 100
    assert rows(monitor) == {"GET <unmatched>": 120}


def test_added_by_hand(monitor: MetricsMonitor) -> None:
    app = Starlette(routes=[Mount("/v1", routes=[Route("/items/{id}", ok)])])
    app.add_middleware(ASGIMetricsMiddleware, monitor=monitor)
    assert ask(app, "/v1/items/1") == 200
    assert rows(monitor) == {"GET /v1/items/{id}": 1}


# --- in place ---------------------------------------------------------------------------------


def test_returns_the_app_itself_and_the_server_s_monitor_is_the_default() -> None:
    app = Starlette(routes=[Route("/", ok)])
    assert instrument(app) is app
    monitor = get_metrics_monitor()
    before = monitor.total_requests
    ask(app, "/")
    assert monitor.total_requests == before + 1


@pytest.mark.parametrize("built", [False, True], ids=["before", "after the first request"])
def test_measured_outermost(monitor: MetricsMonitor, built: bool) -> None:
    class Wall(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            if request.url.path == "/wall":
                return PlainTextResponse("no", 403)
            response: Response = await call_next(request)
            return response

    def fail(request: Request) -> Response:
        raise RuntimeError("on purpose")

    app = Starlette(routes=[Route("/", ok), Route("/fail", fail)], middleware=[Middleware(Wall)])
    if built:
        assert ask(app, "/") == 200
    instrument(app, monitor)
    assert ask(app, "/") == 200
    assert ask(app, "/wall") == 403
    assert ask(app, "/fail") == 500
    assert (monitor.total_requests, monitor.total_errors) == (3, 2)
    assert rows(monitor) == {"GET /": 1, "GET <unmatched>": 1, "GET /fail": 1}
    with pytest.raises(RuntimeError, match="on purpose"):
        TestClient(app).get("/fail")
    assert (monitor.total_requests, monitor.total_errors) == (4, 3)
    assert monitor.get_current_snapshot().requests_in_flight == 0


def test_the_app_goes_on_as_before(monitor: MetricsMonitor) -> None:
    lived: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        lived.append("up")
        yield {"state": "kept"}
        lived.append("down")

    app = instrument(Starlette(lifespan=lifespan), monitor)
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_exception_handler(404, lambda request, error: PlainTextResponse("mine", 404))
    app.router.routes.append(
        Route("/state", lambda request: PlainTextResponse(request.state.state))
    )
    app.mount("/sub", Router([Route("/", ok)]))
    with TestClient(app) as client:
        answer = client.get("/state")
        assert (answer.text, answer.headers["content-encoding"]) == ("kept", "gzip")
        assert client.get("/none").text == "mine"
        assert client.get("/sub/").text == "ok"
    assert lived == ["up", "down"]
    assert monitor.total_requests == 3
    assert [getattr(route, "path", None) for route in app.routes] == ["/state", "/sub"]


def test_twice_is_harmless(monitor: MetricsMonitor) -> None:
    app = Starlette(routes=[Route("/", ok)])
    for _ in range(2):
        assert instrument(app, monitor, auth=public()) is app
    assert ask(app, "/") == 200
    assert monitor.total_requests == 1
    assert ask(app, "/api/metrics/current") == 200
    assert monitor.total_requests == 1
    # Nor does the second call put anything in a request's way.
    middleware: Any = app.__call__
    assert isinstance(middleware.__self__, ASGIMetricsMiddleware)
    assert not isinstance(middleware.__self__.app, ASGIMetricsMiddleware)
    assert not isinstance(app.middleware_stack, ASGIMetricsMiddleware)


def test_two_monitors_and_a_patch_of_the_class_that_comes_later(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Starlette(routes=[Route("/x/{id}", ok)])
    other = MetricsMonitor()
    instrument(app, monitor, auth=public())
    instrument(app, other, path="/other", auth=public())
    called = []
    for kind in (Starlette, Router):
        plain: Any = kind.__call__

        async def patched(self: Any, *arguments: Any, plain: Any = plain) -> None:
            called.append(plain)
            await plain(self, *arguments)

        monkeypatch.setattr(kind, "__call__", patched)
    assert ask(app, "/x/1") == 200
    assert rows(monitor) == rows(other) == {"GET /x/{id}": 1}
    assert len(called) >= 2
    for path in ("/api/metrics/current", "/other/current"):
        assert ask(app, path) == 200


def test_a_path_that_is_served_keeps_its_policy(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(), monitor, auth=token("secret"))
    instrument(app, monitor)
    assert ask(app, "/api/metrics/current") == 401


# --- the sub-app ------------------------------------------------------------------------------


def login(request: Request) -> Response:
    request.session.update(request.query_params)
    return PlainTextResponse("in")


class Backend(AuthenticationBackend):
    """Knows users by a header, one of whom is blocked."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        if name is None:
            return None
        user = SimpleUser(name)
        user.is_active = name != "blocked"  # type: ignore[attr-defined]
        return AuthCredentials(["authenticated"]), user


@pytest.mark.parametrize(
    ("user", "status"), [({}, 401), ({"x-user": "ann"}, 200), ({"x-user": "blocked"}, 401)]
)
@pytest.mark.parametrize("policy", [None, auth.session(lambda user: user.display_name == "ann")])
def test_who_is_logged_in_is_the_verdict_of_the_authentication(
    monitor: MetricsMonitor, user: dict[str, str], status: int, policy: auth.Policy | None
) -> None:
    app = instrument(Starlette(routes=[Route("/login", login)]), monitor, auth=policy)
    app.add_middleware(AuthenticationMiddleware, backend=Backend())
    app.add_middleware(SessionMiddleware, secret_key="only for tests")
    client = TestClient(app)
    client.get("/login?user=ann")  # which counts no more
    assert client.get("/api/metrics/current", headers=user).status_code == status
    assert client.post("/api/metrics/reset", headers=user).status_code == status


def test_session_opens_the_sub_app(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=[Route("/login", login)], middleware=[SESSION]), monitor)
    client = TestClient(app)
    assert client.get("/api/metrics/current").status_code == 401
    assert client.get("/api/metrics/health").status_code == 200
    client.get("/login?user=ann")
    answer = client.get("/api/metrics/current")
    assert answer.status_code == 200
    assert answer.json()["metrics"]["total_requests"] == 1  # the login: its own are left out
    assert answer.json()["metrics"]["requests_in_flight"] == 0
    assert monitor.get_active_user_ids() == ["ann"]


def test_no_catch_all_shadows_the_sub_app(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(routes=[Route("/{path:path}", ok)]), monitor, auth=public())
    client = TestClient(app)
    for path in ("", "/", "/current", "/routes"):
        assert client.get("/api/metrics" + path).text != "ok"
    assert client.get("/api/metrics/none").json() == {"error": "Not found"}
    assert client.delete("/api/metrics/current").status_code == 405
    for path in ("/api/metricsx", "/x/api/metrics/current", "/api"):
        assert client.get(path).text == "ok"
    assert rows(monitor) == {"GET /{path:path}": 3}


def test_the_app_s_middleware_applies_to_the_sub_app(monitor: MetricsMonitor) -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["https://a.example"])
    app = instrument(Starlette(middleware=[cors]), monitor, auth=public())
    answer = TestClient(app).get("/api/metrics/current", headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_sub_app_below_a_root_path(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(), monitor, auth=public())
    for client in (TestClient(app, root_path="/proxy"), TestClient(app, root_path="/proxy/")):
        assert client.get("/api/metrics/current").status_code == 200
        assert client.get("/proxy/api/metrics/current").status_code == 200
        assert client.get("/proxy/api/metrics").status_code == 200
    assert monitor.total_requests == 0


def test_websocket_at_its_path_is_the_app_s(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(), monitor, auth=public())

    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(str(monitor.get_websocket_connections()))
        await socket.close()

    app.router.routes.append(WebSocketRoute("/api/metrics/live", live))
    with TestClient(app).websocket_connect("/api/metrics/live") as socket:
        assert socket.receive_text() == "1"
    assert monitor.get_websocket_connections() == 0
    assert monitor.total_requests == 0


def test_other_path_and_policy(monitor: MetricsMonitor) -> None:
    app = instrument(Starlette(), monitor, path="/m", auth=token("secret"))
    client = TestClient(app)
    assert client.get("/m/current").status_code == 401
    answer = client.get("/m/current", headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 200
    assert client.get("/api/metrics/current").status_code == 404
    assert monitor.total_requests == 1


# --- users ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "user"),
    [
        ({"user": "ann"}, ["ann"]),
        ({"user_id": 7}, ["7"]),
        ({"_user_id": "8"}, ["8"]),
        ({"user": "ann", "user_id": 7}, ["ann"]),
        ({"user": {"sub": "s-1", "email": "a@b.example"}}, ["s-1"]),
        ({"user": {"token": "secret"}}, []),
        ({"user": ""}, []),
        ({"user": None, "user_id": 9}, ["9"]),
        ({"cart": 1}, []),
    ],
)
def test_user_of_the_session(
    session: dict[str, object], user: list[str], monitor: MetricsMonitor
) -> None:
    def enter(request: Request) -> Response:
        request.session.update(session)
        return ok(request)

    app = Starlette(routes=[Route("/enter", enter), Route("/", ok)], middleware=[SESSION])
    instrument(app, monitor)
    client = TestClient(app)
    client.get("/")
    assert monitor.get_active_user_ids() == []
    client.get("/enter")
    assert monitor.get_active_user_ids() == user
    monitor.reset_statistics()
    client.get("/")  # the session alone is enough
    assert monitor.get_active_user_ids() == user


def test_looking_at_the_session_does_not_touch_it(monitor: MetricsMonitor) -> None:
    def app() -> Starlette:
        return Starlette(routes=[Route("/login", login), Route("/", ok)], middleware=[SESSION])

    answers = []
    for each in (app(), instrument(app(), monitor)):
        client = TestClient(each)
        client.get("/login?user=ann")
        answers.append(client.get("/"))
    bare, measured = answers
    assert monitor.get_active_user_ids() == ["ann"]
    # By name only: older releases sign the session anew, with the time, in every answer.
    assert list(measured.headers) == list(bare.headers)
    assert "vary" not in measured.headers


def test_fault_of_the_user_callable_does_not_reach_the_app(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    def user(scope: Scope) -> str:
        raise RuntimeError("on purpose")

    app = instrument(Starlette(routes=[Route("/", ok)]), monitor, user=user)
    client = TestClient(app)
    for _ in range(3):
        assert client.get("/").text == "ok"
    assert monitor.total_requests == 3
    assert len([record for record in caplog.records if record.name == "metricsmw"]) == 1
