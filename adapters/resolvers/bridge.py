"""A WSGI app behind an ASGI bridge: the outer ASGI middleware measures, and reads its scope.

What a framework leaves in environ is copied to the scope, as the response starts; the scope is left
in environ, for the exceptions that a framework answers.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .base import BRIDGED_KEY, FRAMEWORK_KEY, ON_START_RESPONSE

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.engine.faults import FaultLog

    from ..types import Headers


def scope_of(environ: WSGIEnvironment, start_response: StartResponse) -> MutableMapping[str, Any]:
    """Return the scope of a request that an ASGI app passes on to a WSGI app; else an empty one.

    a2wsgi leaves it in environ; Starlette and asgiref keep it beside `start_response`.
    """
    bridge = getattr(start_response, "__self__", None)
    scope = environ.get("asgi.scope") or getattr(bridge, "scope", None)
    return scope if isinstance(scope, dict) else {}  # what a server calls so may be another thing


def copying_to(
    scope: MutableMapping[str, Any],
    environ: WSGIEnvironment,
    start_response: StartResponse,
    faults: FaultLog,
) -> StartResponse:
    """Return a `start_response` that copies what the framework has left in environ to the scope."""
    environ[BRIDGED_KEY] = scope

    def started(
        status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info is None:
            write = start_response(status, headers)
        else:
            write = start_response(status, headers, exc_info)
        try:
            for call in ON_START_RESPONSE:
                call(environ)
            if FRAMEWORK_KEY in environ:
                scope[FRAMEWORK_KEY] = environ[FRAMEWORK_KEY]
        except Exception:
            faults.report("the route resolver")
        return write

    return started
