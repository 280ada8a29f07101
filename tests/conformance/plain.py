"""The plainest client and server in one: a site is called, and its answer is what a client gets."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from . import drivers


class Answer(NamedTuple):
    """What the client gets; `error`: the class of what the site raised, in this process."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    error: str | None = None

    def comparable(self) -> Answer:
        """Without what is another one each time."""
        kept = [(name, value) for name, value in self.headers if name.lower() != "date"]
        return self._replace(headers=kept)


@dataclass
class Plain:
    """Asks sites; `release` is the file that tells them of a first chunk that has arrived.

    delay: how long the client takes for the first chunk, in seconds. leaves: it goes away then.
    """

    release: Path
    is_asgi: bool
    delay: float = 0.0
    leaves: bool = False

    def ask(self, app: Any, method: str, path: str, body: bytes = b"") -> Answer:
        """One request; `path` is percent-encoded."""
        self.release.unlink(missing_ok=True)
        if self.is_asgi:
            return asyncio.run(self._ask_asgi(app, method, path, body))
        return self._ask_wsgi(app, method, path, body)

    def statuses(self, app: Any, paths: list[str]) -> set[int]:
        """The statuses of requests for these paths, one after the other in one event loop."""

        async def each() -> set[int]:
            return {(await self._ask_asgi(app, "GET", path, b"")).status for path in paths}

        if self.is_asgi:
            return asyncio.run(each())
        return {self._ask_wsgi(app, "GET", path, b"").status for path in paths}

    def _ask_wsgi(self, app: Any, method: str, path: str, body: bytes) -> Answer:
        path, _, query = path.partition("?")
        environ = drivers.new_environ(
            unquote_to_bytes(path).decode("latin-1"),
            method,
            QUERY_STRING=query,
            CONTENT_LENGTH=str(len(body)),
            REMOTE_ADDR="127.0.0.1",
            SERVER_PROTOCOL="HTTP/1.1",
            **{"wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO()},
        )
        answer = drivers.Answer()
        parts: list[bytes] = []
        error = None
        try:
            answer.body = app(environ, answer.start_response)
            try:
                for part in answer.body:
                    parts.append(part)
                    if self.leaves:
                        raise BrokenPipeError
                    if len(parts) == 1:
                        time.sleep(self.delay)
                        self.release.touch()
            finally:
                answer.close()
        except Exception as raised:
            error = type(raised).__name__
        return Answer(int(answer.status[:3] or 500), answer.headers, b"".join(parts), error)

    async def _ask_asgi(self, app: Any, method: str, path: str, body: bytes) -> Answer:
        path, _, query = path.partition("?")
        exchange = _Exchange(body, self)
        scope = drivers.new_scope(
            unquote_to_bytes(path).decode("utf-8", "replace"),
            method,
            raw_path=path.encode(),
            query_string=query.encode(),
            headers=[(b"host", b"test"), (b"content-length", str(len(body)).encode())],
            client=("127.0.0.1", 1),
            server=("127.0.0.1", 80),
        )
        error = None
        try:
            await app(scope, exchange.receive, exchange.send)
            await asyncio.sleep(0)  # for what the app has put off
        except Exception as raised:
            error = type(raised).__name__
        status, headers = 500, []
        for message in exchange.sent:
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(a.decode(), b.decode("latin-1")) for a, b in message["headers"]]
        return Answer(status, headers, exchange.body, error)


class _Exchange(drivers.Exchange):
    """Ends with a disconnect, as servers do; drops what comes after it, and can be asked.

    `disconnected`: the client has gone, as uvicorn says it.
    """

    __module__ = "uvicorn.protocols.http.h11_impl"
    disconnected = False

    def __init__(self, body: bytes, client: Plain) -> None:
        super().__init__({"type": "http.request", "body": body, "more_body": False})
        self._client = client
        self._over = asyncio.Event()

    async def receive(self) -> Any:
        if not self.messages:
            await self._over.wait()
            return dict(drivers.DISCONNECT)
        return await super().receive()

    async def send(self, message: Any) -> None:
        if self._over.is_set():
            return
        await super().send(message)
        has_body = bool(message.get("body"))
        ends = message["type"] == "http.response.body" and not message.get("more_body")
        self.disconnected = has_body and self._client.leaves
        if ends or self.disconnected:
            self._over.set()
            # A site that never hears of it goes on.
            asyncio.get_running_loop().call_later(0.3, self._client.release.touch)
        elif has_body and not self._client.release.exists():
            await asyncio.sleep(self._client.delay)
            self._client.release.touch()
