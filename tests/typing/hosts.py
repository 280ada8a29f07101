"""The adapters as their users type them. Nothing here runs: mypy and pyright read it.

A line with both ignores must be an error: each checker reports an ignore that it has no use for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette

import metricsmw.adapters.fastapi
import metricsmw.adapters.starlette
from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.asgi import metrics_app as asgi_metrics_app
from metricsmw.adapters.auth import Request, basic, public, session, staff, token
from metricsmw.adapters.flask import MetricsMiddleware, metrics_bp
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.adapters.wsgi import metrics_app as wsgi_metrics_app

monitor = MetricsMonitor()

# An app stays what it was, so that a user's editor still knows it.
flask_app: Flask = wrap(Flask(__name__))
fastapi_app: FastAPI = wrap(FastAPI())
starlette_app: Starlette = wrap(Starlette(), monitor, path="/numbers", auth=public())
wrap(42)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
wrap(flask_app, 60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
flask_app = wrap(FastAPI())  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


@wrap
def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@wrap
async def asgi_app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def of_office(request: Request) -> bool:
    return request.headers.get("x-office") == "1"


def user_of(environ: dict[str, Any]) -> str | None:
    name: str | None = environ.get("HTTP_X_USER")
    return name


wrap(wsgi_app, auth=of_office, user=user_of, exclude=["/static", re.compile("^/assets/")])
wrap(asgi_app, auth=token("secret"))
wrap(asgi_app, auth=basic("ada", "secret"))
wrap(asgi_app, auth=session())
wrap(asgi_app, auth=session(allow=lambda user: user.is_superuser), reset="token")
wrap(asgi_app, auth=staff(), reset=False)
wrap(asgi_app, auth=public(hosts=["app.example"]))
wrap(asgi_app, reset="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
wrap(asgi_app, auth="secret")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
token(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

WSGIMetricsMiddleware(flask_app.wsgi_app, monitor, auth=public())
ASGIMetricsMiddleware(starlette_app, monitor=monitor)
starlette_app.add_middleware(ASGIMetricsMiddleware, monitor=monitor)
starlette_app.mount("/numbers", asgi_metrics_app(monitor, auth=public()))
numbers = wsgi_metrics_app(auth=token("secret"))

flask_app.register_blueprint(metrics_bp)
MetricsMiddleware(flask_app, monitor)
metricsmw.adapters.fastapi.instrument(fastapi_app, monitor)
metricsmw.adapters.starlette.instrument(starlette_app)
