"""Who may read the metrics: the policies for `auth=`, and the rule against cross-site requests.

A policy is any callable that receives the `Request` and returns a `Grant`, or anything true for
yes and anything false for no. Under ASGI it may be `async def`. One that raises, or returns
an answer that is not there yet, lets nobody in.

Browsers send cookies and Basic credentials along with requests that other sites make them send.
So a yes also says whether the proof was of that kind (`Grant.AMBIENT`, and the meaning of any other
true answer), in which case nothing is changed for a request that comes from another site.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeAlias
from urllib.parse import SplitResult, urlsplit

from .messages import Request
from .signin import is_signed_in

Policy: TypeAlias = Callable[[Request], object]

TOKEN_VARIABLE = "METRICSMW_TOKEN"

_BEARER = 'Bearer realm="metrics"'
_BASIC = 'Basic realm="metrics", charset="UTF-8"'


class Grant(Enum):
    """A yes, by what the request proved itself with."""

    AMBIENT = "what a browser sends by itself: a cookie, Basic credentials, nothing at all"
    EXPLICIT = "what the client's own code put there: a bearer token"

    @classmethod
    def of(cls, verdict: object) -> Grant | None:
        """Return what a policy's answer means; None is a no.

        A coroutine or an iterator is an answer that is not there yet, and `TypeError`.
        """
        if isinstance(verdict, Grant):
            return verdict
        if isinstance(verdict, (Awaitable, Iterator, AsyncIterator)):
            raise TypeError(f"a policy must answer yes or no, not {type(verdict).__name__}")
        return cls.AMBIENT if verdict else None


def session() -> Policy:
    """Let in users who are logged in to the host's own session."""
    return _Session()


def token(secret: str) -> Policy:
    """Let in `Authorization: Bearer <secret>`. An empty secret is a `ValueError`."""
    return _Token(_secret("secret", secret))


def basic(user: str, password: str) -> Policy:
    """Let in HTTP Basic credentials; both must be there, and `user` has no colon: `ValueError`."""
    if ":" in _secret("user", user):
        raise ValueError("user must not contain a colon")
    return _Basic(_utf8(f"{user}:{_secret('password', password)}"))


def public() -> Policy:
    """Let everybody in."""
    return _Public()


def as_policy(auth: Policy | None) -> Policy:
    """Return the policy that an `auth=` argument means; anything but a policy is a `TypeError`.

    None: the host's session, or the bearer token in the environment variable METRICSMW_TOKEN,
    which is read at each request; empty, it counts as not set.
    """
    if auth is None:
        return _Default()
    factories: tuple[object, ...] = (session, token, basic, public)
    if auth in factories:
        raise TypeError("auth must be a policy: session, token, … make one when they are called")
    if not callable(auth):
        # The type only: a secret that was passed here by mistake must not end up in a log.
        raise TypeError(
            f"auth must be None or a policy such as token(secret), got {type(auth).__name__}"
        )
    return auth


def challenge_of(policy: Policy) -> str | None:
    """Return the WWW-Authenticate that goes with a policy's no, or None.

    A policy of one's own may have it as its attribute `challenge`.
    """
    return getattr(policy, "challenge", None)


def token_of(policy: Policy) -> str | None:
    """Return the token that signing in from a browser asks for, or None where there is none.

    A policy of one's own may have it as its attribute `token`.
    """
    secret: str | None = getattr(policy, "token", None)
    return secret or None


def asks_identity(policy: Policy) -> bool:
    """Return whether a policy may ask for the session user, which can be costly to find out."""
    return getattr(policy, "asks_identity", True)


@dataclass(frozen=True)
class _Session:
    def __call__(self, request: Request) -> Grant | None:
        return Grant.AMBIENT if request.identity() else None


@dataclass(frozen=True)
class _Token:
    secret: str = field(repr=False)
    challenge: ClassVar[str] = _BEARER
    asks_identity: ClassVar[bool] = False

    @property
    def token(self) -> str:
        return self.secret

    def __call__(self, request: Request) -> Grant | None:
        return _by_token(request, self.secret)


@dataclass(frozen=True)
class _Basic:
    credentials: bytes = field(repr=False)
    challenge: ClassVar[str] = _BASIC
    asks_identity: ClassVar[bool] = False

    def __call__(self, request: Request) -> Grant | None:
        try:
            given = base64.b64decode(_credentials(request, "basic"), validate=True)
        except ValueError:
            return None
        return Grant.AMBIENT if hmac.compare_digest(given, self.credentials) else None


@dataclass(frozen=True)
class _Public:
    asks_identity: ClassVar[bool] = False

    def __call__(self, request: Request) -> Grant:
        return Grant.AMBIENT


class _Default:
    @property
    def challenge(self) -> str | None:
        return _BEARER if _token_variable() else None

    @property
    def token(self) -> str:
        return _token_variable()

    def __call__(self, request: Request) -> Grant | None:
        secret = _token_variable()
        grant = _by_token(request, secret) if secret else None
        if grant is not None:
            return grant
        return Grant.AMBIENT if request.identity() else None


def _token_variable() -> str:
    # A secret that was read from a file often has a newline at its end; no header can.
    return os.environ.get(TOKEN_VARIABLE, "").strip()


def _secret(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a non-empty string")
    return value


def _credentials(request: Request, scheme: str) -> str:
    """Return what the Authorization header says, or "" where it is of another scheme."""
    given, _, rest = request.headers.get("authorization", "").partition(" ")
    return rest.strip(" \t") if given.lower() == scheme else ""


def _by_token(request: Request, secret: str) -> Grant | None:
    if bears(request, secret):
        return Grant.EXPLICIT
    return Grant.AMBIENT if is_signed_in(secret, request.headers) else None


def bears(request: Request, secret: str) -> bool:
    """Return whether a request carries the secret as its bearer token; in constant time."""
    given = _utf8(_credentials(request, "bearer"))
    wanted = _utf8(secret)
    # Header values come decoded as Latin-1, so a secret that was sent as UTF-8 comes in disguise.
    disguised = _utf8(wanted.decode("latin-1"))
    return hmac.compare_digest(given, wanted) | hmac.compare_digest(given, disguised)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser says that another site made it send this request.

    By Sec-Fetch-Site, and where a browser does not send it by an Origin that does not name the
    Host; an Origin of `null` is another site in any case. A client that sends neither is no browser
    of today, and nobody made it send anything.
    """
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if origin == "null" or site not in ("same-origin", "none"):
        return True
    # "same-origin" is the browser's own comparison, with the address that it used: a proxy may
    # have told the app another Host.
    if origin is None or site == "same-origin":
        return False
    return not _names_host(origin, headers.get("host", ""))


def _names_host(origin: str, host: str) -> bool:
    try:
        theirs = urlsplit(origin)
        # Behind a proxy the app does not know the scheme that the client used: the Origin does.
        ours = urlsplit(f"{theirs.scheme}://{host}")
        return (
            theirs.scheme in ("http", "https")
            and bool(theirs.hostname)
            and (theirs.hostname, _port(theirs)) == (ours.hostname, _port(ours))
        )
    except ValueError:
        return False


def _port(url: SplitResult) -> int:
    if url.port is None:
        return 443 if url.scheme == "https" else 80
    return url.port
