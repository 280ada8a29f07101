"""One path, one answer to who may read: the claims of what serves the sub-app at a path.

Whatever serves the sub-app leaves its `Claim` where others find it: an app or a middleware in a
table by path, a sub-app that can be mounted as an attribute of its own. A second claim to a path is
refused, as one of the two would be asked in vain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

from ..arguments import ClaimedError
from ..interpose import Remade
from .policies import Policy, ResetRule, as_policy, as_reset_rule

logger = logging.getLogger("metricsmw")

# Where an app or a middleware keeps its claims by path, and a sub-app its one.
_CLAIMS = "_metricsmw_claims"
_CLAIM = "_metricsmw_claim"
# The attributes under which middlewares of others hold the app inside.
_INSIDE = ("app", "wsgi_app", "asgi_app", "application", "_app")
_MAX_APPS = 100
_MAX_MOUNTS = 100


class Claim(NamedTuple):
    """Who may read, and who may reset, as `auth=` and `reset=` were given."""

    auth: Policy | None
    reset: ResetRule

    @property
    def is_default(self) -> bool:
        """Whether nothing was given."""
        return self == Claim(None, True)


def claim_path(owner: object, app: object, path: str | None, claim: Claim) -> Claim:
    """Claim a path that an owner is about to serve the sub-app at.

    Args:
        owner: An app or a middleware.
        app: What it serves, where that may have claimed the path before.
        path: The path; None: nothing is served.
        claim: What was given; nothing, the default, is the claim that there is.

    Returns:
        The claim that holds.

    Raises:
        ClaimedError: The path is served already, by another claim.
    """
    as_policy(claim.auth)
    as_reset_rule(claim.reset)
    if path is None:
        return claim
    claim = agreed(path, _claim_in(app, path), claim)
    claims: dict[str, Claim] | None = getattr(owner, _CLAIMS, None)
    if claims is None:
        # Not by vars(): a request takes longer in a middleware that has been asked for its dict.
        setattr(owner, _CLAIMS, claims := {})
    claims[path] = claim
    return claim


def agreed(path: str, first: Claim | None, second: Claim) -> Claim:
    """Return the claim that holds; raises `ClaimedError` where the second is another one."""
    if first is None or first == second:
        return second
    if second.is_default:
        return first
    raise ClaimedError(
        f"{path} is served already, by another auth= or reset=, and one of the two would be asked"
        " in vain: give them once, where the path is served first"
    )


def tell_conflict(path: str) -> str:
    """Log that two claim a path which is served already, and return what to answer there."""
    logger.error(
        "metricsmw: two answer who may read %s, by another auth= or reset=, so nobody is let in"
        " there: give them once, where the path is served",
        path,
    )
    return '{"error": "Two say who may read here, see the log"}'


def mark(sub_app: Any, claim: Claim) -> None:
    """Leave its claim at a sub-app that is to be mounted somewhere."""
    setattr(sub_app, _CLAIM, claim)


def claim_of(sub_app: object) -> Claim | None:
    """Return the claim of a sub-app; None: it is none."""
    claim: Claim | None = fields_of(sub_app).get(_CLAIM)
    return claim


def mounted_claim(routes: Sequence[object], path: str) -> Claim | None:
    """Return the claim of the sub-app that routes of Starlette mount at a path; None: none does."""
    for route in routes:
        below: str | None = getattr(route, "path", None)
        inner = getattr(route, "app", None)
        if below is None or inner is None or not path.startswith(below):
            continue
        if path == below and (claim := claim_of(inner)) is not None:
            return claim
        claim = mounted_claim(getattr(inner, "routes", None) or (), path[len(below) :])
        if claim is not None:
            return claim
    return None


class MountCheck:
    """Tells whether one view of Django's is alone at its mounts; looked up once a mount."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._checked: dict[str, bool] = {}

    def is_alone(self, mount: str, resolver: Any) -> bool:
        """Return whether no URL of the project serves a sub-app of another given claim there.

        Args:
            mount: The path of the mount, without a slash at its end.
            resolver: The project's, of all its URLs.
        """
        if mount not in self._checked:
            if len(self._checked) >= _MAX_MOUNTS:
                self._checked.clear()
            claims = _claims_at(mount, resolver.url_patterns, "/")
            self._checked[mount] = all(each == self._claim or each.is_default for each in claims)
        return self._checked[mount]


def _claims_at(mount: str, patterns: Any, above: str) -> Iterator[Claim]:
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _claims_at(mount, pattern.url_patterns, above + str(pattern.pattern))
        elif above.rstrip("/") == mount and (claim := claim_of(pattern.callback)) is not None:
            yield claim


def _claim_in(app: object, path: str) -> Claim | None:
    """Return the claim to a path of an app, or of one inside its middlewares."""
    for each in apps_in(app):
        if isinstance(each, dict):  # what a dispatcher mounts
            claim = claim_of(each.get(path))
        else:
            claim = fields_of(each).get(_CLAIMS, {}).get(path)
        if claim is not None:
            return claim
    return None


def apps_in(app: object) -> Iterator[object]:
    """Yield an app, and what stands inside it as far as the ways in have the usual names."""
    waiting: list[object] = [app]
    seen: list[object] = []
    while waiting and len(seen) < _MAX_APPS:
        each = waiting.pop(0)
        if each is None or any(each is one for one in seen):
            continue
        seen.append(each)
        yield each
        if isinstance(each, MethodType):
            waiting.append(each.__self__)
        elif isinstance(each, partial):
            waiting += [each.func, *each.args]
        elif not isinstance(each, (dict, type)):
            fields = fields_of(each)
            waiting += [fields.get(name) for name in (*_INSIDE, "__wrapped__", "mounts")]


def fields_of(each: object) -> dict[str, Any]:
    """Return the attributes that an object stores; nothing that it makes on demand."""
    if isinstance(each, Remade):  # of ours, whose dict is not asked for: see `claim_path`
        return {name: getattr(each, name) for name in ("app", _CLAIMS) if hasattr(each, name)}
    try:
        fields = object.__getattribute__(each, "__dict__")
    except AttributeError:
        return {}
    return fields if type(fields) is dict else {}
