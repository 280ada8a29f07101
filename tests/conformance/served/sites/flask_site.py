"""Flask: a nested blueprint registered twice, and a mounted app inside of it."""

from __future__ import annotations

from flask import Blueprint, Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from . import OnPurposeError, Site, broken, chunks, context, endless


def make_plain() -> Flask:
    """All but what is mounted."""
    app = Flask(__name__)
    users = Blueprint("users", __name__, url_prefix="/users")
    users.add_url_rule("/<name>", "user", lambda name: f"user {name}")
    for version in ("v1", "v2"):
        outer = Blueprint(version, __name__, url_prefix=f"/{version}")
        outer.register_blueprint(users)
        app.register_blueprint(outer)

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @app.get("/items/<int:id>")
    def item(id: int) -> str:
        return f"item {id}"

    @app.get("/async")
    async def asynchronous() -> str:
        return "async"

    @app.post("/upload")
    def upload() -> str:
        return str(len(request.get_data()))

    @app.get("/fail")
    def fail() -> tuple[str, int]:
        return "failed", 500

    @app.get("/raise")
    def raise_() -> str:
        raise OnPurposeError

    app.add_url_rule("/stream", "stream", lambda: Response(chunks()))
    app.add_url_rule("/broken", "broken", lambda: Response(broken()))
    app.add_url_rule("/endless", "endless", lambda: Response(endless()))
    app.add_url_rule("/context", "context", context)
    app.add_url_rule("/background", "background", lambda: "answered")

    return app


def make_mounted() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/things/<int:id>", "thing", lambda id: f"thing {id}")
    return app


def make() -> Flask:
    app = make_plain()
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/mounted": make_mounted()})  # type: ignore[method-assign]
    return app


SITE = Site(
    make,
    is_asgi=False,
    item="/items/<int:id>",
    user="/users/<name>",
    thing="/mounted/things/<int:id>",
    routes={"GET /async": "/async"},
)
