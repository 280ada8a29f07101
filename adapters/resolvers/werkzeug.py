"""The `MatchedRequest` of Flask and Quart: the rule that Werkzeug's router found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

from .base import session_user

if TYPE_CHECKING:
    from werkzeug.routing import MapAdapter, Rule


class RuleRequest:
    """The rule and the session of a request's context.

    The context itself is not kept: it refers to environ, which would close a reference cycle.

    Args:
        rule: The rule that matched, or None.
        methods: Where the request was refused for its method: those that the path has a rule for.
        adapter: Finds the rule of another method.
        session: The session.
    """

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
        """Return the rule that matched, or would have with another method, or None."""
        rule = self._rule
        if rule is None and self._methods and self._adapter is not None:
            try:
                rule, _ = self._adapter.match(method=self._methods[0], return_rule=True)
            except HTTPException:
                return None  # with that method the path leads elsewhere: it is no rule's
        return None if rule is None else rule.rule

    def user(self) -> object | None:
        """Return the user that the session names, or None."""
        return session_user(self._session)
