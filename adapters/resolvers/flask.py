"""Flask's resolver: leaves the matched rule and the session in environ as the response starts.

Flask ends the context of a request before a middleware around the app has its answer. The context
still stands as the response starts: for all the Flask apps of the process, and at a tenth of the
cost of Flask's signals, the rule and the session of the current context are left then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from .base import (
    FRAMEWORK_KEY,
    MEASUREMENT_KEYS,
    ON_START_RESPONSE,
    follow_copy,
    report_fault,
    see_error,
)
from .werkzeug import RuleRequest, rule_of_another_method, see_aborts

try:
    from flask.ctx import RequestContext as Context
    from flask.globals import _cv_request as _context
except ImportError:  # later versions have one context for app and request
    from flask.ctx import AppContext as Context  # type: ignore[assignment]
    from flask.globals import _cv_app as _context  # type: ignore[assignment]

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

get_context = _context.get  # which takes longer to look up than to call
# Whether the session of a context is a property, which marks it as accessed ("Vary: Cookie").
_IS_PROPERTY = hasattr(Context, "session")


def install() -> None:
    """Make every Flask app of this process leave its rule and its session; idempotent."""
    if _leave not in ON_START_RESPONSE:
        ON_START_RESPONSE.append(_leave)
    # Where the exception goes on to the server, no response starts; else the answer is one to it.
    flask.got_request_exception.connect(_failed, weak=False)
    # Of those that are pages of errors themselves there is no signal.
    see_aborts(flask.Flask, lambda: flask.request.environ)


def _leave(environ: WSGIEnvironment) -> None:
    context: Any = get_context(None)
    if context is None:
        return
    request = context.request
    carrier = request.environ
    if carrier is not environ:
        if not any(key in environ and carrier.get(key) is environ[key] for key in MEASUREMENT_KEYS):
            return  # a request inside another one
        follow_copy(carrier)
    carrier[FRAMEWORK_KEY] = matched = RuleRequest()
    rule = request.url_rule
    if rule is None:
        rule = rule_of_another_method(request.routing_exception, context.url_adapter)
    matched.rule = rule
    matched.session = context._session if _IS_PROPERTY else context.session


def _failed(_app: flask.Flask, exception: BaseException | None = None, **_: object) -> None:
    try:
        environ = flask.request.environ
        see_error(environ, exception)
        _leave(environ)
    except Exception:
        report_fault("Flask's route")
