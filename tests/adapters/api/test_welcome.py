"""What a server says as it begins: who may read and reset, and in development a link; once each."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from kits.handlers import ask
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import auth, wrap
from metricsmw.adapters.api import welcome
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.engine.directory import Directory, make_directory
from metricsmw.engine.workers import token
from metricsmw.engine.workers.directories import OUR_NAMES

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("METRICSMW_TOKEN", *token.RELOADED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    monkeypatch.setattr(welcome, "address_of_server", lambda patience: ADDRESS)
    # Not in a thread beside the event loop, which would have to be waited for.
    monkeypatch.setattr(welcome, "do_aside", lambda work, now: work(now))


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor(shared=True) as monitor:
        yield monitor


def flask_app(debug: bool = False) -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.debug = debug
    return app


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "may be read" in each.getMessage()]


@pytest.mark.parametrize(
    ("settings", "text", "level"),
    [
        (
            {},
            "(under Django: of its staff) and whoever has the token, and reset by the same",
            logging.WARNING,
        ),
        ({"reset": "token"}, "and reset by whoever has the token", logging.INFO),
        ({"auth": auth.token("a token of sixteen")}, "read by whoever has the token", logging.INFO),
        ({"auth": auth.staff(), "reset": False}, "of the staff, and reset by nobody", logging.INFO),
        ({"auth": auth.public()}, "by anybody, and reset by the same", logging.INFO),
        ({"auth": auth.session(bool)}, "and may by allow=", logging.INFO),
        ({"auth": lambda request: True}, "whom the application's policy lets in", logging.INFO),
    ],
)
def test_the_log_says_who_may(
    monitor: MetricsMonitor,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    text: str,
    level: int,
) -> None:
    caplog.set_level(logging.INFO, "metricsmw")
    client = wrap(flask_app(), monitor, **settings).test_client()
    assert said(caplog) == []  # an import says nothing
    for _ in range(3):
        client.get("/")
    (line,) = said(caplog)
    assert line.startswith("metricsmw: /api/metrics may be read by ")
    assert text in line
    assert "auth= and reset= narrow that" in line
    assert [each.levelno for each in caplog.records if each.getMessage() == line] == [level]


def test_a_second_worker_says_nothing(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "metricsmw")
    with MetricsMonitor(shared=True) as other:
        for each in (monitor, other):
            wrap(flask_app(debug=True), each).test_client().get("/")
    assert len(said(caplog)) == 1
    assert capsys.readouterr().err.count("#token=") == 1


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("kind", [Flask, Starlette, FastAPI])
def test_in_debug_mode_there_is_a_link(
    monitor: MetricsMonitor, capsys: pytest.CaptureFixture[str], kind: Any, debug: bool
) -> None:
    app = flask_app(debug) if kind is Flask else kind(debug=debug)
    client: Any = (
        wrap(app, monitor).test_client() if kind is Flask else TestClient(wrap(app, monitor))
    )
    client.get("/")
    assert monitor.shared_directory is not None
    own = token.server_token(monitor.shared_directory)
    link = f"{ADDRESS}/api/metrics/#token={own}"
    written = capsys.readouterr().err
    assert (link in written) is debug
    assert (str(own) in written) is debug
    bearer = {"Authorization": f"Bearer {own}"}
    assert client.get("/api/metrics/current", headers=bearer).status_code == 200


@pytest.mark.parametrize("why", ["terminal", "--reload", "WERKZEUG_RUN_MAIN", "RUN_MAIN"])
def test_so_is_there_before_a_terminal_and_under_reloaders(
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    if why == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    elif why == "--reload":
        monkeypatch.setattr(sys, "argv", [*sys.argv, why])
    else:
        monkeypatch.setenv(why, "true")
    wrap(flask_app(), monitor).test_client().get("/")
    assert f"{ADDRESS}/api/metrics/#token=" in capsys.readouterr().err


@pytest.mark.parametrize("policy", [auth.token("a token of sixteen"), auth.session(), None])
def test_no_link_where_it_would_not_let_in(
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    policy: auth.Policy | None,
) -> None:
    if policy is None:
        monkeypatch.setenv("METRICSMW_TOKEN", "a token of sixteen")
    wrap(flask_app(debug=True), monitor, auth=policy).test_client().get("/")
    assert "token=" not in capsys.readouterr().err


def test_an_app_without_users_is_no_surprise(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    TestClient(wrap(Starlette(), monitor)).get("/")
    assert said(caplog) == []
    session = Middleware(SessionMiddleware, secret_key="only for tests")
    TestClient(wrap(Starlette(middleware=[session]), monitor, path="/other")).get("/")
    assert len(said(caplog)) == 1


# --- the token's file ---------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Directory:
    return make_directory(tmp_path / "servers" / "one")


def test_the_token_is_for_its_user_only_and_for_the_server_s_life(place: Directory) -> None:
    before = os.umask(0)
    try:
        assert token.server_token(place, create=False) is None
        made = token.server_token(place)
    finally:
        os.umask(before)
    assert made is not None
    assert len(made) == 32
    assert stat.S_IMODE(place.status("token").st_mode) == 0o600
    assert token.server_token(place) == token.server_token(place.path) == made
    assert place.names() == ["token"]
    other = make_directory(place.path.parent / "two")
    assert token.server_token(other) != made


def test_a_probe_does_not_have_it_made_and_a_refusal_does() -> None:
    """A probe of `/health` must not read a file in the event loop; a refusal tells of the token."""
    with MetricsMonitor(shared=True) as monitor:
        handlers = Handlers(monitor)
        assert ask(handlers, "/health").status == 200
        assert monitor.shared_directory is not None
        assert "token" not in monitor.shared_directory.names()
        assert ask(handlers, "/current").status == 401
        assert "token" in monitor.shared_directory.names()


@pytest.mark.parametrize("kind", ["link", "fifo", "empty", "folder"])
def test_what_stands_in_its_place_is_not_taken(place: Directory, kind: str) -> None:
    path = place.path / "token"
    if kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(OSError, match=r"\w"):
        token.server_token(place)


def test_then_the_worker_has_one_of_its_own(monitor: MetricsMonitor) -> None:
    assert monitor.directory is not None
    (monitor.directory / "token").mkdir()
    client = wrap(flask_app(), monitor).test_client()
    bearer = {"Authorization": f"Bearer {token.process_token()}"}
    assert client.get("/api/metrics/current", headers=bearer).status_code == 200


@pytest.mark.parametrize("variable", token.RELOADED)
def test_what_a_reloader_starts_anew_keeps_its_token_and_says_nothing_again(
    place: Directory, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("METRICSMW_DIR")
    monkeypatch.setenv(variable, "true")
    anew = make_directory(place.path.parent / "anew")
    assert token.server_token(place) == token.server_token(anew)
    assert token.first_to(token.token_home(place), "told-1") is True
    assert token.first_to(token.token_home(anew), "told-1") is False
    assert token.token_home(place).path.name.startswith(f"{os.getppid()}-")


def test_their_files_go_with_the_server() -> None:
    assert all(map(OUR_NAMES.fullmatch, ("token", "told-0a1b2c3d", ".token.0123456789abcdef")))
