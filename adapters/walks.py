"""Walks over objects of others: bounded, safe in circles, and blind to what is made on demand.

A path from one app to the next (`.app`, a closure, a table of mounts) is another package's and may
have no end: a mock has every attribute, each time a new one.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType

# Apps in a chain of middlewares.
MAX_CHAIN = 50
# Objects that are looked at for one that stands inside an app.
MAX_OBJECTS = 2000

_LEAVES = (str, bytes, int, float, type(None), type, ModuleType)


def behind(app: object) -> object:
    """Return the object that a proxy stands for; what is no proxy, or does not lead to it, itself.

    Args:
        app: One of wrapt's proxies, as tools put around apps, or of Werkzeug's, as `current_app`.
    """
    for _ in range(MAX_CHAIN):
        if getattr(app, "__class__", type(app)) is type(app):
            break
        if hasattr(type(app), "_get_current_object"):
            app = app._get_current_object()  # type: ignore[attr-defined]
        elif hasattr(type(app), "__wrapped__"):
            app = app.__wrapped__  # type: ignore[attr-defined]
        else:
            break
    return app


def chain_of(app: object) -> Iterator[object]:
    """Yield an app and what its `app` attributes lead to, at most `MAX_CHAIN` objects in all."""
    seen: list[object] = []
    while app is not None and len(seen) < MAX_CHAIN:
        if any(app is each for each in seen):
            return
        yield app
        seen.append(app)
        app = getattr(app, "app", None)


def objects_in(app: object) -> Iterator[object]:
    """Yield what an app is made of, nearest first, at most `MAX_OBJECTS` objects in all.

    Followed are attributes that are stored (also in slots), containers, bound methods, partials,
    and what functions close over or name of their module. Nothing is called on the way.
    """
    seen: set[int] = set()
    waiting = deque([app])
    found: list[object] = []  # holds them, so that no id is used twice
    while waiting and len(found) < MAX_OBJECTS:
        each = waiting.popleft()
        if id(each) in seen or isinstance(each, _LEAVES):
            continue
        seen.add(id(each))
        found.append(each)
        yield each
        waiting.extend(_parts_of(each))


def _parts_of(each: object) -> Iterator[object]:
    if isinstance(each, FunctionType):
        for cell in each.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not set yet
                continue
        names = each.__code__.co_names
        yield from (each.__globals__[name] for name in names if name in each.__globals__)
        yield from vars(each).values()
    elif isinstance(each, MethodType):
        yield each.__self__
    elif isinstance(each, functools.partial):
        yield each.func
        yield from each.args
        yield from each.keywords.values()
    elif type(each) is dict or isinstance(each, dict):
        yield from dict.values(each)
    elif isinstance(each, (list, tuple)):
        yield from (list if isinstance(each, list) else tuple).__iter__(each)  # type: ignore[arg-type]
    else:
        yield from _stored_in(each)


def _stored_in(each: object) -> Iterator[object]:
    """Yield the values of the attributes that an object stores, in its dict or in slots."""
    try:
        fields = object.__getattribute__(each, "__dict__")
    except AttributeError:
        fields = None
    if isinstance(fields, Mapping):
        yield from list(fields.values())
    for kind in type(each).__mro__:
        for member in list(vars(kind).values()):
            if isinstance(member, MemberDescriptorType):
                try:
                    yield member.__get__(each, type(each))
                except AttributeError:  # not set
                    continue
