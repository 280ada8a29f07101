"""Falcon's resolver: leaves the template of the route that Falcon has found.

Falcon keeps the template in its request object, which nothing outside the app sees. It is left as
Falcon looks for what answers a request: by every Falcon app of the process, wherever it stands.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

from falcon.app import App

from .base import FRAMEWORK_KEY, MatchedRequest, follow_copy, report_fault, see_error

if TYPE_CHECKING:
    import falcon


def install() -> None:
    """Make every Falcon app of this process, WSGI or ASGI, leave its routes; idempotent."""
    _leave_templates()
    _see_exceptions(App)
    if "falcon.asgi.app" in sys.modules:
        _see_exceptions(sys.modules["falcon.asgi.app"].App)


def _leave_templates() -> None:
    kind: Any = App
    get = kind._get_responder
    if hasattr(get, "_metricsmw"):
        return

    @wraps(get)
    def get_responder(app: App[Any, Any], req: falcon.Request) -> Any:
        found = get(app, req)
        try:
            if not req.is_websocket:
                carrier = _carrier_of(req)
                follow_copy(carrier)
                carrier[FRAMEWORK_KEY] = _FalconRequest(found[3])
        except Exception:
            report_fault("Falcon's route")
        return found

    get_responder._metricsmw = True  # type: ignore[attr-defined]
    kind._get_responder = get_responder


def _see_exceptions(kind: Any) -> None:
    """Have each exception seen that apps of a class make an answer of, by whatever handler."""
    handle = kind._handle_exception  # WSGI: answers; ASGI: returns what is awaited
    if hasattr(handle, "_metricsmw"):
        return

    @wraps(handle)
    def handling(app: Any, req: Any, resp: Any, error: BaseException, *args: Any, **kw: Any) -> Any:
        try:
            see_error(_carrier_of(req), error)
        except Exception:
            report_fault("Falcon's exception")
        return handle(app, req, resp, error, *args, **kw)

    handling._metricsmw = True  # type: ignore[attr-defined]
    kind._handle_exception = handling


def _carrier_of(req: Any) -> dict[str, Any]:
    carrier: dict[str, Any] = req.scope if hasattr(req, "scope") else req.env
    return carrier


class _FalconRequest(MatchedRequest):
    """The template; Falcon has no session."""

    __slots__ = ("_template",)

    def __init__(self, template: str | None) -> None:
        self._template = template

    def route(self) -> str | None:
        return self._template

    def user(self) -> None:
        return None
