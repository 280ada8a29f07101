"""Whose requests they are: the user of the request, of the session, of a project's own."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.http import (
    HttpRequest,
)
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext, override_settings
from kits.django_site import (
    Measured,
    answer_of,
    body_of,
    both,
)

from metricsmw import MetricsMonitor


@both
def test_user_of_request(monitor: MetricsMonitor, measured: None, asynchronous: bool) -> None:
    client: Any = AsyncClient() if asynchronous else Client()
    ann = User.objects.get(username="ann")
    client.force_login(ann)
    assert body_of(answer_of("/", asynchronous, client)) == b"hello"
    assert monitor.get_active_user_ids() == []  # nobody has asked for the user
    path = "/async-user" if asynchronous else "/user"
    assert body_of(answer_of(path, asynchronous, client)) == b"ann"
    assert monitor.get_active_user_ids() == [str(ann.pk)]


def test_user_who_has_just_come_or_gone(monitor: MetricsMonitor, measured: None) -> None:
    client = Client()
    client.get("/enter")
    assert monitor.get_active_users() == 1
    monitor.reset_statistics()
    client.get("/out")
    client.get("/user")
    assert monitor.get_active_users() == 0


@pytest.mark.parametrize(
    ("query", "user"), [("user=ann", ["ann"]), ("user_id=7", ["7"]), ("x=1", [])]
)
def test_user_of_the_session(
    monitor: MetricsMonitor, measured: None, query: str, user: list[str]
) -> None:
    Client().get(f"/keep?{query}")
    assert monitor.get_active_user_ids() == user


def test_looking_for_the_user_asks_no_store(monitor: MetricsMonitor, measured: None) -> None:
    client = Client()
    client.get("/enter")
    with CaptureQueriesContext(connection) as queries:
        response = client.get("/")
    assert len(queries) == 0
    assert "Vary" not in response.headers
    with CaptureQueriesContext(connection) as queries:
        client.get("/user")
    assert len(queries) == 2  # the app's own: the session and the user


def test_user_who_is_of_no_session(monitor: MetricsMonitor, measured: None) -> None:
    Client().get("/own-user")
    assert monitor.get_active_user_ids() == ["99"]


def test_remote_user(monitor: MetricsMonitor, measured: None) -> None:
    Client().get("/", REMOTE_USER="ann")
    assert monitor.get_active_user_ids() == ["ann"]


@both
def test_user_of_one_s_own(monitor: MetricsMonitor, asynchronous: bool) -> None:
    with override_settings(MIDDLEWARE=[f"{__name__}.OwnUser"]):
        answer_of("/?as=bob", asynchronous)
        answer_of("/", asynchronous)
    assert monitor.get_active_user_ids() == ["bob"]


class OwnUser(Measured):
    def user_of(self, request: HttpRequest) -> object | None:
        return str(request.GET["as"])  # raises where there is none
