"""The request and the response of the sub-app, free of any web framework.

The routes (`answers`) know no framework: `wsgi_app` and `asgi_app` translate a framework's request
to a `Request`, and a `Response` to the framework's.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ..kinds import is_async
from .accounts import HostUser

# Returns the app's logged-in user, or None; only under ASGI may it be an awaitable.
_Found: TypeAlias = HostUser | str | None
Identity: TypeAlias = Callable[[], _Found | Awaitable[_Found]]


def nobody() -> None:
    """Return None: the identity of a request whose app has no session."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response: the server adds nothing but its own Date and Server.

    Attributes:
        status: The HTTP status.
        headers: Names and values.
        body: The body, or its beginning.
        stream: The body goes on without end. Only where the request offers it (`Request.streams`).
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    stream: bool = False


class Request:
    """A request below the mount of the sub-app.

    Attributes:
        method: As received, in capitals.
        path: What follows the mount, percent-decoded: "/current". "/" or "" for the mount itself,
            the latter where the client's URL has no slash at its end.
        query: The raw query string.
        headers: Names in lower case, values decoded as Latin-1.
        mount: The path of the mount itself as the client sees it, as far as the server knows.
        streams: Whether the server can send a body that goes on without end.
        unmeasured: Why the server, which promised to, has not measured this request; "" where it
            has, or has promised nothing.
        staff_only: Whether the default policy lets in only those whom the host counts among its
            staff.
        token: The token that signing in from a browser asks for, or None; set by the handlers.
        by_session: Whether the app's session may let in; set by the handlers.
        is_known: Whether it has proved who asks; set by the handlers.
        asker: Who asks for a change, as a refusal or the log names them; set by the handlers.
        ways: What lets in, as a refusal names it; set by the handlers.
    """

    __slots__ = (
        "_asked",
        "_identity",
        "_user",
        "asker",
        "by_session",
        "headers",
        "is_known",
        "method",
        "mount",
        "path",
        "query",
        "staff_only",
        "streams",
        "token",
        "unmeasured",
        "ways",
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
        staff_only: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.mount = mount
        self.streams = streams
        self.unmeasured = unmeasured
        self.staff_only = staff_only
        self.token: str | None = None
        self.by_session = False
        self.is_known = False
        self.ways: list[str] = []
        self.asker = ""
        self._identity = identity
        self._asked = False
        self._user: HostUser | None = None

    @property
    def has_login(self) -> bool:
        """Whether the app has users who could be logged in, as far as the host knows."""
        return self._identity is not nobody

    def identity(self) -> str | None:
        """Return the name of the app's logged-in user, or None; the app is asked at most once.

        Raises:
            TypeError: The identity would have to be awaited. Other exceptions are the app's.
        """
        user = self.user()
        return None if user is None else user.name

    def user(self) -> HostUser | None:
        """Return the app's logged-in user, or None; raises as `identity` does."""
        if not self._asked:
            user = self._identity()
            if isinstance(user, Awaitable):
                if inspect.iscoroutine(user):
                    user.close()
                raise TypeError("the identity is asynchronous, and nothing here can await it")
            self._know(user)
        return self._user

    async def settle(self) -> None:
        """Await an asynchronous identity now, so that `identity()` need not wait."""
        if not self._asked and is_async(self._identity):
            user = self._identity()
            self._know(await user if isinstance(user, Awaitable) else user)

    def _know(self, user: _Found) -> None:
        if isinstance(user, HostUser):
            self._user = user
        elif user:
            self._user = HostUser(str(user), user)
        self._asked = True
