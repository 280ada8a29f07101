"""Signing in from a browser: the bearer token, once, for a cookie that proves it was known.

The cookie is signed with the token and with its time, so every worker can check it, it ends by
itself after `LIFETIME_SECONDS`, and a new token ends all cookies of the old one. It holds nothing
else. It has no `Path`: browsers then send it for the folder that it came from, which is the mount
as they see it, also behind a proxy that strips a prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itsdangerous import TimestampSigner

LIFETIME_SECONDS = 12 * 3600
TRIES = 10
TRIES_SECONDS = 60

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
    for each in re.split("[;,]", headers.get("cookie", "")):
        key, _, value = each.strip().partition("=")
        if key == name and _is_valid(secret, value):
            return True
    return False


class LoginRateLimit:
    """Failed tries of this process; too many, and nobody signs in for a while.

    Not by address: behind a proxy all have the same one. Bounded in memory. `now` is monotonic time
    in seconds.
    """

    def __init__(self) -> None:
        self._failed: deque[float] = deque(maxlen=TRIES)

    def wait(self, now: float) -> int:
        """Seconds until the next try is allowed, 0 for now."""
        if len(self._failed) < TRIES:
            return 0
        left = self._failed[0] + TRIES_SECONDS - now
        return int(left) + 1 if left > 0 else 0

    def failed(self, now: float) -> None:
        """Count a failed try."""
        self._failed.append(now)

    def clear(self) -> None:
        """Forget the failed tries."""
        self._failed.clear()


LOGIN_RATE_LIMIT = LoginRateLimit()


def _is_valid(secret: str, value: str) -> bool:
    from itsdangerous import BadData

    try:
        return _signer(secret).unsign(value, max_age=LIFETIME_SECONDS) == _SIGNED
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
    return f"metricsmw_{known.hexdigest()[:8]}"


def _set_cookie(secret: str, value: str, age: int, headers: Mapping[str, str]) -> str:
    # Behind a proxy the app does not know the scheme that the browser used: its Origin does.
    secure = "; Secure" if headers.get("origin", "").startswith("https://") else ""
    return f"{_name(secret)}={value}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
