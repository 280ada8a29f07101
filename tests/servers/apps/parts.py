"""Starlette answers that listen for a client that leaves while they are sent."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metricsmw.adapters import wrap


async def stream(request: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"part"
            await anyio.sleep(0.01)

    return StreamingResponse(parts())


async def file(request: Request) -> FileResponse:
    return FileResponse(__file__)


app = wrap(
    Starlette(
        routes=[
            Route("/stream", stream),
            Route("/file", file),
            Mount("/static", StaticFiles(directory=Path(__file__).parent)),
        ]
    )
)
