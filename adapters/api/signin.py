"""Signing in from a browser: the bearer token, once, for a cookie that proves it was known.

Also the limit on wrong tokens, which is one for all ways in.

The cookie is signed with the token and with its time, so every worker can check it, it ends by
itself after `LIFETIME_SECONDS`, and a new token ends all cookies of the old one. It holds nothing
else. It has no `Path`: browsers then send it for the folder that it came from, which is the mount
as they see it, also behind a proxy that strips a prefix.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itsdangerous import TimestampSigner

LIFETIME_SECONDS = 12 * 3600
TRIES = 10
TRIES_SECONDS = 60
COOKIE = "metricsmw_"  # how the names of our cookies begin

_SIGNED = b"in"


def cookie(secret: str, headers: Mapping[str, str]) -> str:
    """Return the Set-Cookie that signs in the client that sent these headers."""
    value = _signer(secret).sign(_SIGNED).decode()
    return _set_cookie(secret, value, LIFETIME_SECONDS, headers)


def expired_cookie(secret: str, headers: Mapping[str, str]) -> str:
    """Return the Set-Cookie that signs out."""
    return _set_cookie(secret, "", 0, headers)


def is_signed_in(secret: str, headers: Mapping[str, str]) -> bool:
    """Return whether the request's cookies hold one that was signed with the secret, in time."""
    name = _name(secret)
    for each in _cookies(headers):
        key, _, value = each.partition("=")
        if key == name and _is_valid(secret, value):
            return True
    return False


def guess_in(secret: str | None, sent: str, headers: Mapping[str, str]) -> bytes | None:
    """Return a digest of the credentials that were sent, which are wrong; None: there are none.

    A cookie of the secret whose time is over is no guess.

    Args:
        secret: The token that is asked for, None where it is something else.
        sent: What the Authorization header says, empty where it is somebody else's.
        headers: The request's.
    """
    own = f"{_name(secret)}=" if secret else "="
    guesses = [
        each
        for each in _cookies(headers)
        if each.startswith(COOKIE)
        and not (secret and each.startswith(own) and _was_valid(secret, each.partition("=")[2]))
    ]
    if not sent and not guesses:
        return None
    return hashlib.sha256("\0".join([sent, *guesses]).encode("utf-8", "surrogatepass")).digest()


class LoginRateLimit:
    """Wrong credentials of this process, whatever door they came to.

    What was wrong before is no new guess: a client that comes again with an old token stays out
    without using up the guesses of others. Not by address: behind a proxy all have the same one.
    Bounded in memory. `now` is monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: deque[tuple[float, bytes]] = deque(maxlen=TRIES)

    def failed(self, guess: bytes, now: float) -> int:
        """Count a wrong guess.

        Returns:
            Seconds after which it may be tried again; 0: it was one of the guesses that are free.
        """
        with self._lock:
            fresh = [each for at, each in self._failed if now - at < TRIES_SECONDS]
            if guess in fresh:
                return 0
            if len(fresh) >= TRIES:
                return int(self._failed[0][0] + TRIES_SECONDS - now) + 1
            self._failed.append((now, guess))
            return 0

    @property
    def guesses(self) -> int:
        """How many were counted lately, at most `TRIES`."""
        return len(self._failed)

    def clear(self) -> None:
        """Forget the wrong guesses."""
        self._failed.clear()


LOGIN_RATE_LIMIT = LoginRateLimit()


def _cookies(headers: Mapping[str, str]) -> list[str]:
    """Return the request's cookies, each as "name=value"."""
    return [each.strip() for each in re.split("[;,]", headers.get("cookie", ""))]


def _is_valid(secret: str, value: str) -> bool:
    """Return whether a cookie's value was signed with the secret, in time."""
    return _was_valid(secret, value, LIFETIME_SECONDS)


def _was_valid(secret: str, value: str, age: int | None = None) -> bool:
    """Return the same of a cookie of so many seconds at most; None: of any age."""
    from itsdangerous import BadData

    try:
        return _signer(secret).unsign(value, max_age=age) == _SIGNED
    except (BadData, UnicodeError):
        return False


def _signer(secret: str) -> TimestampSigner:
    # Imported when it is needed: most requests to most apps carry no cookie of ours.
    from itsdangerous import TimestampSigner

    return TimestampSigner(
        secret.encode("utf-8", "surrogatepass"),
        salt=b"metricsmw.signin",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )


def _name(secret: str) -> str:
    # Browsers keep one jar for all ports of a host: servers side by side have names of their own.
    known = hashlib.sha256(b"metricsmw.cookie" + secret.encode("utf-8", "surrogatepass"))
    return f"{COOKIE}{known.hexdigest()[:8]}"


def _set_cookie(secret: str, value: str, age: int, headers: Mapping[str, str]) -> str:
    # Behind a proxy the app does not know the scheme that the browser used: its Origin does.
    secure = "; Secure" if headers.get("origin", "").startswith("https://") else ""
    return f"{_name(secret)}={value}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
