"""The route and the user of an answered request: a table of frameworks, in their order.

The resolvers read environ and scope after the response. Starlette, FastAPI, Litestar and Bottle
leave their route there: each has a row with a key of its own. Flask and Quart drop it before the
end, and Django, Falcon and Pyramid never put it there: `install` makes them put a `MatchedRequest`
under `FRAMEWORK_KEY`. No framework is imported that the process has not imported.

A template is what the app's author wrote, with the prefix the app is mounted under, as a client
sees it: never a raw path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from . import bottle, bridge, litestar
from .base import (
    FRAMEWORK_KEY,
    MOUNTED,
    Carrier,
    ForwardedRequest,
    Framework,
    MatchedRequest,
    join,
    mount_of_environ,
    mount_of_scope,
    report_fault,
    session_user,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from metricsmw.engine.faults import FaultLog

    from ..types import EnvironRoute, EnvironUser, ScopeRoute, ScopeUser

__all__ = [
    "FRAMEWORKS",
    "Framework",
    "environ_reader",
    "has_registered",
    "install",
    "read_environ",
    "reader",
    "register",
    "route_of_environ",
    "route_of_scope",
    "scope_reader",
    "user_of_environ",
    "user_of_scope",
]


def route_of_environ(environ: WSGIEnvironment) -> str | None:
    """Return the route template of a WSGI request that was answered, or None."""
    matched: MatchedRequest | None = environ.get(FRAMEWORK_KEY)
    if type(matched) is ForwardedRequest:
        return matched.route()
    for key, template in _environ_templates:
        if key in environ:
            return template(environ)
    return None


def route_of_scope(scope: Carrier) -> str | None:
    """Return the route template of an ASGI request that was answered, or None."""
    matched: MatchedRequest | None = scope.get(FRAMEWORK_KEY)
    if type(matched) is ForwardedRequest:
        return matched.route()
    for key, template in _scope_templates:
        if key in scope:
            return template(scope)
    return None


def user_of_environ(environ: WSGIEnvironment) -> object | None:
    """Return the user of a WSGI request that was answered: of its session, else REMOTE_USER."""
    for key, user in _environ_users:
        if key in environ:
            return user(environ)
    if FRAMEWORK_KEY in environ:
        matched: MatchedRequest = environ[FRAMEWORK_KEY]
        found = matched.user()
        if found:
            return found
    return environ.get("REMOTE_USER") or None


def read_environ(environ: WSGIEnvironment) -> tuple[str | None, object | None]:
    """Return route template and user of a WSGI request that was answered, each None without one."""
    return route_of_environ(environ), user_of_environ(environ)


def user_of_scope(scope: Carrier) -> object | None:
    """Return the session's user of an ASGI request that was answered, or None."""
    for key, user in _scope_users:
        if key in scope:
            return user(scope)
    if FRAMEWORK_KEY in scope:
        matched: MatchedRequest = scope[FRAMEWORK_KEY]
        return matched.user()
    return session_user(scope["session"]) if "session" in scope else None


Reader: TypeAlias = "Callable[[Any], tuple[str | None, object | None]]"
"""Returns template and user of an answered request, each None where there is none; never raises."""


def reader(
    route: Callable[[Any], str | None], user: Callable[[Any], object], faults: FaultLog
) -> Reader:
    """Return what asks both resolvers, neither of which can spoil the other's answer.

    Args:
        route: Resolves the template.
        user: Resolves the user.
        faults: Where an exception of theirs is reported.
    """

    def read(carrier: Carrier) -> tuple[str | None, object | None]:
        template, user_id = None, None
        try:
            template = route(carrier)
        except Exception:
            faults.report("the route resolver")
        try:
            found = user(carrier)
            if found is not None:
                user_id = found if type(found) is str else str(found)
        except Exception:
            faults.report("the user resolver")
        return template, user_id

    return read


def environ_reader(
    route: EnvironRoute | None, user: EnvironUser | None, faults: FaultLog
) -> Reader:
    """Return the reader of WSGI requests that have `FRAMEWORK_KEY`.

    Args:
        route: The app's own resolver of templates, if any.
        user: The app's own resolver of users, if any.
        faults: Where an exception of theirs is reported.
    """
    read = reader(route or route_of_environ, user or user_of_environ, faults)
    first = _environ_templates[0]
    if route or user or _environ_users or first != (FRAMEWORK_KEY, _matched_in_environ):
        return read

    # The same for what most requests have, in fewer calls.
    def read_matched(environ: WSGIEnvironment) -> tuple[str | None, object | None]:
        try:
            matched: MatchedRequest = environ[FRAMEWORK_KEY]
            template, user_id = matched.both()
            prefix = environ["SCRIPT_NAME"]
            if prefix and template is not None and type(matched) is not ForwardedRequest:
                template = join(mount_of_environ(environ), template)
            if not user_id and "REMOTE_USER" in environ:
                user_id = environ["REMOTE_USER"]
            return template, user_id or None
        except Exception:  # of which resolver, `read` finds out
            return read(environ)

    return read_matched


def scope_reader(route: ScopeRoute | None, user: ScopeUser | None, faults: FaultLog) -> Reader:
    """Return the reader of ASGI requests that have `FRAMEWORK_KEY` or a router of Starlette's.

    The arguments are those of `environ_reader`.
    """
    read = reader(route or route_of_scope, user or user_of_scope, faults)
    rows = dict(_scope_templates)
    if route or user or _scope_users or rows.get("router") is not _starlette:
        return read

    # The same for a request that a router of Starlette's has answered, in fewer calls: where its
    # templates are known, and one leads to the endpoint.
    def read_routed(scope: Carrier) -> tuple[str | None, object | None]:
        try:
            if FRAMEWORK_KEY in scope:
                return read(scope)
            router = scope["router"]
            templates = router._metricsmw_templates
            template: str | None = templates.only.get(id(scope.get("endpoint")))
            if template is None or len(router.routes) != templates.top:
                return read(scope)
            root = scope["root_path"]
            if root and "app_root_path" in scope:  # where that began, of an app in a mount
                root = scope["app_root_path"]
            if root:
                template = join(mount_of_scope(scope, root), template)
            return template, session_user(scope["session"]) if "session" in scope else None
        except Exception:  # of which resolver, `read` finds out
            return read(scope)

    return read_routed


def install() -> None:
    """Make the frameworks that this process has imported leave their routes; idempotent.

    Never raises: a framework that cannot be made to is measured without its routes.
    """
    for framework in FRAMEWORKS:
        if framework.install is not None and framework.name in sys.modules:
            try:
                framework.install()
            except Exception:
                report_fault(f"the look for routes in {framework.name}")


def register(framework: Framework) -> None:
    """Add a framework to the table, in front of those that are known already.

    Only apps that are wrapped later are read by it.
    """
    FRAMEWORKS.insert(0, framework)
    _make_rows()


def has_registered(interface: str) -> bool:
    """Return whether the table has a key for "wsgi" or "asgi" that the middlewares do not test.

    Keys of frameworks that this process has not imported do not count.
    """
    return any(
        each.interface == interface
        and each.key not in _KEYS
        and (each.name not in _OPTIONAL or each.name in sys.modules)
        for each in FRAMEWORKS
    )


# --- the rows ------------------------------------------------------------------------------------


def _matched_in_environ(environ: WSGIEnvironment) -> str | None:
    route: str | None = environ[FRAMEWORK_KEY].route()
    if route is None:
        return None
    prefix = mount_of_environ(environ)
    if "bottle.route" in environ:  # Bottle takes its mount out of SCRIPT_NAME again
        prefix = prefix.rstrip("/") + bottle.mount_of(environ)
    return join(prefix, route)


def _matched_in_scope(scope: Carrier) -> str | None:
    prefix = _prefix_of(scope)
    route: str | None = scope[FRAMEWORK_KEY].route()
    return join(prefix, route) if route and prefix is not None else None


def _litestar(scope: Carrier) -> str | None:
    route: str = scope["path_template"]
    if not route:
        return litestar.template_of_mounted(scope, route_of_scope)
    if FRAMEWORK_KEY in scope:
        return _matched_in_scope(scope)
    if "router" in scope:
        template = _starlette(scope)
        if template is None or not template.endswith(MOUNTED):
            return template
    prefix = _prefix_of(scope)
    return None if prefix is None else join(prefix, route)


def _starlette(scope: Carrier) -> str | None:
    template = starlette_resolver()(scope)
    if template is None and "fastapi" in scope:
        template = fastapi_resolver()(scope)
    return template


def _left_as(key: str) -> Callable[[Carrier], str | None]:
    """Return a resolver of the template that a framework leaves in scope as it is."""

    def template_of(scope: Carrier) -> str | None:
        route: str | None = scope[key]
        return join(mount_of_scope(scope, scope.get("root_path")), route) if route else None

    return template_of


def _prefix_of(scope: Carrier) -> str | None:
    """Return the template that the innermost app is mounted under; None where it has no route."""
    if "router" in scope:
        template = _starlette(scope)
        return None if template is None else template.removesuffix(MOUNTED)
    root = mount_of_scope(scope, scope.get("root_path"))
    if "litestar_app" in scope and "path_template" in scope:
        return litestar.mount_of(scope, root)
    return root


@cache
def starlette_resolver() -> Callable[[Carrier], str | None]:
    try:
        from .starlette import template_of
    except Exception:  # nor is it tried again
        report_fault("the look for routes in starlette")
        return _no_template
    return template_of


@cache
def fastapi_resolver() -> Callable[[Carrier], str | None]:
    try:
        from .fastapi import template_of
    except Exception:
        report_fault("the look for routes in fastapi")
        return _no_template
    return template_of


def _no_template(_: Carrier) -> None:
    return None


def _install_by(module: str) -> Callable[[], None]:
    """Return what calls `install` of a module here, which imports its framework."""

    def install_hooks() -> None:
        import_module(f".{module}", __package__).install()

    return install_hooks


# In this order, as an app of one framework can stand within an app of another.
FRAMEWORKS: list[Framework] = [
    Framework("litestar", "asgi", "path_template", _litestar),
    Framework("quart", "asgi", install=_install_by("quart")),
    Framework("django.core.handlers.base", "asgi", install=_install_by("django")),
    Framework("falcon.app", "asgi", install=_install_by("falcon")),
    # FastAPI, too.
    Framework("starlette", "asgi", "router", _starlette, install=_install_by("starlette")),
    Framework("connexion.middleware.routing", "asgi", install=_install_by("connexion")),
    Framework("lilya", "asgi", "route_path_template", _left_as("route_path_template")),
    Framework("responder", "asgi", "route_pattern", _left_as("route_pattern")),
    Framework("flask", "wsgi", install=_install_by("flask")),
    Framework("pyramid.router", "wsgi", install=_install_by("pyramid")),
    Framework("django.core.handlers.base", "wsgi"),
    Framework("falcon.app", "wsgi"),
    Framework("bottle", "wsgi", "bottle.route", bottle.template_of, install=bottle.install),
    *(
        Framework(module, "asgi", install=partial(bridge.link, module, read_environ))
        for module in bridge.MODULES
    ),
]

# A key, and what resolves the template, or the user, of a request that has it.
_TemplateRow = tuple[str, Callable[[Any], "str | None"]]
_UserRow = tuple[str, Callable[[Any], "object | None"]]


def _template_rows_of(interface: str) -> tuple[_TemplateRow, ...]:
    """Return what resolves templates for "wsgi" or "asgi", the first row for each key."""
    default = _matched_in_environ if interface == "wsgi" else _matched_in_scope
    rows: dict[str, Callable[[Any], str | None]] = {}
    for each in FRAMEWORKS:
        if each.interface == interface:
            rows.setdefault(each.key, each.template or default)
    return tuple(rows.items())


def _user_rows_of(interface: str) -> tuple[_UserRow, ...]:
    """Return what resolves users for "wsgi" or "asgi": of frameworks with a way of their own."""
    return tuple(
        (each.key, each.user)
        for each in FRAMEWORKS
        if each.interface == interface and each.user is not None
    )


# The rows that requests are looked up in.
_environ_templates: tuple[_TemplateRow, ...] = ()
_scope_templates: tuple[_TemplateRow, ...] = ()
_environ_users: tuple[_UserRow, ...] = ()
_scope_users: tuple[_UserRow, ...] = ()


def _make_rows() -> None:
    global _environ_templates, _scope_templates, _environ_users, _scope_users
    _environ_templates, _scope_templates = _template_rows_of("wsgi"), _template_rows_of("asgi")
    _environ_users, _scope_users = _user_rows_of("wsgi"), _user_rows_of("asgi")


_make_rows()
# The keys that the middlewares test themselves, without a call.
_KEYS = {FRAMEWORK_KEY, "router"}
# Frameworks with keys of their own, for which the middlewares call the resolvers where they are
# imported.
_OPTIONAL = {"bottle", "lilya", "litestar", "responder"}
