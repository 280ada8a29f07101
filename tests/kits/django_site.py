"""A site of Django's for its tests: views of every kind, users, and callers of both stacks."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

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
from django.urls import include, re_path
from django.urls import path as url
from django.views import View
from werkzeug.test import Client as WSGIClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import django as glue
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import token

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


@contextmanager
def database() -> Iterator[None]:
    """The site's database, with ann of the staff and eve, for the time of the block."""
    connection.ensure_connection()  # the database lives as long as one connection to it
    call_command("migrate", run_syncdb=True, verbosity=0)
    User.objects.create_user("ann", password="secret", is_staff=True)
    User.objects.create_user("eve", password="secret")
    yield
    connection.close()


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


def logged_in(user: str = "ann") -> str:
    client = Client()
    client.force_login(User.objects.get(username=user))
    return f"sessionid={client.cookies['sessionid'].value}"
