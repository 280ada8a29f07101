"""Quart glue: a receiver of its first signal that leaves the matched rule of a request.

Quart takes its request out of sight when its context ends, before a middleware around the app can
look. So a receiver of `quart.request_started`, the one hook that nothing in an app can skip,
leaves the rule and the session in the scope, for all the Quart apps of the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import quart
from quart.globals import request_ctx

from .hosts import HOST_KEY, session_user

if TYPE_CHECKING:
    from werkzeug.routing import MapAdapter, Rule


def listen() -> None:
    """Have every Quart app of this process leave its rule and its session; idempotent."""
    quart.request_started.connect(_started, weak=False)


# Not a plain function: Quart would run that in a thread.
async def _started(_app: quart.Quart, **_: object) -> None:
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    request = context.request
    request.scope[HOST_KEY] = _QuartRequest(
        request.url_rule,
        getattr(request.routing_exception, "valid_methods", None),
        context.url_adapter,
        context.session,
    )


class _QuartRequest:
    """What a request had in its context; the context itself would tie a knot with the scope."""

    __slots__ = ("_adapter", "_methods", "_rule", "_session")

    def __init__(
        self,
        rule: Rule | None,
        methods: list[str] | None,
        adapter: MapAdapter | None,
        session: object,
    ) -> None:
        self._rule = rule
        self._methods = methods
        self._adapter = adapter
        self._session = session

    def route(self) -> str | None:
        rule = self._rule
        if rule is None and self._methods and self._adapter is not None:
            # 405: the path has a rule, under another method.
            rule, _ = self._adapter.match(method=self._methods[0], return_rule=True)
        return None if rule is None else rule.rule

    def user(self) -> object | None:
        return session_user(self._session)
