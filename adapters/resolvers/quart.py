"""Quart's resolver: a receiver of its first signal that leaves the matched rule of a request.

Quart takes its request out of sight when its context ends, before a middleware around the app can
look. So a receiver of `quart.request_started`, the one hook that nothing in an app can skip,
leaves the rule and the session in the scope, for all the Quart apps of the process.
"""

from __future__ import annotations

from typing import Any

import quart

from .base import FRAMEWORK_KEY, follow_copy, report_fault, see_error
from .werkzeug import RuleRequest, rule_of_another_method, see_aborts

try:
    from quart.globals import _cv_request as _context
except ImportError:  # since 0.23 app and request have one context
    from quart.globals import _cv_app as _context  # type: ignore[assignment]


def install() -> None:
    """Make every Quart app of this process leave its rule and its session; idempotent."""
    quart.request_started.connect(_started, weak=False)
    quart.got_request_exception.connect(_failed, weak=False)
    see_aborts(quart.Quart, lambda: quart.request.scope)


# Not a plain function: Quart would run that in a thread.
async def _started(_app: quart.Quart, **_: object) -> None:
    try:
        context: Any = _context.get()
        request = context.request
        follow_copy(request.scope)  # a dispatcher hands on a copy
        # Past the property, which marks the session as accessed ("Vary: Cookie"); before 0.23 the
        # session itself stands under its name.
        fields = vars(context)
        request.scope[FRAMEWORK_KEY] = matched = RuleRequest()
        matched.rule = request.url_rule or rule_of_another_method(
            request.routing_exception, context.url_adapter
        )
        matched.session = fields["_session"] if "_session" in fields else fields.get("session")
    except Exception:
        report_fault("Quart's route")


async def _failed(_app: quart.Quart, exception: BaseException | None = None, **_: object) -> None:
    try:
        see_error(quart.request.scope, exception)
    except Exception:
        report_fault("Quart's exception")
