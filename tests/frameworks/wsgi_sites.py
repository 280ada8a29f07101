"""The sites of WSGI frameworks."""

from __future__ import annotations

from typing import Any

from .sites import Wrap, chunks, site


@site("Flask", "wrap(app)", "flask", "login", "stream", asgi=False)
def flask(wrap: Wrap) -> Any:
    from flask import Flask, Response, session

    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.add_url_rule("/items/<int:i>", "item", lambda i: str(i))
    app.add_url_rule("/login", "login", lambda: session.update(user="ada") or "in")
    app.add_url_rule("/stream", "stream", lambda: Response(chunks()))
    return wrap(app)


@site("Flask, its `wsgi_app`", "app.wsgi_app = wrap(app.wsgi_app)", "flask", "login", asgi=False)
def flask_wsgi_app(wrap: Wrap) -> Any:
    from flask import Flask, session

    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.add_url_rule("/items/<int:i>", "item", lambda i: str(i))
    app.add_url_rule("/login", "login", lambda: session.update(user="ada") or "in")
    app.wsgi_app = wrap(app.wsgi_app)  # type: ignore[method-assign]
    return app


def django_urls(*more: Any) -> None:
    """Configure Django with the site's routes."""
    import sys

    import django
    from django.conf import settings
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    def login(request: Any) -> HttpResponse:
        request.session["user"] = "ada"
        return HttpResponse("in")

    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        LOGGING_CONFIG=None,
    )
    django.setup()
    sys.modules[__name__].urlpatterns = [  # type: ignore[attr-defined]
        path("items/<int:i>", lambda request, i: HttpResponse(str(i))),
        path("login", login),
        path("stream", lambda request: StreamingHttpResponse(chunks())),
        *more,
    ]


@site("Django", "wrap(get_wsgi_application())", "django", "login", "stream", asgi=False)
def django_wsgi(wrap: Wrap) -> Any:
    django_urls()
    from django.core.wsgi import get_wsgi_application

    return wrap(get_wsgi_application())


@site(
    "Django in WhiteNoise",
    "wrap(WhiteNoise(get_wsgi_application()))",
    "whitenoise",
    "login",
    "stream",
    asgi=False,
)
def django_whitenoise(wrap: Wrap) -> Any:
    django_urls()
    from django.core.wsgi import get_wsgi_application
    from whitenoise import WhiteNoise  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return wrap(WhiteNoise(get_wsgi_application()))


@site(
    "Django REST framework", "wrap(get_wsgi_application())", "rest_framework", "login", asgi=False
)
def django_rest(wrap: Wrap) -> Any:
    django_urls()
    from django.core.wsgi import get_wsgi_application
    from django.urls import path
    from rest_framework.decorators import api_view  # type: ignore[import-not-found,unused-ignore]
    from rest_framework.response import Response  # type: ignore[import-not-found,unused-ignore]

    view = api_view(["GET"])(lambda request, i: Response(i))
    globals()["urlpatterns"].insert(0, path("items/<int:i>", view))
    return wrap(get_wsgi_application())


@site("django-ninja", "wrap(get_wsgi_application())", "ninja", "login", asgi=False)
def django_ninja(wrap: Wrap) -> Any:
    django_urls()
    from django.core.wsgi import get_wsgi_application
    from django.urls import path
    from ninja import NinjaAPI  # type: ignore[import-not-found,unused-ignore]

    api = NinjaAPI()

    @api.get("/items/{i}")
    def item(request: Any, i: int) -> int:
        return i

    globals()["urlpatterns"].insert(0, path("", api.urls))
    return wrap(get_wsgi_application())


@site("Falcon (WSGI)", "wrap(app)", "falcon", "stream", asgi=False)
def falcon_wsgi(wrap: Wrap) -> Any:
    import falcon

    class Item:
        def on_get(self, req: Any, resp: Any, i: int) -> None:
            resp.text = str(i)

    class Stream:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.stream = chunks()

    app = falcon.App()
    app.add_route("/items/{i:int}", Item())
    app.add_route("/stream", Stream())
    return wrap(app)


@site("Pyramid", "wrap(config.make_wsgi_app())", "pyramid", "login", "stream", asgi=False)
def pyramid(wrap: Wrap) -> Any:
    from pyramid.config import Configurator  # type: ignore[import-untyped]
    from pyramid.response import Response  # type: ignore[import-untyped]
    from pyramid.session import SignedCookieSessionFactory  # type: ignore[import-untyped]

    def login(request: Any) -> Any:
        request.session["user"] = "ada"
        return Response("in")

    def item(request: Any) -> Any:
        request.session.get("user")
        return Response(request.matchdict["i"])

    with Configurator(session_factory=SignedCookieSessionFactory("only for tests")) as config:
        config.add_route("item", "/items/{i}")
        config.add_view(item, route_name="item")
        config.add_route("login", "/login")
        config.add_view(login, route_name="login")
        config.add_route("stream", "/stream")
        config.add_view(lambda request: Response(app_iter=chunks()), route_name="stream")
        return wrap(config.make_wsgi_app())


@site("Bottle", "wrap(app)", "bottle", "stream", asgi=False)
def bottle(wrap: Wrap) -> Any:
    import bottle as framework  # type: ignore[import-untyped]

    app = framework.Bottle()
    app.route("/items/<i:int>", callback=lambda i: str(i))
    app.route("/stream", callback=chunks)
    return wrap(app)


@site("Werkzeug's dispatcher", "wrap(DispatcherMiddleware(flask, {…}))", "flask", asgi=False)
def dispatcher(wrap: Wrap) -> Any:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask(__name__)
    app.add_url_rule("/items/<int:i>", "item", lambda i: str(i))
    return wrap(DispatcherMiddleware(app, {"/other": Flask("other")}))


@site("FastAPI by a2wsgi", "wrap(ASGIMiddleware(wrap(app)))", "a2wsgi", asgi=False)
def fastapi_a2wsgi(wrap: Wrap) -> Any:
    from a2wsgi import ASGIMiddleware
    from fastapi import FastAPI

    app = FastAPI()
    app.add_api_route("/items/{i}", lambda i: i)
    return wrap(ASGIMiddleware(wrap(app)))


@site("Microdot (WSGI)", "wrap(app)", "microdot", asgi=False)
def microdot_wsgi(wrap: Wrap) -> Any:
    from microdot.wsgi import Microdot  # type: ignore[import-not-found,unused-ignore]

    app = Microdot()

    @app.get("/items/<int:i>")
    def item(request: Any, i: int) -> str:
        return str(i)

    return wrap(app)


@site("CherryPy", "wrap(cherrypy.tree.mount(root))", "cherrypy", "stream", asgi=False)
def cherrypy(wrap: Wrap) -> Any:
    import cherrypy as framework  # type: ignore[import-not-found,unused-ignore]

    class Root:
        @framework.expose  # type: ignore[untyped-decorator,unused-ignore]
        def items(self, i: str) -> str:
            return i

        @framework.expose  # type: ignore[untyped-decorator,unused-ignore]
        def stream(self) -> Any:
            return chunks()

        stream._cp_config = dict([("response.stream", True)])  # type: ignore[attr-defined]  # noqa: C406,RUF012

    framework.config.update({"environment": "embedded", "log.screen": False})
    return wrap(framework.tree.mount(Root()))


@site("web.py", "wrap(app.wsgifunc())", "web", "stream", asgi=False)
def web_py(wrap: Wrap) -> Any:
    import web  # type: ignore[import-not-found,unused-ignore]

    class Item:
        def GET(self, i: str) -> str:  # noqa: N802  # web.py's name
            return i

    class Stream:
        def GET(self) -> Any:  # noqa: N802
            return chunks()

    urls = ("/items/([0-9]+)", "Item", "/stream", "Stream")
    return wrap(web.application(urls, {"Item": Item, "Stream": Stream}).wsgifunc())


@site("Dash", "wrap(app.server)", "dash", "login", asgi=False, item="/_dash-layout")
def dash(wrap: Wrap) -> Any:
    from dash import Dash, html  # type: ignore[import-not-found,unused-ignore]
    from flask import session

    app = Dash(__name__)
    app.layout = html.Div("hello")
    app.server.secret_key = "only for tests"
    app.server.add_url_rule("/login", "login", lambda: session.update(user="ada") or "in")
    return wrap(app.server)
