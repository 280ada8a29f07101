"""The `MatchedRequest` of Flask and Quart: the rule that Werkzeug's router found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException

from .base import Carrier, MatchedRequest, report_fault, see_error, session_user

if TYPE_CHECKING:
    from werkzeug.routing import MapAdapter, Rule


class RuleRequest(MatchedRequest):
    """The rule and the session of a request's context.

    The context itself is not kept: it refers to environ, which would close a reference cycle.

    Attributes:
        rule: The rule that matched, or would have with another method; None: there is none.
        session: The session.
    """

    __slots__ = ("rule", "session")

    rule: Rule | None
    session: object

    def route(self) -> str | None:
        """Return the rule's template, or None."""
        rule = self.rule
        return None if rule is None else rule.rule

    def user(self) -> str | None:
        """Return the user that the session names, or None."""
        return session_user(self.session)

    def both(self) -> tuple[str | None, str | None]:
        """Return route and user."""
        rule = self.rule
        return None if rule is None else rule.rule, session_user(self.session)


def rule_of_another_method(error: object, adapter: MapAdapter | None) -> Rule | None:
    """Return the rule that a request would have matched with another method, or None.

    Args:
        error: What refused the request, or None.
        adapter: Finds the rule of another method.
    """
    methods: list[str] | None = getattr(error, "valid_methods", None)
    if not methods or adapter is None:
        return None
    try:
        rule, _ = adapter.match(method=methods[0], return_rule=True)
    except HTTPException:
        return None  # with that method the path leads elsewhere: it is no rule's
    return rule


def see_aborts(kind: Any, carrier: Callable[[], Carrier]) -> None:
    """Have each exception seen that says itself which answer the server fails with; idempotent.

    Args:
        kind: The class of apps.
        carrier: Returns environ or scope of the current request.
    """
    handle = kind.handle_http_exception  # Flask: answers; Quart: returns what is awaited
    if hasattr(handle, "_metricsmw"):
        return

    def handle_http_exception(app: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            error = args[-1] if args else None
            if isinstance(error, HTTPException):
                code = error.code or getattr(error.response, "status_code", None)
                if code is not None and code >= 500:
                    see_error(carrier(), error)
        except Exception:
            report_fault("an aborted request")
        return handle(app, *args, **kwargs)

    handle_http_exception._metricsmw = True  # type: ignore[attr-defined]
    kind.handle_http_exception = handle_http_exception
