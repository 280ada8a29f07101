"""Starlette, with its signed-cookie session."""

from __future__ import annotations

import asyncio
import os
import time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from apps import LINES, SECRET, USER
from metricsmw.adapters import wrap


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def item(request: Request) -> JSONResponse:
    return JSONResponse({"id": request.path_params["id"]})


async def slow(request: Request) -> JSONResponse:
    seconds = float(request.query_params["ms"]) / 1000
    if "block" in request.query_params:
        time.sleep(seconds)
    else:
        await asyncio.sleep(seconds)
    return JSONResponse({"pid": os.getpid()})


async def fail(request: Request) -> PlainTextResponse:
    return PlainTextResponse("failed", 500)


async def raise_(request: Request) -> PlainTextResponse:
    raise RuntimeError("raised on purpose")


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(iter(LINES), media_type="text/plain")


async def upload(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


async def login(request: Request) -> PlainTextResponse:
    request.session["user_id"] = USER
    return PlainTextResponse("logged in")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


app = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/items/{id:int}", item),
        Route("/slow", slow),
        Route("/fail", fail),
        Route("/raise", raise_),
        Route("/stream", stream),
        Route("/upload", upload, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        WebSocketRoute("/ws", echo),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key=SECRET)],
)
app = wrap(app)
