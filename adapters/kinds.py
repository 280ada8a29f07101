"""WSGI or ASGI: decided by the arguments that an application takes."""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["asgi", "wsgi"]

# Functions that each say of the next one that they wrap it.
MAX_WRAPPED = 50

# Classes that look like an application and are none, and what to do about it.
_NEITHER = {
    ("aiohttp.web_app", "Application"): "aiohttp is neither: it has a server of its own",
    ("tornado.web", "Application"): "Tornado is neither: it has a server of its own;"
    " tornado.wsgi.WSGIContainer serves a wrapped WSGI application inside it",
    ("robyn", "Robyn"): "Robyn is neither: it has a server of its own",
    ("dash.dash", "Dash"): "wrap its `.server`",
    ("dash", "Dash"): "wrap its `.server`",
    ("litestar.router", "Router"): "wrap the Litestar application that it is a handler of",
}


# Classes of parts of an application; some can be called as one is, without all that is around them.
_PARTS = {
    ("fastapi.routing", "APIRouter"): "wrap the FastAPI application that includes it",
    ("flask.blueprints", "Blueprint"): "wrap the Flask application that registers it",
    ("quart.blueprints", "Blueprint"): "wrap the Quart application that registers it",
}


def refuse_part(app: object) -> None:
    """Refuse a part of an application.

    Raises:
        TypeError: It is one.
    """
    for each in type(app).__mro__:
        if way_out := _PARTS.get((each.__module__, each.__qualname__)):
            raise TypeError(
                f"app must be a whole application, got a part of one, {app!r}: {way_out}"
            )


def check_kind(kind: object) -> None:
    """Raise ValueError where `kind` is neither "asgi" nor "wsgi" nor None."""
    if kind not in ("asgi", "wsgi", None):
        raise ValueError(f'kind must be "asgi", "wsgi" or None, got {kind!r}')


def is_asgi(app: object, kind: Kind | None = None) -> bool:
    """Tell ASGI from WSGI.

    An application that takes three arguments, or is declared `async def`, is ASGI; one that takes
    two is WSGI. Where it takes any number, as decorators do, what it says that it wraps decides,
    and then its being no coroutine function.

    Args:
        app: What is to be measured.
        kind: What the user says that it is; then nothing is asked.

    Raises:
        TypeError: It is neither, or could be either.
    """
    if kind is not None:
        if not callable(app):
            raise _refused(app, "")
        return kind == "asgi"
    if not callable(app):
        raise _refused(app, "")
    asynchronous = is_async(app)
    signature = _signature(app)
    if signature is None:
        if asynchronous:
            return True
        raise _refused(app, "it does not say what it takes")
    two, three = _fits(signature, 2), _fits(signature, 3)
    if asynchronous and three:
        return True
    if asynchronous or not (two or three):
        if not asynchronous and _fits(signature, 0):
            raise _refused(app, _FACTORY if not inspect.isclass(app) else _CLASS)
        one = _fits(signature, 1)
        raise _refused(app, _ASGI2 if one and not asynchronous else "")
    if inspect.isclass(app) and not _may_answer(app, two, three):
        raise _refused(app, _CLASS)
    if two and three and _fits(signature, 1):
        takes_any = inspect.Parameter.VAR_POSITIONAL in {
            parameter.kind for parameter in signature.parameters.values()
        }
        if not takes_any or inspect.isclass(app) or inspect.isbuiltin(app):
            raise _refused(app, "it could be either")
    return _wraps_asgi(app) if two and three else three


_FACTORY = "it takes no arguments: if it makes the application, wrap what it returns"
_CLASS = "it is a class: wrap an instance of it"
_ASGI2 = "an ASGI 2 application becomes ASGI 3 by asgiref.compatibility.guarantee_single_callable"


def _may_answer(app: type, two: bool, three: bool) -> bool:
    """Return whether a class can be an application: its instances are what it returns.

    Those are iterated over (WSGI) or awaited (ASGI). A class that returns something else, by its
    own `__new__` or by its metaclass, is believed.
    """
    made_by = [each for each in inspect.getmro(type(app)) if each not in (type, object)]
    is_plain = getattr(app, "__new__", None) is object.__new__
    if not is_plain or any("__call__" in vars(each) for each in made_by):
        return True
    iterable = hasattr(app, "__iter__") or hasattr(app, "__getitem__")
    return (two and iterable) or (three and hasattr(app, "__await__"))


def is_async(call: object) -> bool:
    """Return whether a callable is declared `async def`, also as a partial or by its `__call__`."""
    for _ in range(MAX_WRAPPED):
        if not isinstance(call, functools.partial):
            break
        call = call.func
    if inspect.isclass(call):
        return False
    return any(inspect.iscoroutinefunction(each) for each in _calls_of(call))


def _calls_of(call: object) -> list[object]:
    """Return a callable, and the method that is called in its place where it is an object."""
    try:
        return [call, call.__call__]  # type: ignore[operator]
    except Exception:  # a property of others
        return [call]


def _signature(app: object) -> inspect.Signature | None:
    """Return what an application takes by itself, whatever it says that it wraps."""
    for each in [app] if inspect.isclass(app) else _calls_of(app):
        try:
            return inspect.signature(each, follow_wrapped=False)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # something in C, or a slot that holds the method
            continue
    return None


def _fits(signature: inspect.Signature, number: int) -> bool:
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def _wraps_asgi(app: object) -> bool:
    """Return whether a callable of two or three arguments wraps an ASGI application."""
    wrapped = getattr(app, "__wrapped__", None)
    for _ in range(MAX_WRAPPED):
        if wrapped is None or not callable(wrapped):
            return False
        if is_async(wrapped):
            return True
        signature = _signature(wrapped)
        if signature is not None and _fits(signature, 2) != _fits(signature, 3):
            return _fits(signature, 3)
        wrapped = getattr(wrapped, "__wrapped__", None)
    return False


def _refused(app: object, why: str) -> TypeError:
    kind = type(app)
    for each in kind.__mro__:
        why = _NEITHER.get((each.__module__, each.__qualname__), why)
    reasons = [why or _hint(app)]
    if callable(app):
        reasons.append(
            'if it is one all the same, say which: wrap(app, kind="asgi") or kind="wsgi"'
        )
    said = "".join(f"; {reason}" for reason in reasons if reason)
    return TypeError(
        f"app must be a WSGI or an ASGI application, got {app!r}"
        f" of type {kind.__module__}.{kind.__qualname__}{said}"
    )


def _hint(app: object) -> str:
    """Return what may be meant by something that cannot be called."""
    if isinstance(app, ModuleType):
        return "it is a module: wrap the application in it"
    if isinstance(app, str):
        return "it is a text: wrap the application that it names"
    return "" if callable(app) else "it cannot be called"
