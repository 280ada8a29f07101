"""Bottle's resolver: the rule of the route that Bottle leaves in environ."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .base import join, mount_of_environ, report_fault, see_error

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def template_of(environ: WSGIEnvironment) -> str | None:
    """Return the template of the route that Bottle chose, or None."""
    route = environ["bottle.route"]
    return None if route is None else join(mount_of_environ(environ), route.rule)


def mount_of(environ: WSGIEnvironment) -> str:
    """Return the path that Bottle has mounted another WSGI app at, or ""."""
    mount: str = environ["bottle.route"].config.get("mountpoint.prefix", "")
    return mount


def install() -> None:
    """Have each exception seen that Bottle makes a page of errors of; idempotent."""
    bottle: Any = sys.modules["bottle"]
    apply = bottle.HTTPError.apply
    if hasattr(apply, "_metricsmw"):
        return

    def seeing(page: Any, response: Any) -> Any:
        try:
            error = page.exception if isinstance(page.exception, BaseException) else page
            # A page that was not raised is of no exception.
            if page.status_code >= 500 and error.__traceback__ is not None:
                see_error(bottle.request.environ, error)
        except Exception:
            report_fault("Bottle's exception")
        return apply(page, response)

    seeing._metricsmw = True  # type: ignore[attr-defined]
    bottle.HTTPError.apply = seeing
