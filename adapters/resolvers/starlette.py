"""Starlette's resolver: the template of the route that leads to the endpoint Starlette chose.

Starlette leaves in scope the endpoint it chose and the outermost router, but not the template that
led there: a mount leaves the raw path it matched, and many releases leave no route. So templates
are looked up by endpoint, in a table made once of the whole tree below the outermost router. Only
an endpoint that several templates lead to needs more: their patterns are tried, in the order in
which the router tries them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.routing import Router

from ..paths import split
from ..walks import chain_of
from .base import MOUNTED, Carrier, join, mount_of_scope, report_fault, see_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from starlette.convertors import Convertor
    from starlette.routing import BaseRoute

# Routers in a chain of mounts, or of defaults.
MAX_DEPTH = 30


def install() -> None:
    """Have each exception seen that a handler makes an answer of the server's failure of.

    Idempotent. Behind a `BaseHTTPMiddleware` the answer goes out in another task than that which
    handles the exception.
    """
    try:
        from starlette import _exception_handler
        from starlette._utils import is_async_callable
    except ImportError:  # another release
        return
    place: Any = _exception_handler
    find = place._lookup_exception_handler
    if hasattr(find, "_metricsmw"):
        return

    def lookup(handlers: Any, error: Exception) -> Any:
        handler = find(handlers, error)
        return handler if handler is None else _seeing(handler, is_async_callable(handler))

    lookup._metricsmw = True  # type: ignore[attr-defined]
    place._lookup_exception_handler = lookup


def _seeing(handler: Any, is_async: bool) -> Any:
    """Return a handler that does the same, and has an exception seen."""

    async def wait(connection: Any, error: Exception) -> Any:
        response = await handler(connection, error)
        _see(connection, error, response)
        return response

    def answer(connection: Any, error: Exception) -> Any:
        response = handler(connection, error)
        _see(connection, error, response)
        return response

    return wait if is_async else answer


def _see(connection: Any, error: Exception, response: Any) -> None:
    try:
        if response is not None and response.status_code >= 500:
            see_error(connection.scope, error)
    except Exception:
        report_fault("Starlette's exception")


def template_of(scope: Carrier) -> str | None:
    """Return the template of the route that a Starlette router chose, mounts included, or None."""
    if "endpoint" not in scope:
        return None
    router = scope["router"]
    templates: _Templates | None
    try:
        templates = router._metricsmw_templates
    except AttributeError:
        templates = None
    if templates is None:  # or in a copy
        router._metricsmw_templates = templates = _Templates(router)
    key = id(scope["endpoint"])
    if key in templates.only and len(router.routes) == templates.top:
        template = templates.only[key]
    else:
        way = templates.way(scope)
        template = None if way is None else way.template
    root = scope["app_root_path"] if "app_root_path" in scope else scope.get("root_path")
    return (
        join(mount_of_scope(scope, root), template) if root and template is not None else template
    )


def mount_of(scope: Carrier) -> str | None:
    """Return the template of the mount whose app answered, None where it cannot be told.

    To be asked after `template_of`, of a request that reached a mounted app and none of its routes.
    """
    templates: _Templates = scope["router"]._metricsmw_templates
    way = templates.way(scope)
    return None if way is None else way.mount


class _Templates:
    """The templates that lead to each endpoint below one router.

    Routers and routes compare by value and cannot be hashed, so endpoints are compared by id();
    the tables hold them, so that no id is used twice. `only`: the template of an endpoint that has
    but one, None for a mounted router itself, whose routes did not match. `top`: how many routes
    the router had when its tree was walked.
    """

    # An endpoint that no walk finds (below a kind of route of the app's own) costs a walk each
    # time; this many in all.
    FRUITLESS_WALKS = 100

    def __init__(self, router: Router) -> None:
        self._router = router
        self._fruitless = 0
        self._walk()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Nothing of a copy: endpoints have other ids there."""
        return type(None), ()

    def way(self, scope: Carrier) -> _Way | None:
        """Return the way that led to the endpoint."""
        key = id(scope["endpoint"])
        if len(self._router.routes) != self.top:
            self._walk()  # routes were added
        elif key not in self._ways and self._fruitless < self.FRUITLESS_WALKS:
            self._walk()
            self._fruitless += key not in self._ways
        if key in self.only or key not in self._ways:
            return self._ways.get(key, (None,))[0]
        root = scope.get("app_root_path", scope.get("root_path", ""))
        return _chosen(self._ways[key], split(scope["path"], root)[1], scope["method"])

    def _walk(self) -> None:
        routes = self._router.routes
        every = [*routes, *_routes_behind(self._router)]
        ways: dict[int, list[_Way]] = {}
        for way in _ways(every, "", "", (routes,)):
            ways.setdefault(id(way.endpoint), []).append(way)
        self.only = {
            key: each[0].template
            for key, each in ways.items()
            if len({(way.template, way.mount) for way in each}) == 1
        }
        for key in ways.keys() - self.only.keys():
            ways[key] = [way._replace(pattern=re.compile(way.regex)) for way in ways[key]]
        self._ways = ways
        self.top = len(routes)


class _Way(NamedTuple):
    """One way to an endpoint."""

    endpoint: object
    template: str | None
    regex: str
    methods: Collection[str] | None
    mount: str | None = None  # its template, where that is an app whose routes are known
    pattern: re.Pattern[str] | None = None  # where other templates lead to the endpoint, too


def _chosen(ways: list[_Way], path: str, method: str) -> _Way | None:
    """Return the way that the router took, found by its pattern and method."""
    partial = None
    for way in ways:
        if way.pattern is not None and way.pattern.fullmatch(path):
            if not way.methods or method in way.methods:
                return way
            # Where none matches in full, the first that matches all but the method answers 405.
            partial = partial or way
    return partial


def _ways(
    routes: list[BaseRoute], template: str, regex: str, above: tuple[list[BaseRoute], ...]
) -> Iterator[_Way]:
    """Walk the tree below a router's routes; `template` and `regex` are those that lead there."""
    for route in _flat(routes):
        path: str = getattr(route, "path", "")  # a Host has none
        below = template + path
        pattern = regex + _regex(path, getattr(route, "param_convertors", {}))
        if hasattr(route, "endpoint"):
            yield _Way(route.endpoint, below, pattern, getattr(route, "methods", None))
        elif hasattr(route, "app"):  # a Mount or a Host
            inner = _router_in(route.app)
            if inner is None:
                yield _Way(route.app, below + MOUNTED, pattern + "/.*", None)
                continue
            yield _Way(route.app, None, pattern + "/.*", None, below)
            own = inner.routes
            # An app mounted below itself has no end.
            if len(above) < MAX_DEPTH and not any(own is each for each in above):
                every = [*own, *_routes_behind(inner)]
                yield from _ways(every, below, pattern, (*above, own))


def _flat(routes: Iterable[BaseRoute]) -> Iterator[Any]:
    """Yield the routes, with those of FastAPI's included routers in their place."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield context.starlette_route or context


def _router_in(app: object) -> Router | None:
    """Return the router of an app, looking inside its middlewares, or None."""
    for each in chain_of(app):
        if isinstance(each, Starlette):
            return each.router
        if isinstance(each, Router):
            return each
    return None


def _routes_behind(router: Router) -> list[BaseRoute]:
    """Return the routes of the routers that answer, one after the other, what a router does not."""
    routes: list[BaseRoute] = []
    seen = [router]
    while len(seen) < MAX_DEPTH:
        default = getattr(seen[-1], "default", None)
        if getattr(default, "__func__", None) is Router.not_found:
            break
        behind = _router_in(default)
        if behind is None or any(behind is each for each in seen):
            break
        routes += behind.routes
        seen.append(behind)
    return routes


_PARAMETER = re.compile(r"{([a-zA-Z_]\w*)(?::[a-zA-Z_]\w*)?}")


def _regex(path: str, convertors: Mapping[str, Convertor[Any]]) -> str:
    """Return the pattern of a route's path, without groups that could clash in a chain of them."""
    parts = _PARAMETER.split(path)
    parts[::2] = [re.escape(literal) for literal in parts[::2]]
    parts[1::2] = [f"(?:{convertors[name].regex})" for name in parts[1::2]]
    return "".join(parts)
