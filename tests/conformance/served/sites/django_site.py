"""Django: patterns of all kinds, one include used twice, views that are classes and coroutines."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test.utils import override_settings
from django.urls import include, path, re_path
from django.views import View

from . import (
    OnPurposeError,
    Site,
    async_broken,
    async_chunks,
    async_endless,
    broken,
    chunks,
    context,
    endless,
)

SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": __name__,
    "ALLOWED_HOSTS": ["*"],
    "MIDDLEWARE": ["django.middleware.common.CommonMiddleware"],
    "LOGGING_CONFIG": None,
    "SECRET_KEY": "only for tests",
}


def around() -> AbstractContextManager[object]:
    """These settings, whatever others hold in this process."""
    _configure()
    return override_settings(**SETTINGS)


def _configure() -> None:
    if not settings.configured:
        import django

        settings.configure(**SETTINGS)
        django.setup()


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse("async")


class Item(View):
    def get(self, request: HttpRequest, id: int) -> HttpResponse:
        return HttpResponse(f"item {id}")


def user(request: HttpRequest, name: str) -> HttpResponse:
    return HttpResponse(f"user {name}")


def thing(request: HttpRequest, id: str) -> HttpResponse:
    return HttpResponse(f"thing {id}")


def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.body)))


def fail(request: HttpRequest) -> HttpResponse:
    return HttpResponse("failed", status=500)


def raise_(request: HttpRequest) -> HttpResponse:
    raise OnPurposeError


def streaming(body: Any, async_body: Any) -> Any:
    def view(request: HttpRequest) -> HttpResponseBase:
        is_asgi = isinstance(request, ASGIRequest)
        return StreamingHttpResponse(async_body() if is_asgi else body())

    return view


users = [path("users/<str:name>", user)]
urlpatterns = [
    path("hello", hello),
    path("async", asynchronous),
    path("items/<int:id>", Item.as_view()),
    path("v1/", include(users)),
    path("v2/", include(users)),
    path("mounted/", include([re_path(r"^things/(?P<id>[0-9]+)$", thing)])),
    path("upload", upload),
    path("fail", fail),
    path("raise", raise_),
    path("stream", streaming(chunks, async_chunks)),
    path("broken", streaming(broken, async_broken)),
    path("endless", streaming(endless, async_endless)),
    path("context", lambda request: HttpResponse(context())),
    path("background", lambda request: HttpResponse("answered")),
]


def make_wsgi() -> WSGIHandler:
    _configure()
    return WSGIHandler()


def make_asgi() -> ASGIHandler:
    _configure()
    return ASGIHandler()


def site(make: Any, is_asgi: bool) -> Site:
    return Site(
        make,
        is_asgi,
        item="/items/<int:id>",
        user="/users/<str:name>",
        thing="/mounted/things/<id>",
        # Its views answer whatever the method is.
        routes={"GET /async": "/async"},
        around=around,
    )


SITE = site(make_wsgi, is_asgi=False)
