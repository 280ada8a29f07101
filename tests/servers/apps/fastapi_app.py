"""FastAPI, with Starlette's signed-cookie session."""

from __future__ import annotations

import asyncio
import os
import time

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.middleware.sessions import SessionMiddleware

from apps import LINES, SECRET, USER
from metricsmw.adapters import wrap

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key=SECRET)


@app.get("/hello", response_class=PlainTextResponse)
async def hello() -> str:
    return "hello"


@app.get("/items/{id}")
async def item(id: int) -> dict[str, int]:
    return {"id": id}


@app.get("/slow")
async def slow(ms: float, block: bool = False) -> dict[str, int]:
    if block:
        time.sleep(ms / 1000)
    else:
        await asyncio.sleep(ms / 1000)
    return {"pid": os.getpid()}


@app.get("/fail")
async def fail() -> PlainTextResponse:
    return PlainTextResponse("failed", 500)


@app.get("/raise")
async def raise_() -> None:
    raise RuntimeError("raised on purpose")


@app.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(iter(LINES), media_type="text/plain")


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@app.post("/login", response_class=PlainTextResponse)
async def login(request: Request) -> str:
    request.session["user_id"] = USER
    return "logged in"


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


app = wrap(app)
