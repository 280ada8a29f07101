"""The middleware in MIDDLEWARE: templates, statuses, exclusions, the monitor; sync and async."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from django.http import (
    HttpRequest,
    HttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import override_settings
from kits.django_site import (
    TEMPLATES,
    Measured,
    answer_of,
    both,
    called,
    environ_of,
    hello,
    in_flight,
    rows,
    wsgi_stack,
)

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import django as glue
from metricsmw.adapters.resolvers.django import template_of


@both
@pytest.mark.parametrize(("path", "row"), TEMPLATES)
def test_template(
    monitor: MetricsMonitor, measured: None, path: str, row: str, asynchronous: bool
) -> None:
    for _ in range(2):
        answer_of(path, asynchronous)
    assert rows(monitor) == {row: 2}
    assert in_flight(monitor) == 0


@both
def test_statuses(monitor: MetricsMonitor, measured: None, asynchronous: bool) -> None:
    statuses = [answer_of(path, asynchronous).status_code for path in ("/", "/none", "/fail")]
    assert statuses == [200, 404, 500]
    client = (AsyncClient if asynchronous else Client)()
    response = client.post("/page")
    assert (asyncio.run(response) if asynchronous else response).status_code == 405
    assert (monitor.total_requests, monitor.total_errors) == (4, 3)
    assert rows(monitor)["POST /page"] == 1


@pytest.mark.parametrize(
    ("route", "template"),
    [
        ("", "/"),
        ("/leading", "/leading"),
        ("a/<int:b>/c.json", "/a/<int:b>/c.json"),
        ("c++/(x)", "/c++/(x)"),
        (r"^a/(?P<b>(x|y)+)/(\w+)/$", "/a/<b>/<var>/"),
        (r"a/<int:x>/^b/(?P<y>\d{2,})/$", "/a/<int:x>/b/<y>/"),
        (r"^a\.b/\(c\)/?$", "/a.b/(c)/"),
        (r"^\d{4}/[a-z\]]+/.*$", "/<var>/<var>/<var>"),
        (r"^(?:en|de)/(?:page-)?x$", "/<var>/page-x"),
        (r"\Aa(?=b)(?!c)(?i)/(?i:d)\Z", "/a/d"),
        (r"^(?P<a>[()]+)/(?P<b>\()/$", "/<a>/<b>/"),
        (r"^robots.txt$", "/robots.txt"),
        (r"^unclosed/(?P<x>\d+$", "/unclosed/<x>"),
        (r"^(\d+)(\w+)/$", "/<var>/"),
        (r"a/([0-9]+)/", "/a/<var>/"),
        (r"a/(b|c)/", "/a/<var>/"),
    ],
)
def test_patterns_made_plain(route: str, template: str) -> None:
    assert template_of(route) == template


def test_what_ends_the_process_is_an_error_and_goes_on(
    monitor: MetricsMonitor, measured: None
) -> None:
    with pytest.raises(SystemExit, match="on purpose"):
        called(wsgi_stack(), environ_of("/leave"))
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert rows(monitor) == {"GET /leave": 1}
    assert in_flight(monitor) == 0


def test_cancelled_is_a_client_gone(monitor: MetricsMonitor) -> None:
    async def never(request: HttpRequest) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def cancel() -> None:
        task = asyncio.ensure_future(Measured(never)(RequestFactory().get("/")))
        await asyncio.sleep(0)
        assert in_flight(monitor) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert (monitor.total_requests, monitor.total_errors) == (1, 0)
    assert monitor.get_latency_percentiles() == (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


@both
def test_exclude(monitor: MetricsMonitor, measured: None, asynchronous: bool) -> None:
    for path in ("/excluded/x", "/favicon.ico"):
        assert answer_of(path, asynchronous).status_code == 404
    assert monitor.total_requests == 0
    answer_of("/icons", asynchronous)
    assert monitor.total_requests == 1


def test_bad_exclude() -> None:
    class Wrong(glue.MetricsMiddleware):
        exclude: ClassVar[Any] = [3]

    with pytest.raises(TypeError, match="exclude"):
        Wrong(hello)


def test_the_server_s_monitor_is_the_default() -> None:
    before = get_metrics_monitor().total_requests
    with override_settings(MIDDLEWARE=["metricsmw.adapters.django.MetricsMiddleware"]):
        assert Client().get("/").content == b"hello"
    assert get_metrics_monitor().total_requests == before + 1
