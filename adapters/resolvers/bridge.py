"""Bridges between WSGI and ASGI: what is measured on one side is answered on the other.

A bridge makes a new environ of the scope, or a new scope of the environ. It is made to put the
measurement there, too, so that what stands behind it neither counts the request again nor is out of
sight: by the bridge's own class or function, which is replaced once in the process. What a WSGI
framework leaves in environ is then left in the scope, as the response starts.

A bridge that is not known here may leave the scope where `scope_of` finds it: then a middleware
around the WSGI app does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeAlias

from ..walks import objects_in
from .base import (
    FRAMEWORK_KEY,
    MATCH_KEY,
    MEASUREMENT_KEYS,
    ON_START_RESPONSE,
    MatchedRequest,
    follow_copy,
    mount_of_environ,
    report_fault,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..types import Headers, Scope

# Modules of bridges from ASGI to WSGI: the class that an app names, the class of one request, and
# the attribute of that one that has the WSGI app.
TO_WSGI = {
    "a2wsgi.wsgi": ("WSGIMiddleware", "WSGIResponder", "app"),
    "asgiref.wsgi": ("WsgiToAsgi", "WsgiToAsgiInstance", "wsgi_application"),
    "starlette.middleware.wsgi": ("WSGIMiddleware", "WSGIResponder", "app"),
    "uvicorn.middleware.wsgi": ("_WSGIMiddleware", "WSGIResponder", "app"),
}
# Modules of bridges from WSGI to ASGI: the class that an app names, and the function that makes the
# scope.
TO_ASGI = {"a2wsgi.asgi": ("ASGIMiddleware", "build_scope")}
MODULES = (*TO_WSGI, *TO_ASGI)

# Given environ of an answered request, returns template and user, each None where there is none.
Read: TypeAlias = Callable[[Any], "tuple[str | None, object | None]"]


class BridgedRequest(MatchedRequest):
    """What a WSGI framework has left in environ, for the scope.

    It holds no environ, which may hold the scope.
    """

    __slots__ = ("_route", "_user")

    def __init__(self, route: str | None, user: object | None) -> None:
        self._route = route
        self._user = user

    def route(self) -> str | None:
        """Return the template below the bridge, or None."""
        return self._route

    def user(self) -> object | None:
        """Return the user that the app had loaded as the response started, or None."""
        return self._user


def link(module: str, read: Read) -> None:
    """Make every bridge of an imported module pass on what is measured; idempotent."""
    if module in TO_WSGI:
        _, name, attribute = TO_WSGI[module]
        _link_responder(getattr(sys.modules[module], name), attribute, read)
    else:
        _link_scopes(sys.modules[module], TO_ASGI[module][1])


def _link_responder(kind: Any, attribute: str, read: Read) -> None:
    init = kind.__init__
    if hasattr(init, "_metricsmw"):
        return

    @wraps(init)
    def __init__(self: Any, *args: Any, **settings: Any) -> None:  # noqa: N807
        init(self, *args, **settings)
        try:
            setattr(self, attribute, partial(_call, read, getattr(self, attribute)))
        except Exception:
            report_fault("a bridge to WSGI")

    __init__._metricsmw = True  # type: ignore[attr-defined]
    kind.__init__ = __init__


def _link_scopes(module: Any, name: str) -> None:
    build: Any = getattr(module, name)
    if hasattr(build, "_metricsmw"):
        return

    @wraps(build)
    def build_scope(environ: WSGIEnvironment) -> Scope:
        scope: Scope = build(environ)
        try:
            _carry(environ, scope)
            for key in MEASUREMENT_KEYS:
                if scope.get(key) is not None:
                    scope[key].follow_copy(scope)
        except Exception:
            report_fault("a bridge to ASGI")
        return scope

    build_scope._metricsmw = True  # type: ignore[attr-defined]
    setattr(module, name, build_scope)


def _call(
    read: Read, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Call the WSGI app behind a bridge."""
    mount = mount_of_environ(environ)
    is_measured = False
    try:
        scope = scope_of(environ, start_response)
        is_measured = any(key in scope for key in MEASUREMENT_KEYS)
        if is_measured:
            start_response = copying_to(scope, environ, start_response, read)
    except Exception:
        report_fault("a bridge to WSGI")
    try:
        return app(environ, start_response)
    except BaseException:
        if is_measured:
            _leave(scope, environ, mount, read)
        raise


def _carry(source: MutableMapping[str, Any], target: MutableMapping[str, Any]) -> None:
    """Put the measurements of a request into what a bridge has made of its carrier."""
    target.update((key, source[key]) for key in (*MEASUREMENT_KEYS, MATCH_KEY) if key in source)


def bridge_in(app: object, kind: type) -> Any:
    """Return the bridge next inside an app behind which an object of a class stands, or None."""
    named = {(module, names[0]) for module, names in {**TO_WSGI, **TO_ASGI}.items()}
    for each in objects_in(app):
        names = {(base.__module__, base.__qualname__) for base in type(each).__mro__}
        if names & named and any(isinstance(one, kind) for one in objects_in(each)):
            return each
    return None


def scope_of(environ: WSGIEnvironment, start_response: StartResponse) -> MutableMapping[str, Any]:
    """Return the scope of a request that an ASGI app passes on to a WSGI app; else an empty one.

    a2wsgi leaves it in environ; Starlette and asgiref keep it beside `start_response`.
    """
    bridge = getattr(start_response, "__self__", None)
    scope = environ.get("asgi.scope") or getattr(bridge, "scope", None)
    return scope if isinstance(scope, dict) else {}  # what a server calls so may be another thing


def copying_to(
    scope: MutableMapping[str, Any],
    environ: WSGIEnvironment,
    start_response: StartResponse,
    read: Read,
) -> StartResponse:
    """Put the measurements of a scope into environ, too.

    Returns:
        A `start_response` that copies what the framework has left in environ to the scope.
    """
    _carry(scope, environ)
    mount = mount_of_environ(environ)

    def started(
        status: str, headers: Headers, exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info is None:
            write = start_response(status, headers)
        else:
            write = start_response(status, headers, exc_info)
        _leave(scope, environ, mount, read)
        return write

    return started


def _leave(
    scope: MutableMapping[str, Any], environ: WSGIEnvironment, mount: str, read: Read
) -> None:
    """Leave in the scope what the framework has left in environ; never raises."""
    try:
        for call in ON_START_RESPONSE:
            call(environ)
        if FRAMEWORK_KEY in environ or "bottle.route" in environ:
            template, user = read(environ)
            below = None if template is None else template.removeprefix(mount.rstrip("/"))
            scope[FRAMEWORK_KEY] = BridgedRequest(below, user)
            follow_copy(scope)
    except Exception:
        report_fault("the route resolver")
