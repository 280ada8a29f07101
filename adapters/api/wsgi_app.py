"""The sub-app as a WSGI app, on Werkzeug: translation only, `handlers` has the routes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from werkzeug import Response as WerkzeugResponse
from werkzeug.datastructures import EnvironHeaders

from metricsmw import MetricsMonitor

from ..arguments import given_monitor
from ..measurement import exclude_request
from .claims import Claim, mark
from .handlers import Handlers
from .messages import Request, nobody
from .policies import Policy, ResetRule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..types import EnvironIdentity, Thresholds


def metrics_app(
    monitor: MetricsMonitor | None = None,
    auth: Policy | None = None,
    identity: EnvironIdentity | None = None,
    health_thresholds: Thresholds | None = None,
    health_status: int = 503,
    reset: ResetRule = True,
) -> WSGIApplication:
    """Return the sub-app, to be mounted at any path.

    Args:
        monitor: None means the server-wide one.
        auth: Who may read, see `as_policy`.
        identity: Returns the app's logged-in session user for an environ, or None. Without it
            nobody is logged in.
        health_thresholds: Snapshot fields that have to stay below these numbers; while one does
            not, `/health` answers `degraded`.
        health_status: The HTTP status of that answer, 503 or 200.
        reset: Who may reset: True for whoever may read, "token" for whoever has the token, False
            for nobody.
    """
    monitor = given_monitor(monitor)
    if health_thresholds is not None:
        monitor.set_health_thresholds(health_thresholds, health_status)
    handlers = Handlers(monitor, auth, reset=reset)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exclude_request(environ)
        answer = handlers.handle(
            Request(
                environ.get("REQUEST_METHOD", "GET").upper(),
                _text(environ.get("PATH_INFO", "")),
                environ.get("QUERY_STRING", ""),
                {name.lower(): value for name, value in EnvironHeaders(environ)},
                nobody if identity is None else partial(identity, environ),
                mount=_text(environ.get("SCRIPT_NAME", "")),
            )
        )
        # A list: of bytes Werkzeug would set the length, which for HEAD is not that of the body.
        response = WerkzeugResponse([answer.body], answer.status, answer.headers)
        return response(environ, start_response)

    mark(app, Claim(auth, reset))
    return app


def _text(path: str) -> str:
    # WSGI hands paths over as bytes in the guise of Latin-1. Werkzeug's own `Request.path` cannot
    # tell the mount with a slash from the mount without.
    return path.encode("latin-1", "replace").decode("utf-8", "replace")
