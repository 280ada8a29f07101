"""Bottle's resolver: the rule of the route that Bottle leaves in environ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import join, mount_of_environ

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
