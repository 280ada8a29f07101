"""Flask-SocketIO: its connections count, its handlers go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask_socketio import ConnectionRefusedError, SocketIO
from kits.flask_site import hello, in_session, rows

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters.auth import public
from metricsmw.adapters.flask import (
    instrument,
    track_socketio,
)


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
