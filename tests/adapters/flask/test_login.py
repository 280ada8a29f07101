"""Who is logged in is Flask-Login's verdict where an app has it, not what a session names."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask_login import LoginManager, UserMixin, login_user  # type: ignore[import-untyped]
from kits.flask_site import in_session

from metricsmw import MetricsMonitor
from metricsmw.adapters import auth
from metricsmw.adapters.flask import instrument

READ, RESET = "/api/metrics/current", "/api/metrics/reset"


class User(UserMixin):  # type: ignore[misc]
    id = "ann"
    is_active = True
    is_staff = False


class Site:
    """An app with Flask-Login, a way in, and the users that it knows."""

    def __init__(self, app: Flask, monitor: MetricsMonitor, **settings: Any) -> None:
        self.users: dict[str, User] = {"ann": User()}
        app.add_url_rule("/login", view_func=lambda: str(login_user(self.users["ann"])))
        app.add_url_rule("/pending", view_func=in_session({"user": "ann", "user_id": "ann"}))
        manager = LoginManager(app)
        manager.session_protection = "strong"
        manager.user_loader(self.users.get)
        self.client = instrument(app, monitor, **settings).test_client()
        self.headers: dict[str, str] = {}

    def statuses(self) -> tuple[int, int]:
        return (
            self.client.get(READ, headers=self.headers).status_code,
            self.client.post(RESET, headers=self.headers).status_code,
        )


@pytest.fixture
def site(app: Flask, monitor: MetricsMonitor) -> Site:
    return Site(app, monitor)


def test_a_logged_in_user_reads_and_resets(site: Site) -> None:
    assert site.statuses() == (401, 401)
    site.client.get("/login")
    assert site.statuses() == (200, 200)


def test_a_deleted_user_does_not(site: Site) -> None:
    site.client.get("/login")
    site.users.clear()
    assert site.statuses() == (401, 401)


def test_a_blocked_user_does_not(site: Site) -> None:
    site.client.get("/login")
    site.users["ann"].is_active = False
    assert site.statuses() == (401, 401)


def test_a_stolen_cookie_under_strong_protection_does_not(site: Site) -> None:
    site.client.get("/login")
    site.headers = {"User-Agent": "another browser"}
    assert site.statuses() == (401, 401)


def test_a_pending_second_factor_does_not(site: Site) -> None:
    site.client.get("/pending")  # names its user in the session, and logs nobody in
    assert site.statuses() == (401, 401)


def test_who_of_them_may(app: Flask, monitor: MetricsMonitor) -> None:
    site = Site(app, monitor, auth=auth.session(lambda user: user.is_staff), reset="token")
    site.client.get("/login")
    assert site.statuses() == (401, 401)
    site.users["ann"].is_staff = True
    assert site.statuses() == (200, 403)


def test_a_user_class_of_ones_own(app: Flask, monitor: MetricsMonitor) -> None:
    class Own:
        is_authenticated = True
        is_active = False
        is_anonymous = False

        def get_id(self) -> str:
            return "ann"

    site = Site(app, monitor)
    site.client.get("/login")
    site.users["ann"] = Own()  # type: ignore[assignment]
    assert site.statuses() == (401, 401)
    site.users["ann"].is_active = True
    assert site.statuses() == (200, 200)


def test_an_app_without_it_goes_by_its_session(app: Flask, monitor: MetricsMonitor) -> None:
    app.add_url_rule("/pending", view_func=in_session({"user_id": "ann"}))
    client = instrument(app, monitor).test_client()
    client.get("/pending")
    assert client.get(READ).status_code == 200


def test_an_app_without_sessions_names_no_login(monitor: MetricsMonitor) -> None:
    client = instrument(Flask(__name__), monitor).test_client()
    answer: Any = client.get(READ).json
    assert "Log in" not in " ".join(answer["ways_in"])
    page = client.get("/api/metrics/", headers={"Accept": "text/html"}).text
    assert 'data-session="no"' in page
