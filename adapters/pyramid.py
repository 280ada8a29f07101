"""Pyramid glue: a wrapper around a router's handler that leaves the matched route of a request.

Pyramid keeps the route in its request object, which nothing outside the app sees. A subscriber to
its events would see it too, but the first one switches all of the app's events on, and not every
request reaches the later ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hosts import HOST_KEY, session_user

if TYPE_CHECKING:
    from pyramid.request import Request  # type: ignore[import-untyped]
    from pyramid.router import Router  # type: ignore[import-untyped]

_LEAVES = "_metricsmw_leaves_routes"


def leave_routes(app: Router) -> None:
    """Have what `make_wsgi_app()` made leave its routes for the resolvers; idempotent."""
    fields = vars(app)
    if _LEAVES in fields:
        return
    fields[_LEAVES] = True
    handle = app.handle_request

    def handle_request(request: Request) -> Any:
        try:
            return handle(request)
        finally:
            seen = vars(request)
            # Not the request itself, which would tie a knot with environ.
            request.environ[HOST_KEY] = _PyramidRequest(
                seen.get("matched_route"), seen.get("session")
            )

    app.handle_request = handle_request


class _PyramidRequest:
    """The matched route, and the session where the app has asked for it."""

    __slots__ = ("_route", "_session")

    def __init__(self, route: Any, session: object) -> None:
        self._route = route
        self._session = session

    def route(self) -> str | None:
        # A pattern may be written without its first slash.
        return None if self._route is None else "/" + self._route.pattern.lstrip("/")

    def user(self) -> object | None:
        return session_user(self._session)
