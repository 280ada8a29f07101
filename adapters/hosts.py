"""The default resolvers: which route and which user a finished request had, by what its host left.

They read environ and scope after the response and import no framework. A host that leaves
its route where it can be read (Starlette, FastAPI, Litestar, Bottle) is read there. A host that
cleans up after itself (Flask, Quart) or keeps to itself (Django, Falcon, Pyramid) is asked by its
glue module to leave a `HostRequest` under `HOST_KEY`.

A template is what the app's author wrote, with the prefix the app is mounted under, as a client
sees it: never a raw path. None means that no route matched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Not "metricsmw.…": keys of that form mark a request as measured.
HOST_KEY = "metricsmw_host"

# Called with environ as a WSGI response starts: what asks hosts that forget the request once they
# have answered.
AT_START: list[Callable[[WSGIEnvironment], None]] = []

# What stands for the paths below an app that is mounted and not looked into.
MOUNTED = "/{path:path}"

# What apps, Flask-Login and Django keep the logged-in user under, in this order.
SESSION_KEYS = ("user", "user_id", "_user_id", "_auth_user_id")
# Where session["user"] is itself a mapping (OpenID's userinfo), what tells users apart.
_NAMES = ("id", "user_id", "sub", "username", "email", "name")


class HostRequest(Protocol):
    """What the glue of a host leaves of a request in environ or scope."""

    def route(self) -> str | None:
        """Return the template without the prefix the app is mounted under, or None."""

    def user(self) -> object | None:
        """Return the session's user as far as the app has loaded it, or None."""


class Elsewhere:
    """Stands for what a host leaves in the copy of environ or scope that it was handed."""

    __slots__ = ("_copy", "_route", "_user")

    def __init__(
        self,
        copy: Mapping[str, Any],
        route: Callable[[Any], str | None],
        user: Callable[[Any], object],
    ) -> None:
        self._copy = copy
        self._route = route
        self._user = user

    def route(self) -> str | None:
        """With the prefix, unlike that of other hosts: it is the copy's."""
        return self._route(self._copy)

    def user(self) -> object | None:
        return self._user(self._copy)


def mount_path(path: str) -> str:
    """Return the path of a sub-app without a slash at its end; `ValueError` for one that is bad."""
    mount = path.rstrip("/") if isinstance(path, str) else ""
    if not mount.startswith("/"):
        raise ValueError(
            f"path must start with a slash and go on, like '/api/metrics', got {path!r}"
        )
    return mount


def listen() -> None:
    """Ask the hosts that need asking to leave their routes; only those already imported."""
    if "flask" in sys.modules:
        from . import flask

        flask.listen()
    if "quart" in sys.modules:
        from . import quart

        quart.listen()
    if "pyramid.router" in sys.modules:
        from . import pyramid

        pyramid.listen()


def route_of_environ(environ: WSGIEnvironment) -> str | None:
    """Return the route template of a WSGI request that was answered, or None."""
    host: HostRequest | None = environ.get(HOST_KEY)
    if type(host) is Elsewhere:
        return host.route()
    prefix: str = environ.get("SCRIPT_NAME", "")
    route: str | None
    if host is None:
        bottle = environ.get("bottle.route")
        route = bottle.rule if bottle is not None else None
    else:
        route = host.route()
        if "bottle.route" in environ:  # Bottle takes its mount out of SCRIPT_NAME again
            mount = environ["bottle.route"].config.get("mountpoint.prefix", "")
            prefix = prefix.rstrip("/") + mount
    if route is None:
        return None
    return prefix.rstrip("/") + route if prefix else route


def route_of_scope(scope: Mapping[str, Any]) -> str | None:
    """Return the route template of an ASGI request that was answered, or None."""
    host: HostRequest | None = scope.get(HOST_KEY)
    if type(host) is Elsewhere:
        return host.route()
    if "path_template" in scope and scope["path_template"] == "":
        return _below_litestar(scope)
    if "router" in scope:
        template = _starlette()(scope)
        if template is None and "fastapi" in scope:
            template = _fastapi()(scope)
        if template is None:
            return None
        if host is None and not ("path_template" in scope and template.endswith(MOUNTED)):
            return template
        prefix = template.removesuffix(MOUNTED)
    else:
        prefix = scope.get("root_path", "")
        if "litestar_app" in scope and "path_template" in scope:
            prefix = _above_litestar(scope, prefix)
    route = host.route() if host is not None else scope.get("path_template")  # Litestar's
    if not route:
        return None
    return prefix.rstrip("/") + route if prefix else route


def _above_litestar(scope: Mapping[str, Any], root: str) -> str:
    """Return the path of a Litestar in another, which cuts it off `path`; it has no parameters."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None or len(raw) == len(scope["path"]):
        return root
    whole, path = unquote(raw.decode("latin-1")).rstrip("/"), scope["path"].rstrip("/")
    above = whole.removesuffix(path)
    return above if whole.endswith(path) and above.startswith(root) else root


def _below_litestar(scope: Mapping[str, Any]) -> str | None:
    """Return the template of what Litestar has mounted, for which its own is empty."""
    app, handler = scope["litestar_app"], scope["route_handler"]
    is_known = HOST_KEY in scope or scope["app"] is not app  # what is mounted there
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
        return route_of_scope({**outer, "path_template": mount + MOUNTED})
    inner = {key: value for key, value in scope.items() if key != "path_template"}
    template = route_of_scope(inner)
    return None if template is None else root + mount + template.removeprefix(root)


@cache
def _starlette() -> Callable[[Mapping[str, Any]], str | None]:
    from .starlette import template_of

    return template_of


@cache
def _fastapi() -> Callable[[Mapping[str, Any]], str | None]:
    from .fastapi import template_of

    return template_of


def user_of_environ(environ: WSGIEnvironment) -> object | None:
    """Return the user of a WSGI request that was answered: of its session, else REMOTE_USER."""
    host: HostRequest | None = environ.get(HOST_KEY)
    user = host.user() if host is not None else None
    return user or environ.get("REMOTE_USER") or None


def user_of_scope(scope: Mapping[str, Any]) -> object | None:
    """Return the session's user of an ASGI request that was answered, or None."""
    host: HostRequest | None = scope.get(HOST_KEY)
    return host.user() if host is not None else session_user(scope.get("session"))


def session_user(session: object) -> object | None:
    """Return the user a session names, or None; reads without marking the session as accessed."""
    # By its real type, and past its own methods: a lazy session would load itself for
    # isinstance(), and a tracking one would add "Vary: Cookie" to the app's answer for get().
    if not issubclass(type(session), dict) or not dict.__len__(session):  # type: ignore[arg-type]
        return None
    for key in SESSION_KEYS:
        value = dict.get(session, key)  # type: ignore[call-overload]
        if value is not None and isinstance(value, Mapping):
            value = next((value[name] for name in _NAMES if value.get(name)), None)
        if value:
            return value  # type: ignore[no-any-return]
    return None


def session_identity(session: object) -> str | None:
    """Return the name of a session's user, as an identity for the sub-app, or None."""
    user = session_user(session)
    return None if user is None else str(user)
