"""What reaches the sub-app without having been measured says so: /health and the page know."""

from __future__ import annotations

from typing import Any

import pytest
import werkzeug.test
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

REASON = "requests are not measured"


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


def assert_says_so(status: int, health: Any) -> None:
    assert (status, health["status"]) == (503, "degraded")
    assert REASON in health["components"]["request_tracking"]


def test_a_wsgi_app_that_was_taken_before(monitor: MetricsMonitor) -> None:
    app = Flask(__name__)
    taken = app.wsgi_app
    wrap(app, monitor, auth=public())
    answer = werkzeug.test.Client(taken).get("/api/metrics/health")
    health: Any = answer.json
    assert_says_so(answer.status_code, health)
    assert "wsgi_app" in health["components"]["request_tracking"]
    page = werkzeug.test.Client(taken).get("/api/metrics/").get_data(as_text=True)
    assert "Requests are not measured" in page.split('id="unmeasured" role="alert">')[1]
    page = app.test_client().get("/api/metrics/").get_data(as_text=True)
    assert 'id="unmeasured" role="alert" hidden>' in page
    # The app itself is measured, and what has been said is of the request that asked.
    assert app.test_client().get("/api/metrics/health").status_code == 200


def test_a_stack_that_was_taken_before(monitor: MetricsMonitor) -> None:
    app = Starlette(routes=[Route("/hello", lambda request: PlainTextResponse("hello"))])
    taken = app.build_middleware_stack()
    wrap(app, monitor, auth=public())
    answer = TestClient(taken).get("/api/metrics/health")
    assert_says_so(answer.status_code, answer.json())
    assert TestClient(app).get("/api/metrics/health").status_code == 200


class OwnRouter(Router):
    """Calls its routes past the stack of its middlewares."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def test_a_router_with_a_call_of_its_own(monitor: MetricsMonitor) -> None:
    app = Starlette()
    app.router = OwnRouter([Route("/hello", lambda request: PlainTextResponse("hello"))])
    client = TestClient(wrap(app, monitor, auth=public()))
    assert client.get("/hello").text == "hello"
    assert client.get("/api/metrics/health").status_code == 200
    assert [row["route"] for row in monitor.get_routes()] == ["/hello"]


def test_an_app_with_a_call_of_its_own(monitor: MetricsMonitor) -> None:
    class OwnApp(FastAPI):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] == "/own":
                await PlainTextResponse("own", 418)(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)

    client = TestClient(wrap(OwnApp(), monitor, auth=public()))
    assert client.get("/own").status_code == 418
    assert monitor.total_errors == 1
    assert client.get("/api/metrics/health").status_code == 200


def test_a_flask_that_matches_subdomains(monitor: MetricsMonitor) -> None:
    app = Flask(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "a.test"
    app.add_url_rule("/items/<int:i>", "item", lambda i: str(i), subdomain="api")
    client = wrap(app, monitor, auth=public()).test_client()
    for host in ("a.test", "api.a.test", "other.a.test"):
        assert client.get("/api/metrics/health", base_url=f"http://{host}").status_code == 200
    assert client.get("/items/3", base_url="http://api.a.test").status_code == 200
    assert monitor.total_requests == 1


@pytest.mark.parametrize("wrapped_first", [False, True])
def test_a_flask_that_matches_hosts(wrapped_first: bool, monitor: MetricsMonitor) -> None:
    app = Flask(__name__, host_matching=True, static_host="a.test")
    if wrapped_first:
        wrap(app, monitor, auth=public())
    app.add_url_rule("/items/<int:i>", "item", lambda i: str(i), host="a.test")
    app.add_url_rule("/items/<int:i>", "other", lambda i: str(i), host="<sub>.b.test")
    client = wrap(app, monitor, auth=public()).test_client()
    for host in ("a.test", "x.b.test", "a.test:8000"):
        assert client.get("/api/metrics/health", base_url=f"http://{host}").status_code == 200
        assert client.get("/api/metrics/", base_url=f"http://{host}").status_code == 200
    assert client.get("/items/3", base_url="http://a.test").status_code == 200
    assert [row["route"] for row in monitor.get_routes()] == ["/items/<int:i>"]
