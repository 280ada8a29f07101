"""Flask's resolver: leaves the matched rule and the session in environ as the response starts.

Flask ends the context of a request before a middleware around the app has its answer. The context
still stands as the response starts: for all the Flask apps of the process, and at a tenth of the
cost of Flask's signals, the rule and the session of the current context are left then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask

from .base import FRAMEWORK_KEY, ON_START_RESPONSE, report_fault
from .werkzeug import RuleRequest

try:
    from flask.globals import _cv_request as _context
except ImportError:  # later versions have one context for app and request
    from flask.globals import _cv_app as _context  # type: ignore[assignment]

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def install() -> None:
    """Make every Flask app of this process leave its rule and its session; idempotent."""
    if _leave not in ON_START_RESPONSE:
        ON_START_RESPONSE.append(_leave)
    # Where the exception goes on to the server, no response starts.
    flask.got_request_exception.connect(_failed, weak=False)


def _leave(environ: WSGIEnvironment) -> None:
    context: Any = _context.get(None)
    if context is None:
        return
    request = context.request
    if request.environ is not environ:
        return  # a request inside another one
    # Past the property, which marks the session as accessed ("Vary: Cookie"); before Flask 3.1.3
    # the session itself stands under its name.
    fields = vars(context)
    error = request.routing_exception
    environ[FRAMEWORK_KEY] = RuleRequest(
        request.url_rule,
        None if error is None else getattr(error, "valid_methods", None),
        context.url_adapter,
        fields["_session"] if "_session" in fields else fields.get("session"),
    )


def _failed(_app: flask.Flask, **_: object) -> None:
    try:
        _leave(flask.request.environ)
    except Exception:
        report_fault("Flask's route")
