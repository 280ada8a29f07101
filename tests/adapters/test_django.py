"""Django: the middleware (sync, async, streaming), the urls, and wrapped handlers."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urldefrag, urljoin

import django
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings

if not settings.configured:
    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[],
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
        ],
        # One database in memory for all threads: the async views have one of their own.
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": "file:metricsmw?mode=memory&cache=shared",
                "OPTIONS": {"uri": True},
            }
        },
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        USE_TZ=True,
    )
    django.setup()

from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.handlers.base import BaseHandler
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import include, re_path
from django.urls import path as url
from django.views import View
from starlette.applications import Starlette
from starlette.testclient import TestClient
from waitress.task import ThreadedTaskDispatcher
from werkzeug.test import Client as WSGIClient
from werkzeug.test import run_wsgi_app
from werkzeug.wsgi import FileWrapper

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters import django as glue
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.resolvers.django import template_of

# --- the site ---------------------------------------------------------------------------------


def hello(request: HttpRequest, **_: object) -> HttpResponse:
    return HttpResponse("hello")


async def async_hello(request: HttpRequest, **_: object) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse("hello")


class Page(View):  # type: ignore[misc]
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("page")


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("on purpose")


def leave(request: HttpRequest) -> HttpResponse:
    raise SystemExit("on purpose")


def user_name(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user))


def enter(request: HttpRequest) -> HttpResponse:
    login(request, User.objects.get(username="ann"))
    return HttpResponse("in")


def leave_session(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


def keep(request: HttpRequest) -> HttpResponse:
    for key, value in request.GET.items():
        request.session[key] = value
    return HttpResponse("kept")


async def async_user(request: HttpRequest) -> HttpResponse:
    if hasattr(request, "auser"):
        return HttpResponse(str(await request.auser()))
    return HttpResponse(await sync_to_async(lambda: str(request.user))())  # Django 4.2


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"one\n", b"two\n"]))


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[bytes]:
        yield b"one\n"
        raise RuntimeError("on purpose")

    return StreamingHttpResponse(lines())


def leaving_stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[bytes]:
        yield b"one\n"
        raise SystemExit("on purpose")

    return StreamingHttpResponse(lines())


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        await asyncio.sleep(0)
        yield b"two\n"

    return StreamingHttpResponse(lines())


async def async_broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        raise RuntimeError("on purpose")

    return StreamingHttpResponse(lines())


async def async_endless_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[bytes]:
        while True:
            yield b"more\n"
            await asyncio.sleep(0)

    return StreamingHttpResponse(lines())


def own_user(request: HttpRequest) -> HttpResponse:
    request.user = User(pk=99)  # as an API framework does for a token
    return HttpResponse("hello")


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(b"file"), filename="file.txt")


below = [url("<int:id>/", hello), re_path(r"^(?P<year>[0-9]{4})/(\d+)/$", hello)]
urlpatterns = [
    url("", hello),
    url("items/<int:id>/", hello),
    url("async/<slug:x>", async_hello),
    url("page", Page.as_view()),
    url("v1/", include(below)),
    url("v2/<str:tenant>/", include(below)),
    re_path(r"^re/(?P<year>[0-9]{4})/(?:page-(?P<n>\d+)/)?$", hello),
    url("fail", fail),
    url("leave", leave),
    url("user", user_name),
    url("enter", enter),
    url("out", leave_session),
    url("keep", keep),
    url("async-user", async_user),
    url("stream", stream),
    url("broken-stream", broken_stream),
    url("leaving-stream", leaving_stream),
    url("async-stream", async_stream),
    url("async-broken-stream", async_broken_stream),
    url("async-endless-stream", async_endless_stream),
    url("own-user", own_user),
    url("file", file),
    url("api/metrics/", include("metricsmw.adapters.django")),
    url("numbers", include(glue.urls(auth=token("secret")))),
]

SESSIONS = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


class Measured(glue.MetricsMiddleware):
    """What a project writes that measures with a monitor of its own."""

    exclude: ClassVar[Any] = ["/excluded", re.compile(r"\.ico$")]


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> MetricsMonitor:
    monitor = MetricsMonitor()
    monkeypatch.setattr(Measured, "monitor", monitor)
    return monitor


@pytest.fixture(scope="module", autouse=True)
def _database() -> Iterator[None]:
    connection.ensure_connection()  # the database lives as long as one connection to it
    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.create_user("ann", password="secret")
    yield
    connection.close()


@pytest.fixture
def measured() -> Iterator[None]:
    with override_settings(MIDDLEWARE=[f"{__name__}.Measured", *SESSIONS]):
        yield


@pytest.fixture
def bare() -> Iterator[None]:
    with override_settings(MIDDLEWARE=SESSIONS):
        yield


def rows(monitor: MetricsMonitor) -> dict[str, int]:
    """Return the requests of each row of the per-route table: {"GET /x": 1}."""
    return {f"{row['method']} {row['route']}": row["requests"] for row in monitor.get_routes()}


def in_flight(monitor: MetricsMonitor) -> int:
    return monitor.get_current_snapshot().requests_in_flight


def answer_of(path: str, asynchronous: bool, client: Any = None, **options: Any) -> Any:
    """Ask the site, by its WSGI or its ASGI stack; exceptions become answers."""
    if not asynchronous:
        client = client or Client(raise_request_exception=False)
        return client.get(path, **options)
    client = client or AsyncClient(raise_request_exception=False)

    async def ask() -> Any:
        response = await client.get(path, **options)
        if response.streaming:
            response.body = b"".join([part async for part in response])
        return response

    return asyncio.run(ask())


def body_of(response: Any) -> bytes:
    return response.body if hasattr(response, "body") else b"".join(response)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])

TEMPLATES = [
    ("/", "GET /"),
    ("/items/7/", "GET /items/<int:id>/"),
    ("/async/a-b", "GET /async/<slug:x>"),
    ("/page", "GET /page"),
    ("/v1/7/", "GET /v1/<int:id>/"),
    ("/v2/acme/7/", "GET /v2/<str:tenant>/<int:id>/"),
    ("/v1/2026/7/", "GET /v1/<year>/<var>/"),
    ("/re/2026/", "GET /re/<year>/page-<n>/"),
    ("/fail", "GET /fail"),
    ("/none", "GET <unmatched>"),
]


# --- the middleware ---------------------------------------------------------------------------


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


@both
def test_streams_count_when_they_are_over(
    monitor: MetricsMonitor, measured: None, asynchronous: bool
) -> None:
    path = "/async-stream" if asynchronous else "/stream"
    request = RequestFactory().get(path)
    handler = BaseHandler()
    handler.load_middleware(is_async=asynchronous)
    if asynchronous:
        response = asyncio.run(handler.get_response_async(request))
    else:
        response = handler.get_response(request)
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    if asynchronous:

        async def read() -> bytes:
            return b"".join([part async for part in response])

        assert asyncio.run(read()) == b"one\ntwo\n"
    else:
        assert b"".join(response) == b"one\ntwo\n"
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    time.sleep(0.05)
    response.close()
    response.close()
    assert (monitor.total_requests, in_flight(monitor)) == (1, 0)
    assert rows(monitor) == {f"GET {path}": 1}
    (row,) = monitor.get_routes()
    first = row["latency_ttfb_p50_ms"]
    assert first is not None
    assert row["latency_p50_ms"] - first >= 40


@both
@pytest.mark.parametrize("path", ["/stream", "/async-stream", "/file"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streams_are_what_they_were(
    monitor: MetricsMonitor, measured: None, path: str, asynchronous: bool
) -> None:
    def all_of(response: Any) -> tuple[int, dict[str, str], bytes]:
        body = body_of(response)
        response.close()
        return response.status_code, dict(response.headers), body

    with override_settings(MIDDLEWARE=SESSIONS):
        expected = all_of(answer_of(path, asynchronous))
    assert all_of(answer_of(path, asynchronous)) == expected
    assert rows(monitor) == {f"GET {path}": 1}
    assert in_flight(monitor) == 0


def wsgi_stack() -> Any:
    return get_wsgi_application()


def environ_of(path: str, **options: Any) -> dict[str, Any]:
    return RequestFactory().get(path, **options).environ  # type: ignore[no-any-return]


def scope_of(path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    path, _, query = path.partition("?")
    pairs = (headers or {}).items()
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
    }


async def answered(
    app: Any, scope: dict[str, Any], chunks: int | None = None
) -> list[dict[str, Any]]:
    """Return what an ASGI application sends to a client, which goes away after some chunks."""
    sent: list[dict[str, Any]] = []
    asked = False
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == chunks:
            gone.set()

    await asyncio.wait_for(app(scope, receive, send), timeout=30)
    return sent


def called(app: Any, environ: dict[str, Any]) -> Any:
    """Call a WSGI application as a server does and return the iterable it returns."""
    return app(environ, lambda status, headers, exc_info=None: lambda data: None)


@pytest.mark.parametrize("more", [{}, {"wsgi.file_wrapper": FileWrapper}])
def test_client_gone_in_the_middle_of_a_stream(
    monitor: MetricsMonitor, measured: None, more: dict[str, Any]
) -> None:
    body = called(wsgi_stack(), environ_of("/stream") | more)
    assert next(iter(body)) == b"one\n"
    body.close()
    assert (monitor.total_requests, monitor.total_errors) == (1, 0)
    assert monitor.get_latency_percentiles() == (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_waitress_that_shuts_down_is_no_client_that_goes(
    stopped: bool, monitor: MetricsMonitor, measured: None
) -> None:
    class Channel:
        __module__ = "waitress.channel"
        server = SimpleNamespace(task_dispatcher=ThreadedTaskDispatcher())

        def check_client_disconnected(self) -> bool:
            return True

    dispatcher = Channel.server.task_dispatcher
    dispatcher.set_thread_count(1)
    try:
        ask = {"waitress.client_disconnected": Channel().check_client_disconnected}
        body = called(wsgi_stack(), environ_of("/stream") | ask)
        assert next(iter(body)) == b"one\n"
        if stopped:
            dispatcher.shutdown()
        body.close()
    finally:
        dispatcher.shutdown()
    assert (monitor.total_requests, monitor.total_errors) == (1, int(stopped))
    assert in_flight(monitor) == 0


def test_stream_that_nobody_reads_is_complete(monitor: MetricsMonitor, measured: None) -> None:
    """A server reads no body for HEAD; it closes it all the same."""
    environ = environ_of("/stream")
    environ["REQUEST_METHOD"] = "HEAD"
    called(wsgi_stack(), environ).close()
    assert monitor.get_latency_percentiles() != (0.0, 0.0, 0.0)
    assert rows(monitor) == {"HEAD /stream": 1}


def test_stream_that_fails_is_an_error(monitor: MetricsMonitor, measured: None) -> None:
    body = called(wsgi_stack(), environ_of("/broken-stream"))
    with pytest.raises(RuntimeError, match="on purpose"):
        b"".join(body)
    body.close()
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert in_flight(monitor) == 0


def test_async_stream_that_fails_is_an_error(monitor: MetricsMonitor, measured: None) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        Wrapped(asynchronous=True).get("/async-broken-stream")
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert in_flight(monitor) == 0


@pytest.mark.skipif(django.VERSION < (5, 0), reason="Django notices since 5.0")
def test_async_client_gone_in_the_middle_of_a_stream(
    monitor: MetricsMonitor, measured: None
) -> None:
    sent = asyncio.run(
        answered(get_asgi_application(), scope_of("/async-endless-stream"), chunks=2)
    )
    assert sent[1]["body"] == b"more\n"
    assert (monitor.total_requests, monitor.total_errors) == (1, 0)
    assert monitor.get_latency_percentiles() == (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


@pytest.mark.parametrize("sent", [False, True])
def test_stream_that_the_end_of_the_process_cuts_short_is_an_error(
    sent: bool, monitor: MetricsMonitor, measured: None
) -> None:
    """Whether it comes as the server asks for a chunk or as it sends one: no client has gone."""

    def serve() -> None:
        body = called(wsgi_stack(), environ_of("/stream" if sent else "/leaving-stream"))
        try:
            for _ in body:
                if sent:
                    raise SystemExit("on purpose")
        finally:
            body.close()

    with pytest.raises(SystemExit, match="on purpose"):
        serve()
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert monitor.get_latency_percentiles() != (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


def test_file_wrapper_of_the_server_is_used(monitor: MetricsMonitor, measured: None) -> None:
    body = called(wsgi_stack(), environ_of("/file") | {"wsgi.file_wrapper": FileWrapper})
    assert isinstance(body, FileWrapper)
    assert b"".join(body) == b"file"
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    body.close()
    assert (monitor.total_requests, in_flight(monitor)) == (1, 0)


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


# --- users ------------------------------------------------------------------------------------


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


# --- the urls ---------------------------------------------------------------------------------


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
def test_session_without_a_user_model_opens(bare: None, key: str, status: int) -> None:
    client = Client()
    client.get(f"/keep?{key}=ann")
    assert client.get("/api/metrics/current").status_code == status


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


# --- wrapped handlers -------------------------------------------------------------------------


class Wrapped:
    """A handler of Django's, wrapped, asked over WSGI or over ASGI."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.app: Any = get_asgi_application() if asynchronous else get_wsgi_application()

    def wrap(self, monitor: MetricsMonitor, **options: Any) -> Wrapped:
        self.app = wrap(self.app, monitor, **options)
        return self

    def get(self, path: str, cookie: str = "") -> tuple[int, bytes]:
        headers = {"Cookie": cookie} if cookie else {}
        if not self.asynchronous:
            answer = WSGIClient(self.app, use_cookies=False).get(path, headers=headers)
            body = answer.get_data()
            answer.close()
            return answer.status_code, body
        start, *parts = asyncio.run(answered(self.app, scope_of(path, headers)))
        return start["status"], b"".join(part.get("body", b"") for part in parts)


@both
@pytest.mark.parametrize(("path", "row"), TEMPLATES)
def test_wrapped_template(
    monitor: MetricsMonitor, bare: None, path: str, row: str, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor)
    for _ in range(2):
        app.get(path)
    assert rows(monitor) == {row: 2}
    assert in_flight(monitor) == 0


def logged_in(user: str = "ann") -> str:
    client = Client()
    client.force_login(User.objects.get(username=user))
    return f"sessionid={client.cookies['sessionid'].value}"


@both
def test_wrapped_user(monitor: MetricsMonitor, bare: None, asynchronous: bool) -> None:
    app = Wrapped(asynchronous).wrap(monitor)
    cookie = logged_in()
    app.get("/", cookie)
    assert monitor.get_active_users() == 0
    app.get("/async-user" if asynchronous else "/user", cookie)
    assert monitor.get_active_user_ids() == [str(User.objects.get(username="ann").pk)]


@both
@pytest.mark.parametrize("mount", ["/api/metrics", "/m"])
def test_wrapped_sub_app(
    monitor: MetricsMonitor, bare: None, mount: str, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor, path=mount)
    app.get("/")
    assert app.get(f"{mount}/current")[0] == 401
    assert app.get(f"{mount}/health")[0] == 200
    status, body = app.get(f"{mount}/current", logged_in())
    assert status == 200
    assert b'"total_requests":1,' in body
    for page in (mount, mount + "/"):
        status, body = app.get(page, logged_in())
        links = [urljoin(page, link) for link in re.findall(r'href="([^"]*)"', body.decode())]
        assert f"{mount}/current" in links
        # As a browser asks: without what follows the hash.
        assert {app.get(urldefrag(link).url, logged_in())[0] for link in links} == {200}
    assert app.get(f"{mount}/none", logged_in()) == (404, b'{"error":"Not found"}')
    assert app.get(f"{mount}x")[0] == 404
    assert rows(monitor) == {"GET /": 1, "GET <unmatched>": 1}
    assert in_flight(monitor) == 0


@both
def test_wrapped_twice_counts_once(monitor: MetricsMonitor, bare: None, asynchronous: bool) -> None:
    app = Wrapped(asynchronous).wrap(monitor).wrap(monitor)
    app.get("/items/7/")
    assert rows(monitor) == {"GET /items/<int:id>/": 1}
    assert app.get("/api/metrics/current")[0] == 401
    assert app.get("/api/metrics/current", logged_in())[0] == 200
    assert monitor.total_requests == 1
    assert in_flight(monitor) == 0


@both
def test_wrapped_and_in_middleware_counts_once(
    monitor: MetricsMonitor, measured: None, asynchronous: bool
) -> None:
    app = Wrapped(asynchronous).wrap(monitor, auth=public())
    app.get("/items/7/")
    assert rows(monitor) == {"GET /items/<int:id>/": 1}
    assert app.get("/api/metrics/current")[0] == 200
    assert monitor.total_requests == 1
    assert in_flight(monitor) == 0


def test_route_is_known_through_other_middleware(monitor: MetricsMonitor, bare: None) -> None:
    """Around a handler that is covered, the middleware in MIDDLEWARE still names the route."""

    def covered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return handler(environ, start_response)

    with override_settings(MIDDLEWARE=["metricsmw.adapters.django.MetricsMiddleware"]):
        handler = get_wsgi_application()
    body, _, _ = run_wsgi_app(wrap(covered, monitor), environ_of("/items/7/"), buffered=True)
    assert b"".join(body) == b"hello"
    assert rows(monitor) == {"GET /items/<int:id>/": 1}


def test_wrapped_file_wrapper(monitor: MetricsMonitor, bare: None, tmp_path: Path) -> None:
    app = wrap(get_wsgi_application(), monitor)
    body = called(app, environ_of("/file") | {"wsgi.file_wrapper": FileWrapper})
    assert isinstance(body, FileWrapper)
    assert b"".join(body) == b"file"
    body.close()
    assert rows(monitor) == {"GET /file": 1}


def test_script_name_is_part_of_the_template(monitor: MetricsMonitor, bare: None) -> None:
    app = wrap(get_wsgi_application(), monitor)
    environ = environ_of("/items/7/") | {"SCRIPT_NAME": "/shop"}
    called(app, environ).close()
    assert rows(monitor) == {"GET /shop/items/<int:id>/": 1}


def test_root_path_is_part_of_the_template(monitor: MetricsMonitor, bare: None) -> None:
    client = TestClient(wrap(get_asgi_application(), monitor), root_path="/shop")
    assert client.get("/shop/items/7/").text == "hello"
    assert rows(monitor) == {"GET /shop/items/<int:id>/": 1}


def test_mounted_in_another_app(monitor: MetricsMonitor) -> None:
    """The outer app names the mount, Django's own middleware the rest."""
    outer = Starlette()
    with override_settings(MIDDLEWARE=["metricsmw.adapters.django.MetricsMiddleware"]):
        outer.mount("/sites/{site}", get_asgi_application())
    client = TestClient(wrap(outer, monitor))
    assert client.get("/sites/acme/items/7/").text == "hello"
    assert client.get("/sites/acme/none").status_code == 404
    assert rows(monitor) == {"GET /sites/{site}/items/<int:id>/": 1, "GET <unmatched>": 1}
