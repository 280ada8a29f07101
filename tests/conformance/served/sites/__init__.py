"""The same site in each framework, for the matrix of frameworks and cases.

Each module has a `SITE`. Every site answers

| route | answers |
|---|---|
| GET /hello | `hello` |
| GET /items/7 | `item 7`; the id is a whole number where the framework can ask for one |
| GET /v1/users/ada, GET /v2/users/ada | `user ada`: one handler, included twice |
| GET /mounted/things/7 | `thing 7`, by a mounted app or the nearest that the framework has |
| POST /upload | how many bytes came |
| GET /fail | status 500 |
| GET /raise | an exception that nobody catches |
| GET /stream | `one`, then `released`, when the client has got that far; `late` if it has not |
| GET /broken | `one`, then an exception |
| GET /endless | more than fits between a server and a client that does not read |
| GET /context | what is set in the context outside; leaves something there itself |
| GET /background | `answered`; calls `passing` then, where the framework knows such tasks |
| WS /ws?how=x | "echo", "refuse", or, once the client has said something, "raise" |

The file RELEASE is how a client says that it has got the first chunk of the stream, or an answer.

A client may ask for a site in each of its `FORMS`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.middleware.dispatcher import DispatcherMiddleware

PATIENCE = 10.0
PREFIX = "/shop"
UNMATCHED = "<unmatched>"


class OnPurposeError(Exception):
    """Raised by GET /raise and GET /broken."""


@dataclass(frozen=True)
class Site:
    """A site and its templates.

    make: a new application. item, user, thing: the templates of those routes; a user's below its
    version. path_has_root: it takes `root_path` off the path, as it should. routes: those of
    requests for which they are not what the kit expects. around: what `make` and requests need to
    be done in, where other tests share the process. afterwards: how often GET /background calls
    `passing` after its answer. ends_broken: for the server, GET /broken ends as a whole answer.
    has_websockets: there is a /ws. mounts_below: what it has mounted is found below a prefix, too.
    """

    make: Callable[[], Any]
    is_asgi: bool
    item: str = UNMATCHED
    user: str = UNMATCHED
    thing: str = UNMATCHED
    has_router: bool = True
    path_has_root: bool = True
    routes: Mapping[str, str] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    afterwards: int = 0
    ends_broken: bool = False
    has_websockets: bool = False
    mounts_below: bool = True

    def mounted(self, app: Any) -> Any:
        """Another app with this one below PREFIX, by SCRIPT_NAME or `root_path`."""

        def none(environ: Any, start_response: Any) -> list[bytes]:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"nothing but the mount"]

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                assert scope["path"].startswith(PREFIX)
                path = scope["path"] if self.path_has_root else scope["path"][len(PREFIX) :]
                scope = {**scope, "root_path": scope["root_path"] + PREFIX, "path": path}
            await app(scope, receive, send)

        return asgi if self.is_asgi else DispatcherMiddleware(none, {PREFIX: app})


FORMS: dict[str, Callable[[Site, Callable[[Any], Any]], Any]] = {
    "bare": lambda site, measure: site.make(),
    "measured": lambda site, measure: measure(site.make()),
    "twice": lambda site, measure: measure(measure(site.make())),
    "mounted": lambda site, measure: site.mounted(measure(site.make())),
    "around": lambda site, measure: measure(site.mounted(measure(site.make()))),
}
"""What a site is served as, by what measures an app. The last two are below PREFIX."""

OUTSIDE: ContextVar[str] = ContextVar("OUTSIDE", default="unset")
INSIDE: ContextVar[str] = ContextVar("INSIDE", default="unset")


def context() -> str:
    """The body of GET /context."""
    INSIDE.set("inside")
    return OUTSIDE.get()


def passing() -> None:
    """Called between the chunks of a stream, and after an answer: where tests have time pass."""


async def afterwards() -> None:
    """What there is to do after an answer; where RELEASED says so, it waits for that, too."""
    while "RELEASED" in os.environ and not _released():
        await asyncio.sleep(0.002)
    passing()


def _released() -> bool:
    return Path(os.environ["RELEASE"]).exists()


def chunks() -> Iterator[bytes]:
    """The body of GET /stream."""
    yield b"one\n"
    deadline = time.monotonic() + PATIENCE
    while not _released() and time.monotonic() < deadline:
        time.sleep(0.002)
    passing()
    yield b"released\n" if _released() else b"late\n"


async def async_chunks() -> AsyncIterator[bytes]:
    """The same for ASGI."""
    yield b"one\n"
    deadline = time.monotonic() + PATIENCE
    while not _released() and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
    passing()
    yield b"released\n" if _released() else b"late\n"


def broken() -> Iterator[bytes]:
    """The body of GET /broken."""
    yield b"one\n"
    raise OnPurposeError


async def async_broken() -> AsyncIterator[bytes]:
    """The same for ASGI."""
    yield b"one\n"
    raise OnPurposeError


def endless() -> Iterator[bytes]:
    """The body of GET /endless."""
    for _ in range(1000):
        yield bytes(1 << 16)


async def async_endless() -> AsyncIterator[bytes]:
    """The same for ASGI."""
    for chunk in endless():
        yield chunk
        await asyncio.sleep(0)
