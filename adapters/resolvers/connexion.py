"""Connexion's resolver: has the measurements read the scope that Connexion's routing has matched.

Connexion runs each request through several Starlette routers, each behind the `default` of the one
before, and hands a copy of the scope from one to the next: the first one's is what others see.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from connexion.middleware.routing import RoutingOperation  # type: ignore[import-untyped]

from .base import (
    FRAMEWORK_KEY,
    MEASUREMENT_PREFIX,
    Carrier,
    ForwardedRequest,
    report_fault,
    session_user,
)
from .starlette import template_of

if TYPE_CHECKING:
    from ..types import Receive, Scope, Send


def install() -> None:
    """Make every Connexion app of this process leave its operations; idempotent."""
    call = RoutingOperation.__call__
    if hasattr(call, "_metricsmw"):
        return

    @wraps(call)
    async def matched(
        operation: RoutingOperation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            if operation.operation_id is not None:
                for key, measurement in scope.items():
                    carrier: Any = getattr(measurement, "carrier", None)
                    if key.startswith(MEASUREMENT_PREFIX) and carrier:
                        carrier[FRAMEWORK_KEY] = ForwardedRequest(scope, template_of, _user_of)
        except Exception:
            report_fault("Connexion's route")
        await call(operation, scope, receive, send)

    matched._metricsmw = True  # type: ignore[attr-defined]
    RoutingOperation.__call__ = matched


def _user_of(scope: Carrier) -> object | None:
    return session_user(scope.get("session"))
