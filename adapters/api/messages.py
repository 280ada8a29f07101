"""The request and the response of the sub-app, free of any web framework.

The routes (`answers`) see nothing of a framework: each host translates what it received into a
`Request` and sends what the `Response` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ..kinds import is_async

# The host's logged-in session user, or None; only a host on ASGI may answer with an awaitable.
Identity: TypeAlias = Callable[[], str | Awaitable[str | None] | None]


def nobody() -> None:
    """The identity of a request whose host knows of no session."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, complete: the host adds nothing but its own Date and Server.

    With `stream` the body goes on without end; only a host that offered it (`Request.streams`) is
    answered so.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    stream: bool = False


class Request:
    """A request below the mount of the sub-app.

    `method`: as received, in capitals. `path`: what follows the mount, percent-decoded: "/current";
    "/" or "" for the mount itself, the latter where the client's URL has no slash at its end.
    `query`: the raw query string. `headers`: names in lower case, values decoded as Latin-1.
    `mount`: the path of the mount itself as the client sees it, as far as the host knows.
    `streams`: whether the host can send a body that goes on without end.
    `unmeasured`: why the host, which promised to, has not measured this request; "" where it has,
    or has promised nothing.
    `token`: what signing in from a browser asks for, or None; `by_session`: whether the host's
    session may let in; the handlers fill both in.
    """

    __slots__ = (
        "_asked",
        "_identity",
        "_user",
        "by_session",
        "headers",
        "method",
        "mount",
        "path",
        "query",
        "streams",
        "token",
        "unmeasured",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        identity: Identity = nobody,
        *,
        mount: str = "",
        streams: bool = False,
        unmeasured: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.mount = mount
        self.streams = streams
        self.unmeasured = unmeasured
        self.token: str | None = None
        self.by_session = False
        self._identity = identity
        self._asked = False
        self._user: str | None = None

    def identity(self) -> str | None:
        """Return the host's logged-in session user, or None; the host is asked at most once.

        Raises what the host raises, and `TypeError` where its answer would have to be awaited.
        """
        if not self._asked:
            user = self._identity()
            if isinstance(user, Awaitable):
                if inspect.iscoroutine(user):
                    user.close()
                raise TypeError("the identity is asynchronous, and nothing here can await it")
            self._user = user
            self._asked = True
        return self._user

    async def settle(self) -> None:
        """Ask a host that answers asynchronously now, so that `identity()` need not wait."""
        if not self._asked and is_async(self._identity):
            user = self._identity()
            self._user = await user if isinstance(user, Awaitable) else user
            self._asked = True
