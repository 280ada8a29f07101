"""Django in one file: settings, views and urls, without a database.

The session is a signed cookie, and `request.user` comes from a backend that knows one user.
`django_wsgi` and `django_asgi` are the two doors.
"""

from __future__ import annotations

import os
import time

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from apps import LINES, SECRET, USER


class User:
    """As much of a user as `request.user` needs."""

    is_authenticated = True
    is_staff = True
    is_active = True
    pk = 1

    def get_username(self) -> str:
        return USER


class OneUser:
    """An authentication backend that needs no table."""

    def get_user(self, user_id: int) -> User:
        return User()


settings.configure(
    SECRET_KEY=SECRET,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    AUTHENTICATION_BACKENDS=[f"{__name__}.OneUser"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
)


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello", content_type="text/plain")


def item(request: HttpRequest, id: int) -> HttpResponse:
    return JsonResponse({"id": id})


def slow(request: HttpRequest) -> HttpResponse:
    time.sleep(float(request.GET["ms"]) / 1000)
    return JsonResponse({"pid": os.getpid()})


def fail(request: HttpRequest) -> HttpResponse:
    return HttpResponse("failed", status=500)


def raise_(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("raised on purpose")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter(LINES), content_type="text/plain")


def upload(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"bytes": len(request.body)})


def login(request: HttpRequest) -> HttpResponse:
    # What django.contrib.auth.login() leaves in the session; that one writes to the database too.
    request.session[SESSION_KEY] = "1"
    request.session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    return HttpResponse("logged in")


urlpatterns = [
    path("hello", hello),
    path("items/<int:id>", item),
    path("slow", slow),
    path("fail", fail),
    path("raise", raise_),
    path("stream", stream),
    path("upload", upload),
    path("login", login),
]
