"""Quart's resolver: a receiver of its first signal that leaves the matched rule of a request.

Quart takes its request out of sight when its context ends, before a middleware around the app can
look. So a receiver of `quart.request_started`, the one hook that nothing in an app can skip,
leaves the rule and the session in the scope, for all the Quart apps of the process.
"""

from __future__ import annotations

import quart
from quart.globals import request_ctx

from .base import FRAMEWORK_KEY, follow_copy
from .werkzeug import RuleRequest


def install() -> None:
    """Make every Quart app of this process leave its rule and its session; idempotent."""
    quart.request_started.connect(_started, weak=False)


# Not a plain function: Quart would run that in a thread.
async def _started(_app: quart.Quart, **_: object) -> None:
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    request = context.request
    follow_copy(request.scope)  # a dispatcher hands on a copy
    request.scope[FRAMEWORK_KEY] = RuleRequest(
        request.url_rule,
        getattr(request.routing_exception, "valid_methods", None),
        context.url_adapter,
        context.session,
    )
