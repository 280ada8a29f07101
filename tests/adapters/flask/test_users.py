"""Whose requests they are: of the session, of Flask-Login, of a callable."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.sessions import SessionInterface, SessionMixin
from flask_login import LoginManager, UserMixin, login_user  # type: ignore[import-untyped]
from kits.flask_site import hello, in_session

from metricsmw import MetricsMonitor
from metricsmw.adapters.flask import (
    instrument,
)


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
