"""The sub-app as urls of a project, behind its sessions and its walls."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any
from urllib.parse import urljoin

import django
import pytest
from django.contrib.auth.backends import ModelBackend as Model
from django.contrib.auth.models import User
from django.core.handlers.base import BaseHandler
from django.db import connection
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import override_settings
from kits.django_site import (
    SESSIONS,
    Wrapped,
    answer_of,
    both,
    in_flight,
    logged_in,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters import auth
from metricsmw.adapters import django as glue


@both
def test_urls(monitor: MetricsMonitor, measured: None, asynchronous: bool) -> None:
    assert answer_of("/api/metrics/current", asynchronous).status_code == 401
    assert answer_of("/api/metrics/health", asynchronous).status_code == 200
    client: Any = AsyncClient() if asynchronous else Client()
    client.force_login(User.objects.get(username="ann"))
    answer = answer_of("/api/metrics/current", asynchronous, client)
    assert answer.status_code == 200
    assert answer.json()["success"] is True
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    for path in ("/api/metrics/", "/api/metrics/routes", "/api/metrics/history?minutes=5"):
        assert answer_of(path, asynchronous, client).status_code == 200
    assert answer_of("/api/metrics/history?minutes=x", asynchronous, client).status_code == 400
    answer = answer_of("/api/metrics/none", asynchronous, client)
    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})
    assert monitor.total_requests == 0  # all of them the sub-app's own
    assert in_flight(monitor) == 0


def test_urls_below_a_mount_without_a_slash_and_with_a_policy() -> None:
    client = Client()
    bearer = {"HTTP_AUTHORIZATION": "Bearer secret"}
    assert client.get("/numbers/current").status_code == 401
    for path in ("/numbers", "/numbers/", "/numbers/current"):
        assert client.get(path, **bearer).status_code == 200
    for page in ("/numbers", "/numbers/"):
        links = re.findall(r'href="([^"]*)"', client.get(page, **bearer).content.decode())
        assert "/numbers/current" in [urljoin(page, link) for link in links]
    assert client.get("/numbersx", **bearer).status_code == 404


def test_reset_needs_no_csrf_token_but_refuses_other_sites(bare: None) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="ann"))
    with override_settings(MIDDLEWARE=[*SESSIONS, "django.middleware.csrf.CsrfViewMiddleware"]):
        assert client.post("/api/metrics/reset").status_code == 200
        answer = client.post("/api/metrics/reset", HTTP_ORIGIN="https://evil.example")
        assert (answer.status_code, "error" in answer.json()) == (403, True)


@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django has it since 5.1")
def test_health_stays_open_where_login_is_required() -> None:
    wall = [*SESSIONS, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with override_settings(MIDDLEWARE=wall):
        assert Client().get("/items/7/").status_code == 302
        assert Client().get("/api/metrics/health").status_code == 200
        assert Client().get("/api/metrics/current").status_code == 401


@pytest.mark.parametrize(("key", "status"), [("user", 200), ("user_id", 200), ("cart", 401)])
def test_session_without_a_user_model_opens(key: str, status: int) -> None:
    client = Client()
    with override_settings(MIDDLEWARE=SESSIONS[:1]):
        client.get(f"/keep?{key}=ann")
        assert client.get("/api/metrics/current").status_code == status


@pytest.mark.parametrize("key", ["user", "user_id"])
def test_what_a_session_names_does_not_count_beside_a_user_model(bare: None, key: str) -> None:
    client = Client()
    client.get(f"/keep?{key}=ann")
    assert client.get("/api/metrics/current").status_code == 401


@both
@pytest.mark.parametrize(
    ("policy", "name", "changes", "status"),
    [
        (None, "ann", {}, 200),
        (None, "ann", {"is_active": False}, 401),
        (None, "ann", {"is_staff": False}, 401),
        (None, "eve", {}, 401),
        (None, "eve", {"is_staff": True}, 200),
        (auth.session(), "eve", {}, 200),
        (auth.session(), "eve", {"is_active": False}, 401),
        (auth.session(lambda user: user.username == "eve"), "eve", {}, 200),
        (auth.session(lambda user: user.username == "eve"), "ann", {}, 401),
        (auth.staff(), "eve", {}, 401),
        (auth.staff(), "ann", {}, 200),
        (auth.staff(), "ann", {"is_active": False}, 401),
    ],
)
def test_who_may_read_and_reset(
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: bool,
    policy: auth.Policy | None,
    name: str,
    changes: dict[str, bool],
    status: int,
) -> None:
    with override_settings(MIDDLEWARE=SESSIONS):
        site = Wrapped(asynchronous).wrap(MetricsMonitor(), auth=policy, path="/numbers-of-this")
        # A user who is blocked, or leaves the staff, after logging in.
        cookie = logged_in(name)
        monkeypatch.setattr(Model, "get_user", lambda self, key: changed(key, changes))
        assert site.get("/numbers-of-this/current", cookie)[0] == status


@pytest.mark.parametrize(
    ("verified", "has_device", "status"),
    [(False, True, 401), (True, True, 200), (False, False, 200)],
)
def test_a_pending_second_factor_reads_nothing(
    bare: None, monkeypatch: pytest.MonkeyPatch, verified: bool, has_device: bool, status: int
) -> None:
    """As django-otp marks users: its middleware sets these two on each."""
    otp = ModuleType("django_otp")
    vars(otp)["user_has_device"] = lambda user: has_device
    monkeypatch.setitem(sys.modules, "django_otp", otp)
    marks = {"otp_device": object() if verified else None, "is_verified": lambda: verified}
    client = Client()
    client.force_login(User.objects.get(username="ann"))
    monkeypatch.setattr(Model, "get_user", lambda self, key: changed(key, marks))
    assert client.get("/api/metrics/current").status_code == status
    assert client.post("/api/metrics/reset").status_code == status


def changed(key: object, changes: dict[str, Any]) -> User | None:
    user = User.objects.get(pk=key)
    vars(user).update(changes)
    return user if user.is_active else None


def test_the_sub_app_needs_no_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    seen: list[bool] = []

    def policy(request: object) -> bool:
        seen.append(connection.in_atomic_block)
        return True

    view = BaseHandler().make_view_atomic(glue.metrics_view(MetricsMonitor(), policy))
    assert view(RequestFactory().get("/current"), below="current").status_code == 200
    assert seen == [False]


def test_no_sessions_at_all() -> None:
    with override_settings(MIDDLEWARE=[]):
        assert Client().get("/api/metrics/current").status_code == 401


@both
@pytest.mark.parametrize("policy", [None, auth.token("another of sixteen")])
def test_two_policies_at_one_path_let_nobody_in(
    asynchronous: bool, policy: auth.Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The URLs serve `/numbers` by a token, and the whole is wrapped with another policy."""
    with override_settings(MIDDLEWARE=SESSIONS):
        site = Wrapped(asynchronous).wrap(MetricsMonitor(), auth=policy, path="/numbers")
        cookie = logged_in("ann")
        for _ in range(2):
            assert site.get("/numbers/current", cookie)[0] == 500
        same = Wrapped(asynchronous).wrap(
            MetricsMonitor(), auth=auth.token("secret"), path="/numbers"
        )
        assert same.get("/numbers/current", cookie)[0] == 401
    assert "/numbers" in caplog.records[0].getMessage()
