"""The numbers for Prometheus as an app of its own, to be mounted where scrapers look: `/metrics`.

It answers as `GET /api/metrics/prometheus` does, at whatever path below its mount it is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from metricsmw import MetricsMonitor

    from .api.policies import Policy
    from .types import ASGIApp, Receive, Scope, Send

ROUTE = "/prometheus"


class PrometheusApp:
    """An app for both WSGI and ASGI: which of them it is called by says how it answers."""

    def __init__(self, monitor: MetricsMonitor | None, auth: Policy | None) -> None:
        self._monitor = monitor
        self._auth = auth
        self._wsgi: WSGIApplication | None = None
        self._asgi: ASGIApp | None = None

    @overload
    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse, /
    ) -> Iterable[bytes]: ...
    @overload
    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[None]: ...
    def __call__(self, carrier, *rest):  # type: ignore[no-untyped-def]
        """Answer a request."""
        # Here, for whoever imports `prometheus_app` beside `wrap` and mounts none.
        from .measurement import exclude_request

        if carrier.get("type") != "lifespan":
            exclude_request(carrier)  # here, as what is changed below is a copy
        if len(rest) == 1:
            return self._over_wsgi({**carrier, "PATH_INFO": ROUTE}, *rest)
        if "path" in carrier:
            carrier = {**carrier, "path": carrier.get("root_path", "") + ROUTE}
        return self._over_asgi(carrier, *rest)

    def _over_wsgi(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if self._wsgi is None:
            from .wsgi import metrics_app

            self._wsgi = metrics_app(self._monitor, self._auth)
        return self._wsgi(environ, start_response)

    def _over_asgi(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self._asgi is None:
            from .asgi import metrics_app

            self._asgi = metrics_app(self._monitor, self._auth)
        return self._asgi(scope, receive, send)


def prometheus_app(
    monitor: MetricsMonitor | None = None, auth: Policy | None = None
) -> PrometheusApp:
    """Return an app, WSGI and ASGI in one, that answers scrapers; to be mounted at ``/metrics``.

    Args:
        monitor: None means the one shared by all workers of the server.
        auth: Who may read, a policy of `metricsmw.adapters.auth`; None means whoever is logged in
            to the app's own session, or has the token in METRICSMW_TOKEN.
    """
    return PrometheusApp(monitor, auth)
