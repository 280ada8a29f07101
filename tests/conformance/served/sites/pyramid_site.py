"""Pyramid, with one configuration included twice, and another Pyramid in a view."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator  # type: ignore[import-untyped]
from pyramid.response import Response  # type: ignore[import-untyped]
from pyramid.wsgi import wsgiapp2  # type: ignore[import-untyped]

from . import UNMATCHED, OnPurposeError, Site, broken, chunks, context, endless


def text(template: str, status: int = 200) -> Any:
    def view(request: Any) -> Any:
        return Response(template.format(**request.matchdict), status)

    return view


def upload(request: Any) -> Any:
    return Response(str(len(request.body)))


def raise_(request: Any) -> Any:
    raise OnPurposeError


def streaming(body: Any) -> Any:
    return lambda request: Response(app_iter=body())


def users(version: str) -> Any:
    def includeme(config: Any) -> None:
        config.add_route(version, "users/{name}")
        config.add_view(text("user {name}"), route_name=version)

    includeme.__name__ = version  # the same one would be included once
    return includeme


def make_mounted() -> Any:
    with Configurator() as config:
        config.add_route("thing", r"things/{id:\d+}")
        config.add_view(text("thing {id}"), route_name="thing", request_method="GET")
        return config.make_wsgi_app()


def make() -> Any:
    with Configurator() as config:
        for path, method, view in [
            ("/hello", "GET", text("hello")),
            (r"/items/{id:\d+}", "GET", text("item {id}")),
            ("/upload", "POST", upload),
            ("/fail", "GET", text("failed", 500)),
            ("/raise", "GET", raise_),
            ("/stream", "GET", streaming(chunks)),
            ("/broken", "GET", streaming(broken)),
            ("/endless", "GET", streaming(endless)),
            ("/context", "GET", lambda request: Response(context())),
            ("/background", "GET", text("answered")),
        ]:
            config.add_route(path, path)
            config.add_view(view, route_name=path, request_method=method)
        config.add_route("mounted", "/mounted/*subpath")
        config.add_view(wsgiapp2(make_mounted()), route_name="mounted")
        config.include(users("v1"), route_prefix="/v1")
        config.include(users("v2"), route_prefix="/v2")
        return config.make_wsgi_app()


SITE = Site(
    make,
    is_asgi=False,
    item=r"/items/{id:\d+}",
    user="/users/{name}",
    thing=r"/mounted/things/{id:\d+}",
    # Its router refuses to decode that.
    routes={"GET /v1/users/%FF%FE": UNMATCHED},
)
