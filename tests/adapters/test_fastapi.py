"""FastAPI: measured in place, the schema untouched; templates of included and mounted routers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public
from metricsmw.adapters.fastapi import instrument


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def ask(app: Any, path: str, method: str = "GET", **options: Any) -> int:
    client = TestClient(app, raise_server_exceptions=False, **options)
    return int(client.request(method, path, follow_redirects=False).status_code)


async def read(id: str) -> str:
    return id


def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def routers() -> FastAPI:
    users = APIRouter(prefix="/users")
    users.add_api_route("/{id}", read)
    users.add_api_route("/{id}/again", read, methods=["POST"])
    users.add_route("/plain/{x}", plain)  # takes no prefix from its own router

    nested = APIRouter(prefix="/nested")
    nested.include_router(users, prefix="/deeper")
    nested.include_router(users, prefix="/elsewhere")

    sub = FastAPI(root_path_in_servers=False)
    sub.include_router(users)
    sub.add_api_route("/own/{id:path}", read)
    sub.add_route("/star/{x}", plain)

    app = FastAPI()
    app.include_router(users, prefix="/v1")
    app.include_router(users, prefix="/v2")
    app.include_router(nested)
    app.add_api_route("/direct/{id}", read)
    app.add_route("/star/{x}", plain)
    app.mount("/sub", sub)
    app.mount("/tenants/{tenant}", sub)
    app.mount("/starlette", Router([Mount("/{x}", routes=[Route("/{y}", plain)])]))
    return app


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/direct/7", "/direct/{id}"),
        ("/v1/users/7", "/v1/users/{id}"),
        ("/v2/users/7", "/v2/users/{id}"),
        ("/v2/plain/7", "/v2/plain/{x}"),
        ("/nested/deeper/users/7", "/nested/deeper/users/{id}"),
        ("/nested/elsewhere/users/7", "/nested/elsewhere/users/{id}"),
        ("/star/7", "/star/{x}"),
        ("/sub/users/7", "/sub/users/{id}"),
        ("/sub/plain/7", "/sub/plain/{x}"),
        ("/sub/own/a/b", "/sub/own/{id:path}"),
        ("/sub/star/7", "/sub/star/{x}"),
        ("/tenants/acme/users/7", "/tenants/{tenant}/users/{id}"),
        ("/tenants/acme/star/7", "/tenants/{tenant}/star/{x}"),
        ("/starlette/a/b", "/starlette/{x}/{y}"),
        ("/docs", "/docs"),
        ("/openapi.json", "/openapi.json"),
        ("/none", "<unmatched>"),
        ("/v3/users/7", "<unmatched>"),
        ("/sub/none", "<unmatched>"),
    ],
)
def test_template(path: str, template: str, monitor: MetricsMonitor) -> None:
    app = instrument(routers(), monitor)
    for _ in range(2):
        ask(app, path)
    assert rows(monitor) == {f"GET {template}": 2}


def test_wrong_method_names_the_template(monitor: MetricsMonitor) -> None:
    app = instrument(routers(), monitor)
    for path in ("/direct/7", "/v2/users/7/again", "/tenants/acme/users/7"):
        assert ask(app, path, "DELETE") == 405
    assert rows(monitor) == {
        "DELETE /direct/{id}": 1,
        "DELETE /v2/users/{id}/again": 1,
        "DELETE /tenants/{tenant}/users/{id}": 1,
    }


def test_invalid_parameters_are_of_their_route(monitor: MetricsMonitor) -> None:
    app = FastAPI()

    @app.get("/numbers/{number}")
    def number(number: int) -> int:
        return number

    instrument(app, monitor)
    assert ask(app, "/numbers/seven") == 422
    assert rows(monitor) == {"GET /numbers/{number}": 1}


@pytest.mark.parametrize("path", ["/v1/users/7", "/proxy/v1/users/7"])
def test_root_path_is_part_of_the_template(path: str, monitor: MetricsMonitor) -> None:
    app = FastAPI(root_path="/proxy")
    users = APIRouter()
    users.add_api_route("/users/{id}", read)
    app.include_router(users, prefix="/v1")
    app.include_router(users, prefix="/v2")
    instrument(app, monitor, auth=public())
    assert ask(app, path) == 200
    assert rows(monitor) == {"GET /proxy/v1/users/{id}": 1}
    assert ask(app, "/api/metrics/current") == 200
    assert ask(app, "/proxy/api/metrics/current") == 200
    assert monitor.total_requests == 1


def test_routes_added_after_the_first_request(monitor: MetricsMonitor) -> None:
    app = instrument(FastAPI(), monitor)
    assert ask(app, "/late/7") == 404
    app.add_api_route("/late/{id}", read)
    assert ask(app, "/late/7") == 200
    later = APIRouter(prefix="/later")
    later.add_api_route("/{id}", read)
    app.include_router(later)
    assert ask(app, "/later/7") == 200
    assert rows(monitor) == {"GET <unmatched>": 1, "GET /late/{id}": 1, "GET /later/{id}": 1}


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="a later FastAPI has it")
@pytest.mark.parametrize("root_path", ["", "/proxy"])
def test_frontend(root_path: str, tmp_path: Path, monitor: MetricsMonitor) -> None:
    (tmp_path / "index.html").write_text("<p>page</p>")
    app = FastAPI(root_path=root_path)
    app.frontend("/", directory=tmp_path)
    app.frontend("/admin", directory=tmp_path)
    instrument(app, monitor)
    client = TestClient(app)
    for path in ("/", "/index.html", "/admin/index.html", "/admin/"):
        assert client.get(path).text == "<p>page</p>"
    assert rows(monitor) == {
        f"GET {root_path}/{{path:path}}": 2,
        f"GET {root_path}/admin/{{path:path}}": 2,
    }


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="a later FastAPI has it")
def test_frontend_of_a_mounted_app(tmp_path: Path, monitor: MetricsMonitor) -> None:
    """No raw path, however many tenants there are."""
    (tmp_path / "index.html").write_text("<p>page</p>")
    mounted, app = FastAPI(), FastAPI()
    mounted.frontend("/site", directory=tmp_path)
    app.mount("/tenants/{tenant}", mounted)
    app.mount("/other", mounted)
    client = TestClient(instrument(app, monitor), root_path="/proxy")
    for mount in ("/tenants/acme", "/tenants/bolt", "/other"):
        assert client.get(f"/proxy{mount}/site/index.html").text == "<p>page</p>"
        assert client.get(f"/proxy{mount}/none").status_code == 404
    assert rows(monitor) == {
        "GET /proxy/tenants/{tenant}/site/{path:path}": 2,
        "GET /proxy/other/site/{path:path}": 1,
        "GET <unmatched>": 3,
    }


def test_added_by_hand(monitor: MetricsMonitor) -> None:
    app = routers()
    app.add_middleware(ASGIMetricsMiddleware, monitor=monitor)
    assert ask(app, "/v2/users/7") == 200
    assert rows(monitor) == {"GET /v2/users/{id}": 1}


def test_returns_the_app_itself_and_the_server_s_monitor_is_the_default() -> None:
    app = FastAPI()
    assert instrument(app) is app
    before = get_metrics_monitor().total_requests
    ask(app, "/docs")
    assert get_metrics_monitor().total_requests == before + 1


def test_schema_is_untouched(monitor: MetricsMonitor) -> None:
    bare = routers().openapi()
    app = instrument(routers(), monitor)
    assert app.openapi() == bare
    assert TestClient(app).get("/openapi.json").json() == bare


def test_a_request_runs_as_before(monitor: MetricsMonitor) -> None:
    """Dependencies with yield, background tasks and the answer come as in the bare app."""

    def run(app: FastAPI) -> tuple[list[str], bytes, list[tuple[bytes, bytes]]]:
        seen: list[str] = []

        def resource() -> Iterator[str]:
            seen.append("set up")
            yield "resource"
            seen.append("torn down")

        @app.get("/items/{id}")
        def item(id: int, tasks: BackgroundTasks, used: str = Depends(resource)) -> dict[str, Any]:
            tasks.add_task(seen.append, "background")
            return {"id": id, "used": used}

        answer = TestClient(app).get("/items/7")
        return seen, answer.content, answer.headers.raw

    assert run(instrument(FastAPI(), monitor)) == run(FastAPI())
    assert rows(monitor) == {"GET /items/{id}": 1}


def test_unhandled_exception(monitor: MetricsMonitor) -> None:
    app = FastAPI()

    @app.get("/fail")
    def fail() -> None:
        raise RuntimeError("on purpose")

    instrument(app, monitor)
    assert ask(app, "/fail") == 500
    with pytest.raises(RuntimeError, match="on purpose"):
        TestClient(app).get("/fail")
    assert (monitor.total_requests, monitor.total_errors) == (2, 2)
    assert rows(monitor) == {"GET /fail": 2}


def test_session_opens_the_sub_app(monitor: MetricsMonitor) -> None:
    app = FastAPI()

    @app.post("/login")
    def login(request: Request) -> None:
        request.session["user"] = "ann"

    app.add_middleware(SessionMiddleware, secret_key="only for tests")
    client = TestClient(instrument(app, monitor))
    assert client.get("/api/metrics/current").status_code == 401
    client.post("/login")
    assert client.get("/api/metrics/current").json()["metrics"]["active_users"] == 1
    assert client.post("/api/metrics/reset").status_code == 200
    headers = {"Origin": "https://evil.example"}
    assert client.post("/api/metrics/reset", headers=headers).status_code == 403


def test_websocket(monitor: MetricsMonitor) -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(str(monitor.get_websocket_connections()))
        await socket.close()

    instrument(app, monitor)
    with TestClient(app).websocket_connect("/ws") as session:
        assert session.receive_text() == "1"
    assert monitor.get_websocket_connections() == 0
    assert monitor.total_requests == 0
