"""Django's resolver: the template of the URL pattern that matched, and the user that is loaded.

Where Django resolves a URL, inside all its middleware, the request is left for the resolvers: by
every handler of the process, wherever it stands, as the method of their base class is replaced.

Regular expressions (`re_path`) become templates without their syntax.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIRequest
from django.core.signals import got_request_exception
from django.utils.functional import LazyObject, empty

from .base import (
    FRAMEWORK_KEY,
    MATCH_KEY,
    MEASUREMENT_KEYS,
    MatchedRequest,
    follow_copy,
    report_fault,
    see_error,
    session_user,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.urls import ResolverMatch


def install() -> None:
    """Make every Django handler of this process leave its requests; idempotent."""
    resolve = BaseHandler.resolve_request
    if hasattr(resolve, "_metricsmw"):
        return

    @wraps(resolve)
    def resolve_request(handler: BaseHandler, request: HttpRequest) -> ResolverMatch:
        match: ResolverMatch | None = None
        try:
            carrier = request.META if type(request) is WSGIRequest else carrier_of(request)
            for key in MEASUREMENT_KEYS:
                measurement = carrier.get(key)
                if measurement is None or measurement.carrier is not carrier:
                    wanted = follow_copy(carrier)
                    break
            else:  # as most are: measured by all, and no copy
                wanted = True
            if wanted:
                carrier[FRAMEWORK_KEY] = matched = DjangoRequest()
                matched.request = request
            if MATCH_KEY in carrier:
                match = carrier[MATCH_KEY]
        except Exception:
            report_fault("Django's route")
        if match is None:
            found: ResolverMatch = resolve(handler, request)
            return found
        request.resolver_match = match
        return match

    resolve_request._metricsmw = True  # type: ignore[attr-defined]
    BaseHandler.resolve_request = resolve_request
    got_request_exception.connect(_failed, weak=False)


def _failed(sender: object, request: HttpRequest | None = None, **_: object) -> None:
    try:
        if request is not None:
            see_error(carrier_of(request), sys.exc_info()[1])
    except Exception:
        report_fault("Django's exception")


def carrier_of(request: HttpRequest) -> dict[str, Any]:
    """Return what everything outside Django sees of a request: environ or scope."""
    # Not by vars(): Django's own reads take longer once a request has been asked for its dict.
    carrier: dict[str, Any] = getattr(request, "scope", None) or request.META
    return carrier


# Whether a WSGI request has a user and a session by being given them only.
_IS_GIVEN = not (hasattr(WSGIRequest, "user") or hasattr(WSGIRequest, "session"))


class DjangoRequest(MatchedRequest):
    """The `MatchedRequest` of Django.

    `user()`, which is asked last, releases the request and keeps the answers: the request refers to
    the environ that this stands in, and would close a reference cycle.
    """

    __slots__ = ("_match", "_user", "request")

    request: HttpRequest | None
    _match: ResolverMatch | None
    _user: str | None

    def route(self) -> str | None:
        """Return the template of the URL pattern that matched, or None."""
        request = self.request
        match = self._match if request is None else request.resolver_match
        return None if match is None else template_of(match.route or "")

    def user(self) -> str | None:
        """Return the user as far as the app has loaded it, or None."""
        request = self.request
        if request is not None:
            self._match = request.resolver_match
            self._user = user_of(request)
            self.request = None
        return self._user

    def both(self) -> tuple[str | None, str | None]:
        """Return route and user; as `user()` does, it releases the request."""
        request = self.request
        if request is None:
            return self.route(), self._user
        self._match = match = request.resolver_match
        template = None if match is None else template_of(match.route or "")
        # For most this is less than a look into the request's dict, which has to be made first.
        is_nobodys = (
            _IS_GIVEN
            and type(request) is WSGIRequest
            and not (hasattr(request, "session") or hasattr(request, "user"))
        )
        self._user = user = None if is_nobodys else user_of(request)
        self.request = None
        return template, user


def releasing(user: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """Return an app's own resolver of users that releases Django's request, too; None for None."""
    if user is None:
        return None

    def resolve(carrier: dict[str, Any]) -> object:
        matched = carrier.get(FRAMEWORK_KEY)
        if matched is not None:
            matched.user()
        return user(carrier)

    return resolve


def user_of(request: HttpRequest) -> str | None:
    """Return the user of a request as far as the app has loaded it: nothing is asked of a store."""
    fields = vars(request)
    if "user" in fields:
        user = fields["user"]
        if issubclass(type(user), LazyObject):
            user = None if user._wrapped is empty else user._wrapped
        if user is not None and user.is_authenticated:
            return None if user.pk is None else str(user.pk)
    if "session" in fields:
        session = fields["session"]
        if isinstance(session, SessionBase):
            return session_user(vars(session).get("_session_cache"))
    return None


@lru_cache(maxsize=4096)
def template_of(route: str) -> str:
    """Return a URL pattern as a template, "/articles/<int:year>/", without regular expressions.

    Of those (`re_path`), "(?P<name>…)" becomes "<name>", and another group, a set of characters or
    a wildcard "<var>".
    """
    if _REGEX.search(route):
        route = re.sub("(<var>)+", "<var>", _plain(route))
    return "/" + route.removeprefix("/")


# What tells a regular expression from what `path` takes.
_REGEX = re.compile(r"[\\^$|\[]|\(\?|\.[*+]")
_SET = r"\[\^?\]?(?:\\.|[^\]\\])*\]"
_TOKEN = re.compile(
    rf"""
    (?P<assertion> \\[AZbB] | [\^$] )
  | (?P<var> \\[dDsSwW] | {_SET} | \.(?=[*+{{]) )
  | \( (?: \?P<(?P<name>\w+)> | (?P<aside>\?[=!<#]|\?[a-zA-Z]+\)) | (?P<plain>\?[\w-]*:)
         | (?P<group>) )
  | \\(?P<char> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_QUANTIFIER = re.compile(r"[?*+]|\{\d*,?\d*\}")
_BRACKET = re.compile(rf"\\.|{_SET}|[()]", re.DOTALL)


def _plain(regex: str) -> str:
    plain = ""
    at = 0
    while at < len(regex):
        token = _TOKEN.match(regex, at)
        if token is None:
            plain += regex[at]
            at += 1
        else:
            at = token.end()
            inside = ""
            if token[0][0] == "(" and token[0][-1] != ")":  # which "(?i)" has
                end = _closing(regex, at)
                inside, at = regex[at:end], end + 1
            if token["name"]:
                plain += f"<{token['name']}>"
            elif token["plain"] and "|" not in inside:
                plain += _plain(inside)
            elif token["var"] or token["plain"] or token["group"] is not None:
                plain += "<var>"
            else:
                plain += token["char"] or ""
        while (quantifier := _QUANTIFIER.match(regex, at)) is not None:
            at = quantifier.end()
    return plain


def _closing(regex: str, at: int) -> int:
    """Return where the group ends that is open at `at`."""
    depth = 1
    for token in _BRACKET.finditer(regex, at):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return len(regex)
