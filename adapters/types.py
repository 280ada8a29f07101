"""The types that adapters speak of: ASGI's and WSGI's protocols, and callables users pass in."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# What a server and an ASGI app exchange.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[Any]]

# The headers of a WSGI response.
Headers: TypeAlias = "list[tuple[str, str]]"

# From the scope or environ of an answered request to its route's template, None where there is
# none; to its user, None where there is none; and to the app's logged-in user, for the sub-app.
ScopeRoute: TypeAlias = Callable[[Scope], "str | None"]
ScopeUser: TypeAlias = Callable[[Scope], object]
ScopeIdentity: TypeAlias = Callable[[Scope], "str | Awaitable[str | None] | None"]
EnvironRoute: TypeAlias = "Callable[[WSGIEnvironment], str | None]"
EnvironUser: TypeAlias = "Callable[[WSGIEnvironment], object]"
EnvironIdentity: TypeAlias = "Callable[[WSGIEnvironment], str | None]"

# What is left out of the numbers: a prefix of the path, or a pattern to search it for.
Exclude: TypeAlias = "str | re.Pattern[str]"

# Snapshot fields and the numbers that they have to stay below.
Thresholds: TypeAlias = Mapping[str, float]
