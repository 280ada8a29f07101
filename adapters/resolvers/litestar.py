"""Litestar's resolver: the template that Litestar leaves in scope, and the apps that it mounts."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from .base import FRAMEWORK_KEY, MOUNTED, Carrier


def mount_of(scope: Carrier, root: str) -> str:
    """Return the path that a Litestar app is mounted at in another Litestar app.

    The outer app cuts it off `path`, and its template has no parameters.

    Args:
        scope: The scope of an answered request.
        root: The scope's `root_path`, which is returned where there is no outer app.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None or len(raw) == len(scope["path"]):
        return root
    whole, path = unquote(raw.decode("latin-1")).rstrip("/"), scope["path"].rstrip("/")
    mount = whole.removesuffix(path)
    return mount if whole.endswith(path) and mount.startswith(root) else root


def template_of_mounted(scope: Carrier, template_of: Callable[[Carrier], str | None]) -> str | None:
    """Return the template of a request to an app that Litestar has mounted.

    Litestar's own template is "" there.

    Args:
        scope: The scope of an answered request.
        template_of: Resolves the scope as another framework left it.
    """
    app, handler = scope["litestar_app"], scope["route_handler"]
    is_known = FRAMEWORK_KEY in scope or scope["app"] is not app  # what is mounted there
    root: str = scope.get("root_path", "")
    if is_known:
        root = scope.get("app_root_path", root)  # without the mounts further in
    path = unquote(scope["raw_path"].decode("latin-1")).removeprefix(root)
    mounts = [
        route.path
        for route in app.routes
        if getattr(route, "route_handler", None) is handler and path.startswith(route.path)
    ]
    if not mounts:
        return None
    mount = max(mounts, key=len)
    if not is_known:
        outer = {key: value for key, value in scope.items() if key != "litestar_app"}
        return template_of({**outer, "path_template": mount + MOUNTED})
    inner = {key: value for key, value in scope.items() if key != "path_template"}
    template = template_of(inner)
    return None if template is None else root + mount + template.removeprefix(root)
