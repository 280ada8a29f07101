"""Instrumented in place, in any order; the blueprint and who may read it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

import pytest
from flask import Flask, abort
from flask_socketio import SocketIO
from kits.flask_site import hello, rows, total_in

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.flask import (
    MetricsMiddleware,
    instrument,
    metrics_blueprint,
    metrics_bp,
)


class TestDescribedSystem:
    """Its integration tests and its first example, with nothing changed but the imports."""

    @pytest.fixture
    def app(self) -> Flask:
        app = Flask(__name__)
        app.config["SECRET_KEY"] = "test"
        app.register_blueprint(metrics_bp)
        MetricsMiddleware(app, get_metrics_monitor())
        return app

    def test_current_metrics_endpoint(self, app: Flask) -> None:
        client = app.test_client()
        with client.session_transaction() as sess:
            sess["user"] = "test_user"
        response = client.get("/api/metrics/current")
        assert response.status_code == 200
        data = response.get_json()
        assert data["success"] is True
        assert "metrics" in data
        assert "timestamp" in data["metrics"]

    def test_health_endpoint(self, app: Flask) -> None:
        response = app.test_client().get("/api/metrics/health")
        assert response.status_code == 200
        data = response.get_json()
        assert data["success"] is True
        assert data["status"] == "healthy"
        assert data["version"] == "1.0.0"

    def test_production_example(self) -> None:
        app = Flask(__name__)
        socketio = SocketIO(app, async_mode="threading")
        monitor = get_metrics_monitor(window_seconds=300)
        before = monitor.total_requests
        MetricsMiddleware(app, monitor)
        app.register_blueprint(metrics_bp)

        @socketio.on("connect")  # type: ignore[untyped-decorator]
        def handle_connect() -> None:
            monitor.increment_websocket_connections()

        @socketio.on("disconnect")  # type: ignore[untyped-decorator]
        def handle_disconnect() -> None:
            monitor.decrement_websocket_connections()

        assert app.test_client().get("/nothing").status_code == 404
        assert app.test_client().get("/api/metrics/health").status_code == 200
        assert monitor.total_requests == before + 1
        client = socketio.test_client(app)
        assert monitor.get_websocket_connections() == 1
        client.disconnect()
        assert monitor.get_websocket_connections() == 0


def test_returns_the_app_itself(app: Flask, monitor: MetricsMonitor) -> None:
    assert instrument(app, monitor) is app
    middleware = MetricsMiddleware(app)
    assert middleware.app is app
    assert middleware.monitor is get_metrics_monitor()


@pytest.mark.parametrize("blueprint_first", [True, False])
def test_blueprint_answers_with_the_app_s_monitor(
    app: Flask, monitor: MetricsMonitor, blueprint_first: bool
) -> None:
    if blueprint_first:
        app.register_blueprint(metrics_bp)
    MetricsMiddleware(app, monitor)
    if not blueprint_first:
        app.register_blueprint(metrics_bp)
    client = app.test_client()
    for _ in range(3):
        client.get("/")
    with client.session_transaction() as sess:
        sess["user"] = "ann"
    assert total_in(client) == 3
    assert client.post("/api/metrics/reset").status_code == 200
    assert monitor.total_requests == 0


def test_one_blueprint_serves_several_apps_each_with_its_own(monitor: MetricsMonitor) -> None:
    other = MetricsMonitor()
    numbers = []
    for number, each in enumerate([monitor, other], start=1):
        app = Flask(__name__)
        app.secret_key = "only for tests"
        app.register_blueprint(metrics_bp)
        MetricsMiddleware(app, each)
        client = app.test_client()
        for _ in range(number):
            client.get("/none")
        with client.session_transaction() as sess:
            sess["user"] = "ann"
        numbers.append(total_in(client))
    assert numbers == [1, 2]


def test_said_twice_counts_once(app: Flask, monitor: MetricsMonitor) -> None:
    MetricsMiddleware(app, monitor)
    MetricsMiddleware(app, monitor)
    app.register_blueprint(metrics_bp)
    wrap(app, monitor)
    wrap(app, monitor, path="/other", auth=public())
    client = app.test_client()
    client.get("/")
    assert monitor.total_requests == 1
    assert total_in(client, "/other/current") == 1
    assert client.get("/api/metrics/health").status_code == 200
    assert monitor.total_requests == 1
    assert monitor.get_current_snapshot().requests_in_flight == 0


def test_said_twice_puts_nothing_in_a_request_s_way(app: Flask, monitor: MetricsMonitor) -> None:
    MetricsMiddleware(app, monitor)
    once = app.wsgi_app
    MetricsMiddleware(app, monitor)
    assert app.wsgi_app is once


def test_a_path_that_is_served_keeps_its_policy(app: Flask, monitor: MetricsMonitor) -> None:
    instrument(app, monitor, auth=token("secret"))
    instrument(app, monitor)
    assert app.test_client().get("/api/metrics/current").status_code == 401


def test_app_goes_on_as_before(app: Flask, monitor: MetricsMonitor) -> None:
    instrument(app, monitor)
    app.add_url_rule("/late/<x>", view_func=hello, endpoint="late")
    app.errorhandler(404)(lambda error: ("mine", 404))
    client = app.test_client()
    assert client.get("/none").get_data() == b"mine"
    with client:
        client.get("/late/7")
        from flask import request

        assert str(request.url_rule) == "/late/<x>"  # the client keeps the context
    assert rows(monitor) == {"GET /late/<x>": 1, "GET <unmatched>": 1}


def test_everything_below_the_blueprint_is_the_sub_app_s(
    app: Flask, monitor: MetricsMonitor
) -> None:
    app.add_url_rule("/<path:rest>", view_func=hello)
    client = instrument(app, monitor, auth=public()).test_client()
    for path in ("/api/metrics", "/api/metrics/"):
        answer = client.get(path)
        assert (answer.status_code, answer.mimetype) == (200, "text/html")
        links = [urljoin(path, link) for link in re.findall(r'href="([^"]*)"', answer.text)]
        assert "/api/metrics/current" in links
        assert {client.get(link).status_code for link in links} == {200}
    for path in ("/api/metrics/none", "/api/metrics/current/", "/api/metrics/a/b"):
        answer = client.get(path)
        assert (answer.status_code, answer.json) == (404, {"error": "Not found"})
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        answer = client.open("/api/metrics/current", method=method)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert answer.json == {"error": "Method not allowed"}
    head = client.head("/api/metrics/current")
    assert (head.status_code, head.get_data()) == (200, b"")
    assert monitor.total_requests == 0
    assert client.get("/api/metricsx").get_data() == b"hello"
    assert rows(monitor) == {"GET /<path:rest>": 1}


def test_answer_is_the_handlers_answer(app: Flask, monitor: MetricsMonitor) -> None:
    client = instrument(app, monitor, auth=public()).test_client()
    answer: Any = client.get("/api/metrics/history?minutes=5")
    assert answer.json["minutes"] == 5
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.content_type == "application/json"
    assert client.get("/api/metrics/history?minutes=x").status_code == 400


def test_auth(app: Flask, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICSMW_TOKEN", "secret")
    client = instrument(app, monitor).test_client()
    answer = client.get("/api/metrics/current")
    assert (answer.status_code, answer.json["error"]) == (401, "Authentication required")
    bearer = {"Authorization": "Bearer secret"}
    assert client.get("/api/metrics/current", headers=bearer).status_code == 200
    remote = client.get("/api/metrics/current", environ_overrides={"REMOTE_USER": "ann"})
    assert remote.status_code == 401  # what the server says is no session
    for key in ("user", "user_id", "_user_id"):
        client = app.test_client()
        with client.session_transaction() as sess:
            sess[key] = "ann"
        assert client.get("/api/metrics/current").status_code == 200
    evil = {"Origin": "https://evil.example"}
    assert client.post("/api/metrics/reset", headers=evil).status_code == 403
    assert client.post("/api/metrics/reset", headers=evil | bearer).status_code == 200


def test_no_secret_key_is_no_session(monitor: MetricsMonitor) -> None:
    client = instrument(Flask(__name__), monitor).test_client()
    assert client.get("/api/metrics/current").status_code == 401
    assert client.get("/api/metrics/health").status_code == 200


def test_the_app_s_own_wall_applies(app: Flask, monitor: MetricsMonitor) -> None:
    app.before_request(lambda: abort(403))
    client = instrument(app, monitor, auth=public()).test_client()
    assert client.get("/api/metrics/current").status_code == 403


def test_blueprint_of_one_s_own(app: Flask, monitor: MetricsMonitor) -> None:
    other = MetricsMonitor()
    MetricsMiddleware(app, monitor)
    app.register_blueprint(
        metrics_blueprint(other, token("secret"), "/numbers"), url_prefix="/admin"
    )
    client = app.test_client()
    assert client.get("/admin/numbers/current").status_code == 401
    bearer = {"Authorization": "Bearer secret"}
    assert total_in(client, "/admin/numbers/current", headers=bearer) == 0
    assert monitor.total_requests == 0
    with pytest.raises(TypeError, match="auth"):
        metrics_blueprint(auth="secret")  # type: ignore[arg-type]
