"""Who may read the metrics, and who may reset them: the policies for `auth=`, and `reset=`.

A policy is any callable that receives the `Request` and returns a `Grant`, or anything true for
yes and anything false for no. Under ASGI it may be `async def`. One that raises, or returns
an answer that is not there yet, lets nobody in.

Browsers send cookies and Basic credentials along with requests that other sites make them send.
So a yes also says whether the proof was of that kind (`Grant.AMBIENT`, `Grant.SIGNED_IN`, and the
meaning of any other true answer), in which case nothing is changed for a request that comes from
another site.

Credentials that were sent and are wrong are a no, whatever cookie came along. Only those of a
scheme by which browsers answer a proxy (`Basic`, say) say nothing to a policy that takes a token.
"""

from __future__ import annotations

import base64
import hmac
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from inspect import isawaitable
from typing import Any, ClassVar, Literal, TypeAlias

from .messages import Request
from .signin import COOKIE, guess_in, is_signed_in

logger = logging.getLogger("metricsmw")

Policy: TypeAlias = Callable[[Request], object]

# Who may reset: whoever may read, only whoever has the token, or nobody.
ResetRule: TypeAlias = Literal["token"] | bool

TOKEN_VARIABLE = "METRICSMW_TOKEN"
SHORT_TOKEN = 16  # characters; a shorter one can be guessed

# What surrounds a secret that was read from a file; no header can begin or end with it.
_SPACE = " \t\r\n\v\f"
# The schemes by which a browser answers a proxy in front of the app, each time by itself.
_OF_PROXIES = ("", "basic", "digest", "negotiate", "ntlm")
# Where a short token was found and logged.
WARNED_OF: set[str] = set()

_BEARER = 'Bearer realm="metrics"'
_BASIC = 'Basic realm="metrics", charset="UTF-8"'


class Grant(Enum):
    """A yes, by what the request proved itself with."""

    AMBIENT = "what a browser sends by itself: a cookie, Basic credentials, nothing at all"
    SIGNED_IN = "a browser's cookie that was given for the token"
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


def session(allow: Callable[[Any], object] | None = None) -> Policy:
    """Let in users who are logged in to the host.

    Args:
        allow: Of those, let in the ones that it says a true answer of. It is given the host's own
            object of the user (Django's and Starlette's `request.user`, Flask-Login's
            `current_user`), or what the session names where the host has none. Under ASGI it may
            be `async def`.
    """
    return _Session(allow)


def staff() -> Policy:
    """Let in users whose object the host marks as `is_staff`, as Django does."""
    return _Staff()


def token(secret: str) -> Policy:
    """Let in `Authorization: Bearer <secret>`.

    White space around the secret is none of it. An empty secret is a `ValueError`.
    """
    secret = _secret("secret", _secret("secret", secret).strip(_SPACE))
    _warn_if_short("auth.token", secret)
    return _Token(secret)


def basic(user: str, password: str) -> Policy:
    """Let in HTTP Basic credentials; both must be there, and `user` has no colon: `ValueError`."""
    if ":" in _secret("user", user):
        raise ValueError("user must not contain a colon")
    return _Basic(_utf8(f"{user}:{_secret('password', password)}"))


def public(hosts: Iterable[str] = ()) -> Policy:
    """Let everybody in, to read and to reset.

    What changes something is asked for by a name of the server's own, because another site may have
    a name of its own point at this server.

    Args:
        hosts: The server's names, without port. An address, a name without a dot, and one below
            `.localhost`, `.local` or `.internal` need not be among them.
    """
    if isinstance(hosts, str):
        hosts = (hosts,)
    return _Public(frozenset(host.lower().rstrip(".") for host in hosts))


def as_policy(auth: Policy | None, own_token: Callable[[], str | None] = lambda: None) -> Policy:
    """Return the policy that an `auth=` argument means; anything but a policy is a `TypeError`.

    None: the host's session (under Django of its staff), or the bearer token in the environment
    variable METRICSMW_TOKEN, which is read at each request; empty, it counts as not set.

    Args:
        auth: The argument.
        own_token: Returns the token that the server has made for itself, which counts where
            METRICSMW_TOKEN is not set.
    """
    if auth is None:
        token_variable()  # which warns of a short one
        return _Default(own_token)
    factories: tuple[object, ...] = (session, staff, token, basic, public)
    if auth in factories:
        raise TypeError("auth must be a policy: session, token, … make one when they are called")
    if not callable(auth):
        # The type only: a secret that was passed here by mistake must not end up in a log.
        raise TypeError(
            f"auth must be None or a policy such as token(secret), got {type(auth).__name__}"
        )
    return auth


def as_reset_rule(reset: object) -> ResetRule:
    """Return a `reset=` argument; anything but True, "token" or False is a `ValueError`."""
    if reset is True or reset is False or reset == "token":
        return reset
    raise ValueError(f'reset must be True, "token" or False, got {reset!r}')


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


def ways_of(policy: Policy, request: Request) -> list[str]:
    """Return what lets in by a policy, one sentence each, as a refusal names it.

    A policy of one's own may have it as its attribute `ways`.
    """
    ways: Callable[[Request], Iterable[str]] | Iterable[str] = getattr(policy, "ways", _OWN_WAY)
    return list(ways(request) if callable(ways) else ways)


def hosts_of(policy: Policy) -> Collection[str] | None:
    """Return the names that a change may be asked for by; None: by any."""
    hosts: Collection[str] | None = getattr(policy, "hosts", None)
    return hosts


def asker(policy: Policy, grant: Grant, request: Request) -> str:
    """Return who was let in, for the log."""
    if grant is Grant.EXPLICIT:
        return "whoever has the token"
    if grant is Grant.SIGNED_IN:
        return "a browser that has signed in with the token"
    told: str | None = getattr(policy, "asker", None)
    if told is None:
        user = request.user()
        # As ASCII: a name must not write lines of its own into the log.
        told = f"user {user.name[:100]!a}" if user else "whom the application's policy let in"
    return told


def who_may(auth: Policy | None, reset: ResetRule, *, has_login: bool = True) -> tuple[str, str]:
    """Return who may read, and who may reset, by `auth=` and `reset=`, for the log.

    Args:
        auth: As it was given.
        reset: As it was given.
        has_login: Whether the app has users who log in, as far as is known.
    """
    policy = as_policy(auth)
    told: str = getattr(policy, "readers", "whom the application's policy lets in")
    if auth is None and has_login:
        told = f"any user who is logged in to the app (under Django: of its staff) and {told}"
    resetters = {True: "the same", "token": "whoever has the token", False: "nobody"}
    return told, resetters[reset]


_OWN_WAY = ("What the application's own policy asks for.",)
_SESSION_WAY = "Log in to the application."
_STAFF_WAY = "Log in to the application as a member of its staff."
_TOKEN_WAY = "Send `Authorization: Bearer <token>`, or sign in on the page, with {}"
_NO_LOGIN = "Nothing: this policy asks for a login, and the application has none that is known."


@dataclass(frozen=True)
class _Session:
    allow: Callable[[Any], object] | None

    @property
    def readers(self) -> str:
        return "any user who is logged in" + (" and may by allow=" if self.allow else "")

    def ways(self, request: Request) -> list[str]:
        if not request.has_login:
            return [_NO_LOGIN]
        return [_SESSION_WAY if self.allow is None else f"{_SESSION_WAY[:-1]}, as one who may."]

    def __call__(self, request: Request) -> object:
        user = request.user()
        if user is None:
            return None
        if self.allow is None:
            return Grant.AMBIENT
        allowed = self.allow(user.account)
        return allowed if isawaitable(allowed) else Grant.of(allowed)


@dataclass(frozen=True)
class _Staff:
    readers: ClassVar[str] = "any user who is of the staff"

    def ways(self, request: Request) -> list[str]:
        return [_STAFF_WAY if request.has_login else _NO_LOGIN]

    def __call__(self, request: Request) -> Grant | None:
        user = request.user()
        return Grant.AMBIENT if user is not None and user.is_staff else None


@dataclass(frozen=True)
class _Token:
    secret: str = field(repr=False)
    challenge: ClassVar[str] = _BEARER
    asks_identity: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = (_TOKEN_WAY.format("the token that the app was given."),)
    readers: ClassVar[str] = "whoever has the token"

    @property
    def token(self) -> str:
        return self.secret

    def __call__(self, request: Request) -> Grant | None:
        return by_token(request, self.secret)


@dataclass(frozen=True)
class _Basic:
    credentials: bytes = field(repr=False)
    challenge: ClassVar[str] = _BASIC
    asks_identity: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = ("Send the user name and the password, by HTTP Basic.",)
    readers: ClassVar[str] = "whoever has the password"

    @property
    def asker(self) -> str:
        return f"user {self.credentials.partition(b':')[0].decode(errors='replace')!a}"

    def __call__(self, request: Request) -> Grant | None:
        try:
            given = base64.b64decode(_credentials(request, "basic"), validate=True)
        except ValueError:
            return None
        return Grant.AMBIENT if hmac.compare_digest(given, self.credentials) else None


@dataclass(frozen=True)
class _Public:
    hosts: frozenset[str]
    asks_identity: ClassVar[bool] = False
    asker: ClassVar[str] = "somebody, as all are let in"
    readers: ClassVar[str] = "anybody"

    def __call__(self, request: Request) -> Grant:
        return Grant.AMBIENT


@dataclass(frozen=True)
class _Default:
    own_token: Callable[[], str | None] = field(repr=False)
    challenge: ClassVar[str] = _BEARER
    readers: ClassVar[str] = "whoever has the token"

    @property
    def token(self) -> str | None:
        return token_variable() or self.own_token()

    def ways(self, request: Request) -> list[str]:
        ways = []
        if request.has_login:
            ways.append(_STAFF_WAY if request.staff_only else _SESSION_WAY)
        which = f"the token in {TOKEN_VARIABLE}."
        if not token_variable():
            which = (
                "the token that this server has made for itself and prints where it runs in a"
                " terminal or in debug mode; `metricsmw token` prints it on the machine itself, and"
                f" {TOKEN_VARIABLE} sets another one."
            )
        return [*ways, _TOKEN_WAY.format(which)]

    def __call__(self, request: Request) -> Grant | None:
        if is_bearing(request):
            secret = self.token
            grant = by_token(request, secret) if secret else None
            if grant is not None or _scheme(request) not in _OF_PROXIES:
                return grant
        user = request.user()
        if user is None or (request.staff_only and not user.is_staff):
            return None
        return Grant.AMBIENT


def token_variable() -> str:
    """Return the token that METRICSMW_TOKEN holds; empty where there is none."""
    secret = os.environ.get(TOKEN_VARIABLE, "").strip(_SPACE)
    if secret:
        _warn_if_short(TOKEN_VARIABLE, secret)
    return secret


def _warn_if_short(where: str, secret: str) -> None:
    if len(secret) < SHORT_TOKEN and where not in WARNED_OF:
        WARNED_OF.add(where)
        logger.warning(
            "metricsmw: the token of %s has fewer than %d characters, and can be guessed; one that"
            ' cannot: python -c "import secrets; print(secrets.token_urlsafe())"',
            where,
            SHORT_TOKEN,
        )


def _secret(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a non-empty string")
    return value


def _scheme(request: Request) -> str:
    return request.headers.get("authorization", "").strip(_SPACE).partition(" ")[0].lower()


def _credentials(request: Request, scheme: str) -> str:
    """Return what the Authorization header says, or "" where it is of another scheme."""
    given, _, rest = request.headers.get("authorization", "").partition(" ")
    return rest.strip(" \t") if given.lower() == scheme else ""


def guess_of(policy: Policy, request: Request) -> bytes | None:
    """Return a digest of the wrong credentials that a refused request carries; None: it has none.

    Args:
        policy: What refused it.
        request: The request.
    """
    challenge = (challenge_of(policy) or "").lower()
    of_proxy = _scheme(request) in _OF_PROXIES and not challenge.startswith("basic")
    sent = "" if of_proxy else request.headers.get("authorization", "").strip(_SPACE)
    if not sent and COOKIE not in request.headers.get("cookie", ""):
        return None  # and the token, which may be in a file, is not asked for
    secret = token_of(policy)
    if not challenge and secret is None:
        return None  # there is no secret that could be guessed
    return guess_in(secret, sent, request.headers)


def is_bearing(request: Request) -> bool:
    """Return whether a request carries anything that could prove that a token is known."""
    return _scheme(request) not in _OF_PROXIES or COOKIE in request.headers.get("cookie", "")


def by_token(request: Request, secret: str) -> Grant | None:
    """Return what a request proves by a token: a bearer's, else that of the cookie given for it."""
    if bears(request, secret):
        return Grant.EXPLICIT
    if _scheme(request) not in _OF_PROXIES:
        return None
    return Grant.SIGNED_IN if is_signed_in(secret, request.headers) else None


def bears(request: Request, secret: str) -> bool:
    """Return whether a request carries the secret as its bearer token; in constant time."""
    given = _utf8(_credentials(request, "bearer"))
    wanted = _utf8(secret)
    # Header values come decoded as Latin-1, so a secret that was sent as UTF-8 comes in disguise.
    disguised = _utf8(wanted.decode("latin-1"))
    return hmac.compare_digest(given, wanted) | hmac.compare_digest(given, disguised)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
