"""Flask: the described system's usage, templates, users, the blueprint, and Flask-SocketIO."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import pytest
from flask import Blueprint, Flask, Response, abort, session, stream_with_context
from flask.sessions import SessionInterface, SessionMixin
from flask_login import LoginManager, UserMixin, login_user  # type: ignore[import-untyped]
from flask_socketio import ConnectionRefusedError, SocketIO
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.flask import (
    MetricsMiddleware,
    instrument,
    metrics_blueprint,
    metrics_bp,
    track_socketio,
)
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.add_url_rule("/", view_func=hello, endpoint="root")
    return app


def hello(**_: object) -> str:
    return "hello"


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def total_in(client: Client, path: str = "/api/metrics/current", **options: Any) -> int:
    """Return the requests that the sub-app tells of."""
    answer: Any = client.get(path, **options).json
    return int(answer["metrics"]["total_requests"])


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


# --- templates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("/", "GET /"),
        ("/items/7", "GET /items/<int:id>"),
        ("/files/a/b", "GET /files/<path:rest>"),
        ("/outer/inner/x/7", "GET /outer/inner/x/<y>"),
        ("/items/%C3%A9", "GET <unmatched>"),
        ("/files/%FF", "GET /files/<path:rest>"),
        ("/none", "GET <unmatched>"),
        ("/slash", "GET <unmatched>"),  # the redirect to /slash/
        ("/abort", "GET /abort"),
        ("/fail", "GET /fail"),
        ("/static/none.css", "GET /static/<path:filename>"),
    ],
)
def test_template(app: Flask, monitor: MetricsMonitor, path: str, row: str) -> None:
    def fail() -> str:
        raise RuntimeError("on purpose")

    inner = Blueprint("inner", __name__, url_prefix="/inner")
    inner.add_url_rule("/x/<y>", view_func=hello, endpoint="hello")
    outer = Blueprint("outer", __name__)
    outer.register_blueprint(inner)
    app.register_blueprint(outer, url_prefix="/outer")
    app.add_url_rule("/items/<int:id>", view_func=hello)
    app.add_url_rule("/files/<path:rest>", view_func=hello)
    app.add_url_rule("/slash/", view_func=hello)
    app.add_url_rule("/abort", view_func=lambda: abort(418), endpoint="abort")
    app.add_url_rule("/fail", view_func=fail)
    instrument(app, monitor)
    for _ in range(2):
        app.test_client().get(path)
    assert rows(monitor) == {row: 2}


def test_wrong_method_names_the_template(app: Flask, monitor: MetricsMonitor) -> None:
    app.add_url_rule("/items/<int:id>", view_func=hello, methods=["GET", "PUT"])
    client = instrument(app, monitor).test_client()
    assert client.delete("/items/7").status_code == 405
    assert client.options("/items/7").status_code == 200
    assert rows(monitor) == {"DELETE /items/<int:id>": 1, "OPTIONS /items/<int:id>": 1}


def test_a_wrong_method_where_others_are_redirected(app: Flask, monitor: MetricsMonitor) -> None:
    """No rule's, as the redirect itself; and no fault."""
    app.add_url_rule("/pages/", defaults={"page": 1}, view_func=hello)
    app.add_url_rule("/pages/<int:page>", view_func=hello)
    client = instrument(app, monitor).test_client()
    assert client.get("/pages/1").status_code == 308
    assert client.post("/pages/1").status_code == 405
    assert client.post("/pages/2").status_code == 405
    assert rows(monitor) == {
        "GET <unmatched>": 1,
        "POST <unmatched>": 1,
        "POST /pages/<int:page>": 1,
    }
    assert monitor.get_health()["faults"] == 0


@pytest.mark.parametrize("inside", [True, False], ids=["each app", "the dispatcher"])
def test_mounted_by_a_dispatcher(monitor: MetricsMonitor, inside: bool) -> None:
    def make() -> Flask:
        app = Flask(__name__)
        app.add_url_rule("/items/<id>", view_func=hello)
        return instrument(app, monitor) if inside else app

    mounted: Any = DispatcherMiddleware(make(), {"/shop": make(), "/shop/deep": make()})
    client = Client(mounted if inside else wrap(mounted, monitor))
    for path in ("/items/1", "/shop/items/1", "/shop/deep/items/1", "/shop/none"):
        client.get(path).close()
    assert rows(monitor) == {
        "GET /items/<id>": 1,
        "GET /shop/items/<id>": 1,
        "GET /shop/deep/items/<id>": 1,
        "GET <unmatched>": 1,
    }


def test_flask_inside_another_middleware(app: Flask, monitor: MetricsMonitor) -> None:
    app.add_url_rule("/items/<id>", view_func=hello)
    client = Client(WSGIMetricsMiddleware(ProxyFix(app.wsgi_app), monitor))
    client.get("/items/7").close()
    assert rows(monitor) == {"GET /items/<id>": 1}


@pytest.mark.parametrize("with_context", [False, True])
def test_streams_are_of_their_route(
    app: Flask, monitor: MetricsMonitor, with_context: bool
) -> None:
    def stream() -> Response:
        def lines() -> Iterator[str]:
            yield "one\n"
            assert monitor.total_requests == 0
            yield "two\n"

        session["user"] = "ann"
        return Response(stream_with_context(lines()) if with_context else lines())

    app.add_url_rule("/stream/<x>", view_func=lambda x: stream(), endpoint="stream")
    response = instrument(app, monitor).test_client().get("/stream/7")
    assert response.get_data() == b"one\ntwo\n"
    response.close()
    assert rows(monitor) == {"GET /stream/<x>": 1}
    assert monitor.get_active_user_ids() == ["ann"]


def test_a_body_that_another_middleware_makes_counts_when_it_is_closed(
    app: Flask, monitor: MetricsMonitor
) -> None:
    inner = app.wsgi_app

    def louder(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        return map(bytes.upper, inner(environ, start_response))

    app.wsgi_app = louder  # type: ignore[method-assign]
    answer = instrument(app, monitor).test_client().get("/")
    assert answer.get_data() == b"HELLO"
    assert monitor.total_requests == 0
    answer.close()
    assert rows(monitor) == {"GET /": 1}


def test_exception_that_escapes(app: Flask, monitor: MetricsMonitor) -> None:
    def fail() -> str:
        raise RuntimeError("on purpose")

    app.add_url_rule("/fail", view_func=fail)
    app.testing = True
    with pytest.raises(RuntimeError, match="on purpose"):
        instrument(app, monitor).test_client().get("/fail")
    assert rows(monitor) == {"GET /fail": 1}
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert monitor.get_current_snapshot().requests_in_flight == 0


# --- in place, in any order -------------------------------------------------------------------


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
    wrap(app, monitor, auth=public())
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
    instrument(app, monitor, auth=public())
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


# --- the blueprint ----------------------------------------------------------------------------


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
    assert (answer.status_code, answer.json) == (401, {"error": "Authentication required"})
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


# --- users ------------------------------------------------------------------------------------


def in_session(values: dict[str, object]) -> Callable[[], str]:
    def view() -> str:
        session.update(values)
        return "in"

    return view


@pytest.mark.parametrize(
    ("values", "user"),
    [
        ({"user": "ann"}, ["ann"]),
        ({"user_id": 7}, ["7"]),
        ({"user": {"id": 9, "name": "Ann"}}, ["9"]),
        ({"user": ""}, []),
        ({"cart": 1}, []),
    ],
)
def test_user_of_the_session(
    app: Flask, monitor: MetricsMonitor, values: dict[str, object], user: list[str]
) -> None:
    app.add_url_rule("/enter", view_func=in_session(values))
    client = instrument(app, monitor).test_client()
    client.get("/")
    assert monitor.get_active_user_ids() == []
    client.get("/enter")  # the session is one that the view has just filled
    assert monitor.get_active_user_ids() == user
    monitor.reset_statistics()
    client.get("/")
    assert monitor.get_active_user_ids() == user


def test_user_of_flask_login(app: Flask, monitor: MetricsMonitor) -> None:
    class User(UserMixin):  # type: ignore[misc]
        id = "u-1"

    LoginManager(app).user_loader(lambda user_id: User())
    app.add_url_rule("/login", view_func=lambda: str(login_user(User())), endpoint="login")
    client = instrument(app, monitor).test_client()
    client.get("/login")
    assert monitor.get_active_user_ids() == ["u-1"]
    assert client.get("/api/metrics/current").status_code == 200


def test_remote_user(app: Flask, monitor: MetricsMonitor) -> None:
    client = instrument(app, monitor).test_client()
    client.get("/", environ_overrides={"REMOTE_USER": "ann"})
    client.get("/", headers={"Remote-User": "eve"})  # any client can send that
    assert monitor.get_active_user_ids() == ["ann"]


def test_looking_at_the_session_does_not_touch_it(monitor: MetricsMonitor) -> None:
    def make() -> Flask:
        app = Flask(__name__)
        app.secret_key = "only for tests"
        app.add_url_rule("/", view_func=hello)
        app.add_url_rule("/enter", view_func=in_session({"user": "ann"}))
        return app

    answers = []
    for app in (make(), instrument(make(), monitor)):
        client = app.test_client()
        client.get("/enter")
        answers.append(client.get("/"))
    bare, measured = answers
    assert monitor.get_active_user_ids() == ["ann"]
    assert list(measured.headers) == list(bare.headers)
    assert "Vary" not in measured.headers


def test_session_is_read_past_its_own_methods(app: Flask, monitor: MetricsMonitor) -> None:
    read: list[str] = []

    class Tracking(dict[str, Any], SessionMixin):
        def __getitem__(self, key: str) -> Any:
            read.append(key)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            read.append(key)
            return super().get(key, default)

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: Any) -> Tracking:
            return Tracking(user="ann")

        def save_session(self, app: Flask, session: Any, response: Any) -> None: ...

    app.session_interface = Interface()
    instrument(app, monitor).test_client().get("/")
    assert monitor.get_active_user_ids() == ["ann"]
    assert read == []


def test_session_that_is_no_dict_is_left_alone(app: Flask, monitor: MetricsMonitor) -> None:
    class Forbidden(SessionMixin):
        """A session that must not be read."""

        def __getitem__(self, key: str) -> Any:
            raise AssertionError("read")

        __setitem__ = __delitem__ = __iter__ = __len__ = __getitem__  # type: ignore[assignment]

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: Any) -> Forbidden:
            return Forbidden()

        def save_session(self, app: Flask, session: Any, response: Any) -> None: ...

    app.session_interface = Interface()
    assert instrument(app, monitor).test_client().get("/").get_data() == b"hello"
    assert monitor.total_requests == 1
    assert monitor.get_active_users() == 0


def test_fault_of_the_user_callable_does_not_reach_the_app(
    app: Flask, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    def user(environ: dict[str, Any]) -> str:
        raise RuntimeError("on purpose")

    client = instrument(app, monitor, user=user).test_client()
    for _ in range(3):
        assert client.get("/").get_data() == b"hello"
    assert monitor.total_requests == 3
    assert len([record for record in caplog.records if record.name == "metricsmw"]) == 1


# --- Flask-SocketIO ---------------------------------------------------------------------------


@pytest.fixture
def socketio(app: Flask) -> SocketIO:
    return SocketIO(app, async_mode="threading")


def test_connections_count_without_a_handler(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor
) -> None:
    track_socketio(socketio, monitor)
    clients = [socketio.test_client(app) for _ in range(3)]
    assert monitor.get_websocket_connections() == 3
    for left in (2, 1, 0):
        clients.pop().disconnect()
        assert monitor.get_websocket_connections() == left


@pytest.mark.parametrize("tracked_first", [True, False])
def test_handlers_of_the_app_go_on(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor, tracked_first: bool
) -> None:
    seen: list[str] = []
    if tracked_first:
        track_socketio(socketio, monitor)

    @socketio.on("connect")  # type: ignore[untyped-decorator]
    def connect() -> None:
        seen.append(f"connect {monitor.get_websocket_connections()}")

    @socketio.on("disconnect")  # type: ignore[untyped-decorator]
    def disconnect(reason: str) -> None:
        seen.append(f"disconnect {monitor.get_websocket_connections()}")

    @socketio.on("message")  # type: ignore[untyped-decorator]
    def message(text: str) -> str:
        return text.upper()

    if not tracked_first:
        track_socketio(socketio, monitor)
    client = socketio.test_client(app)
    assert client.send("hi", callback=True) == "HI"
    client.disconnect()
    assert seen == ["connect 1", "disconnect 0"]


def refuse() -> bool:
    return False


def refuse_loudly() -> None:
    raise ConnectionRefusedError("no")


def fail() -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("handler", [refuse, refuse_loudly])
def test_a_refused_connection_does_not_count(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor, handler: Callable[[], Any]
) -> None:
    track_socketio(socketio, monitor)
    socketio.on_event("connect", handler)
    client = socketio.test_client(app)
    assert not client.is_connected()
    assert monitor.get_websocket_connections() == 0


def test_a_handler_that_fails_does_not_count(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor
) -> None:
    track_socketio(socketio, monitor)
    socketio.on_event("connect", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        socketio.test_client(app)
    assert monitor.get_websocket_connections() == 0


def test_namespaces_of_one_client_count_once(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor
) -> None:
    track_socketio(socketio, monitor)
    socketio.on_event("x", hello, namespace="/chat")
    socketio.on_event("connect", refuse, namespace="/closed")
    client = socketio.test_client(app)
    client.connect("/chat")
    client.connect("/closed")
    assert [client.is_connected(name) for name in ("/", "/chat", "/closed")] == [True, True, False]
    assert monitor.get_websocket_connections() == 1
    client.disconnect("/")
    assert monitor.get_websocket_connections() == 1
    client.disconnect("/chat")
    assert monitor.get_websocket_connections() == 0


def test_a_transport_that_dies_takes_its_connection_with_it(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor
) -> None:
    """Also while the connect handler runs, when Socket.IO tells nobody of the disconnect."""
    track_socketio(socketio, monitor)

    def die() -> None:
        (connection,) = socketio.server.environ
        socketio.server.eio.handlers["disconnect"](connection, "transport close")
        assert monitor.get_websocket_connections() == 0

    client = socketio.test_client(app)
    assert monitor.get_websocket_connections() == 1
    socketio.server.eio.handlers["disconnect"](client.eio_sid, "transport close")
    assert monitor.get_websocket_connections() == 0

    socketio.on_event("connect", die)
    socketio.test_client(app)
    assert monitor.get_websocket_connections() == 0


def test_disconnected_by_the_server(
    app: Flask, socketio: SocketIO, monitor: MetricsMonitor
) -> None:
    track_socketio(socketio, monitor)
    client = socketio.test_client(app)
    sid = socketio.server.manager.sid_from_eio_sid(client.eio_sid, "/")
    socketio.server.disconnect(sid)
    assert monitor.get_websocket_connections() == 0


def test_before_init_app_and_twice(app: Flask, monitor: MetricsMonitor) -> None:
    socketio = SocketIO(async_mode="threading")
    track_socketio(socketio, monitor)
    socketio.init_app(app)
    track_socketio(socketio, monitor)
    socketio.test_client(app)
    assert monitor.get_websocket_connections() == 1


def test_the_server_s_monitor_is_the_default(app: Flask, socketio: SocketIO) -> None:
    track_socketio(socketio)
    client = socketio.test_client(app)
    assert get_metrics_monitor().get_websocket_connections() == 1
    client.disconnect()
    assert get_metrics_monitor().get_websocket_connections() == 0


@pytest.mark.parametrize("measured_first", [True, False])
def test_socketio_around_a_measured_app(monitor: MetricsMonitor, measured_first: bool) -> None:
    """In either order: the app's routes and users are seen, Socket.IO's own traffic is not."""
    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.add_url_rule("/enter/<x>", view_func=lambda x: in_session({"user": x})(), endpoint="enter")
    if measured_first:
        instrument(app, monitor, auth=public())
    socketio = SocketIO(app, async_mode="threading")
    if not measured_first:
        instrument(app, monitor, auth=public())
    track_socketio(socketio, monitor)
    client = app.test_client()
    assert client.get("/enter/ann").status_code == 200
    polled = client.get("/socket.io/?EIO=4&transport=polling")
    assert polled.get_data().startswith(b"0{")
    assert client.get("/api/metrics/current").status_code == 200
    assert rows(monitor) == {"GET /enter/<x>": 1}
    assert monitor.get_active_user_ids() == ["ann"]
    assert monitor.get_current_snapshot().requests_in_flight == 0
