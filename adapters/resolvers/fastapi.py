"""FastAPI's resolver: the one kind of route that Starlette does not have, static front ends."""

from __future__ import annotations

from ..paths import split
from .base import MOUNTED, Carrier
from .starlette import mount_of


def template_of(scope: Carrier) -> str | None:
    """Return the template of a front end's static files (`app.frontend`), which has no endpoint."""
    below: str | None = scope["fastapi"].get("frontend_path")
    if below is None:
        return None
    root, path = split(scope["path"], scope.get("root_path", ""))
    if "app_root_path" in scope:  # in a mounted app, whose `root_path` holds the raw path
        mount = mount_of(scope)
        if mount is None:
            return None
        root = scope["app_root_path"].rstrip("/") + mount
    template: str = root + path[: len(path) - len(below)].rstrip("/") + MOUNTED
    return template
