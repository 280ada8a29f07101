"""The demo's web app, as a user would write it: a few Starlette routes, measured by one `wrap`.

`uvicorn metricsmw.cli.demo_app:app --workers 2` serves it by hand; `metricsmw demo` also drives it.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.alerts import MetricsAlerter

# Signs the session cookies; all workers must have the same one, so it comes from outside. Without
# it each worker has its own, and a session holds on the worker that gave it only.
SESSION_SECRET = os.environ.get("METRICSMW_DEMO_SESSION_SECRET") or secrets.token_hex()


async def index(request: Request) -> Response:
    """List the routes."""
    return JSONResponse({"routes": PATHS, "user": _user(request)})


async def fast(request: Request) -> Response:
    """Answer at once."""
    return JSONResponse({"answer": 42})


async def item(request: Request) -> Response:
    """Answer for items 1 to 100; others are not found."""
    number: int = request.path_params["number"]
    if not 1 <= number <= 100:
        raise HTTPException(404)
    return JSONResponse({"item": number})


async def slow(request: Request) -> Response:
    """Take 50 to 400 milliseconds."""
    await asyncio.sleep(random.uniform(0.05, 0.4))
    return JSONResponse({"slow": True})


async def fail(request: Request) -> Response:
    """Fail."""
    raise HTTPException(500)


async def stream(request: Request) -> Response:
    """Send five lines, 30 milliseconds apart."""

    async def lines() -> AsyncIterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            await asyncio.sleep(0.03)

    return StreamingResponse(lines(), media_type="text/plain")


async def login(request: Request) -> Response:
    """Start a session for any name: it is a demo, there is no password."""
    request.session["user"] = request.path_params["user"]
    return RedirectResponse("/me", status_code=303)


async def me(request: Request) -> Response:
    """Say who is logged in; 401 without a session."""
    user = _user(request)
    if user is None:
        raise HTTPException(401)
    return JSONResponse({"user": user})


async def echo(websocket: WebSocket) -> None:
    """Send back what comes in."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def _user(request: Request) -> str | None:
    user: str | None = request.session.get("user")
    return user


ROUTES: list[Route | WebSocketRoute] = [
    Route("/", index),
    Route("/fast", fast),
    Route("/items/{number:int}", item),
    Route("/slow", slow),
    Route("/fail", fail),
    Route("/stream", stream),
    Route("/login/{user}", login),
    Route("/me", me),
    WebSocketRoute("/ws", echo),
]
PATHS = [route.path for route in ROUTES]

# The page looks back an hour and a day then, also at single routes.
monitor = get_metrics_monitor(history=os.environ.get("METRICSMW_DEMO_HISTORY"), history_days=1)

# For the live page to show; beside that they go to the log.
alerter = MetricsAlerter(
    monitor,
    check_interval=5,
    rules=[
        "error_rate_pct > 25 for 30s critical",
        "SLOW: latency_p95_ms > 300 on /slow for 30s",
    ],
)

app = wrap(
    Starlette(
        routes=ROUTES,
        middleware=[Middleware(SessionMiddleware, secret_key=SESSION_SECRET)],
    )
)
