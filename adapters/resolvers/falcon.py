"""Falcon's resolver: a middleware of Falcon's own that leaves the matched template of a request.

Falcon keeps the template in its request object, which nothing outside the app sees. The component
that `install_in` adds stands innermost, so that it is the first to be asked when a response is
made, and it is asked also where a middleware of the app or an error handler made that response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import FRAMEWORK_KEY, MatchedRequest, follow_copy, report_fault, see_error

if TYPE_CHECKING:
    import falcon
    import falcon.asgi


def install_in(app: falcon.App[Any, Any] | falcon.asgi.App[Any, Any]) -> None:
    """Make a Falcon app, WSGI or ASGI, leave its routes for the resolvers; idempotent."""
    if not any(isinstance(each, _Component) for each in getattr(app, "_unprepared_middleware", ())):
        app.add_middleware(_Component())
        for kind in type(app).__mro__:
            if "_handle_exception" in vars(kind):
                _see_exceptions(kind)


def _see_exceptions(kind: Any) -> None:
    """Have each exception seen that apps of a class make an answer of, by whatever handler."""
    handle = kind._handle_exception  # WSGI: answers; ASGI: returns what is awaited
    if hasattr(handle, "_metricsmw"):
        return

    def handling(app: Any, req: Any, resp: Any, error: BaseException, *args: Any, **kw: Any) -> Any:
        try:
            see_error(req.scope if hasattr(req, "scope") else req.env, error)
        except Exception:
            report_fault("Falcon's exception")
        return handle(app, req, resp, error, *args, **kw)

    handling._metricsmw = True  # type: ignore[attr-defined]
    kind._handle_exception = handling


class _Component:
    """Both kinds of app take it: each calls the method of its kind."""

    def process_response(
        self, req: falcon.Request, resp: object, resource: object, req_succeeded: bool
    ) -> None:
        try:
            req.env[FRAMEWORK_KEY] = _FalconRequest(req.uri_template)
        except Exception:
            report_fault("Falcon's route")

    async def process_response_async(
        self, req: falcon.asgi.Request, resp: object, resource: object, req_succeeded: bool
    ) -> None:
        try:
            follow_copy(req.scope)
            req.scope[FRAMEWORK_KEY] = _FalconRequest(req.uri_template)
        except Exception:
            report_fault("Falcon's route")


class _FalconRequest(MatchedRequest):
    """The template; Falcon has no session."""

    __slots__ = ("_template",)

    def __init__(self, template: str | None) -> None:
        self._template = template

    def route(self) -> str | None:
        return self._template

    def user(self) -> None:
        return None
