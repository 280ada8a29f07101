"""Pyramid's resolver: wraps the handling of each request, so that the matched route is left.

Pyramid keeps the route in its request object, which nothing outside the app sees. A subscriber to
its events would see it too, but each app has its own, and the first one switches all of the app's
events on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyramid.router import Router  # type: ignore[import-untyped]

from .base import (
    FRAMEWORK_KEY,
    MatchedRequest,
    follow_copy,
    report_fault,
    see_error,
    session_user,
)

if TYPE_CHECKING:
    from pyramid.request import Request  # type: ignore[import-untyped]


def install() -> None:
    """Make every Pyramid app of this process leave its route and its session; idempotent."""
    invoke = Router.invoke_request
    if hasattr(invoke, "_metricsmw"):
        return

    def invoke_request(router: Router, request: Request, *args: Any, **kwargs: Any) -> Any:
        own = _PyramidRequest()
        outer: object = None
        try:
            # What is mounted in a view is handed a copy of environ, and finds this there.
            outer = request.environ.get(FRAMEWORK_KEY)
            if outer is None:
                follow_copy(request.environ)
            request.environ[FRAMEWORK_KEY] = own
        except Exception:
            report_fault("Pyramid's route")
        try:
            return invoke(router, request, *args, **kwargs)
        finally:
            try:
                seen = vars(request)
                own.matched = seen.get("matched_route")
                own.session = seen.get("session")
                see_error(request.environ, seen.get("exception"))
                if isinstance(outer, _PyramidRequest):
                    outer.mounted = own
            except Exception:
                report_fault("Pyramid's route")

    invoke_request._metricsmw = True  # type: ignore[attr-defined]
    Router.invoke_request = invoke_request


class _PyramidRequest(MatchedRequest):
    """The `MatchedRequest` of Pyramid: the route, the session, and that of a mounted app.

    The session is None where the app has not asked for it. The request itself is not kept: it
    refers to environ, which would close a reference cycle.
    """

    __slots__ = ("matched", "mounted", "session")

    def __init__(self) -> None:
        self.matched: Any = None
        self.mounted: _PyramidRequest | None = None
        self.session: object = None

    def route(self) -> str | None:
        if self.matched is None:
            return None
        # A pattern may be written without its first slash.
        pattern: str = "/" + self.matched.pattern.lstrip("/")
        mount, star, _ = pattern.rpartition("*")
        if not star or self.mounted is None:
            return pattern
        below = self.mounted.route()
        return None if below is None else mount.rstrip("/") + below

    def user(self) -> object | None:
        return session_user(self.session)
