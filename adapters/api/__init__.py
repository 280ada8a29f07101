"""The sub-app: its requests and responses, routes and policies, and the apps that serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metricsmw.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ..types import ASGIApp


def wsgi_maker() -> Callable[..., WSGIApplication]:
    """Return what makes the WSGI app. Raises `MissingExtraError` without Werkzeug."""
    require("the metrics' WSGI app", "wsgi")
    from .wsgi_app import metrics_app

    return metrics_app


def asgi_maker() -> Callable[..., ASGIApp]:
    """Return what makes the ASGI app. Raises `MissingExtraError` without Starlette."""
    require("the metrics' ASGI app", "asgi")
    from .asgi_app import metrics_app

    return metrics_app
