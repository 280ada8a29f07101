"""Change what one object does when it is called, or how one of its attributes reads, in place.

The object gets a class of its own, a subclass of the one that it had. Other tools may patch its
attributes and its class, and take their patches off again, in any order: they never find, check or
put back anything of ours. The object stays what it was for `isinstance`, and pickles and copies as
what it was, measured again where it is loaded.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from metricsmw import MetricsMonitor, get_metrics_monitor

if TYPE_CHECKING:
    from typing_extensions import Self

    from .types import ASGIApp, Receive, Scope, Send

_T = TypeVar("_T")

# Where an object keeps what has to be done again with a copy of it: functions of the copy.
REDO = "_metricsmw_redo"
# Where it keeps the names of attributes that a copy has from its class again.
SHADOWED = "_metricsmw_shadowed"
# The attributes that a copy does not keep, nor those that are shadowed.
_OURS = "_metricsmw"


# The class that an object had before it got one of its own, as an attribute of that one.
_KIND = "_metricsmw_kind"


def own_class(target: object, **namespace: object) -> None:
    """Give an object a class of its own, with these attributes."""
    kind = type(target)
    fields = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__slots__": (),
        "__reduce_ex__": _reduce,
        _KIND: kind,
        **namespace,
    }
    target.__class__ = types.new_class(kind.__name__, (kind,), exec_body=lambda _: _.update(fields))
    own_keys(target)


def own_keys(target: object) -> None:
    """Give an object's dict a table of keys of its own.

    Once an object has got another class, or was asked for its dict, CPython 3.11 reads attributes
    slowly that have their keys in the table of its class.
    """
    fields = getattr(target, "__dict__", None)
    if type(fields) is dict:
        fields[_OURS] = None
        name, value = fields.popitem()  # this makes the table
        if name != _OURS:  # another thread's
            fields[name] = value
            del fields[_OURS]


def _reduce(self: object, protocol: int) -> Any:
    """Pickle or copy an object with a class of its own as one of the class that it had."""
    kind: Any = getattr(type(self), _KIND)
    reduced = kind.__reduce_ex__(self, max(protocol, 2))
    if isinstance(reduced, str):
        return reduced
    if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        # It has a way of its own.
        call, args, *rest = reduced
        stateless = not rest or rest[0] is None
        return (_made_by, (call, args, vars(self).get(REDO, ()), stateless), *rest)
    while _KIND in vars(kind):
        kind = vars(kind)[_KIND]
    return (_blank, (kind, *reduced[1][1:]), *reduced[2:])


def _blank(kind: type[_T], *args: Any) -> _T:
    """Return an object whose state is about to come."""
    made = kind.__new__(kind, *args)
    own_class(made, __setstate__=_load)
    return made


def _made_by(call: Callable[..., _T], args: tuple[Any, ...], again: Any, stateless: bool) -> _T:
    """Return an object that is made in a way of its own; its state, if any, is about to come."""
    made = call(*args)
    if stateless:
        for redo in again:
            redo(made)
    else:
        own_class(made, __setstate__=_load)
        vars(made)[REDO] = again
    return made


def _load(self: Any, state: Any) -> None:
    """Take the state as an object of the class that it had, and do again what was done."""
    self.__class__ = getattr(type(self), _KIND)
    set_state = getattr(self, "__setstate__", None)
    if set_state is not None:
        set_state(state)
    else:
        fields, slots = state if isinstance(state, tuple) else (state, None)
        vars(self).update(fields or {})
        for name, value in (slots or {}).items():
            setattr(self, name, value)
    again = vars(self).get(REDO, ())
    shadowed = vars(self).get(SHADOWED, ())
    for name in [name for name in vars(self) if name.startswith(_OURS) or name in shadowed]:
        del vars(self)[name]
    for redo in again:
        redo(self)


def _reduce_monitor(monitor: MetricsMonitor) -> tuple[Any, tuple[()]]:
    """Pickle a monitor's settings: a copy is the loading process's shared one, or a private one."""
    make = get_metrics_monitor if monitor.settings.shared else MetricsMonitor
    return partial(make, **asdict(monitor.settings)), ()


copyreg.pickle(MetricsMonitor, _reduce_monitor)


class Remade:
    """A middleware that pickles as what it was made of: a copy measures where it is loaded."""

    _made_of: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Keep the arguments."""
        self = super().__new__(cls)
        self._made_of = args, settings
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make it again."""
        return _remake, (type(self), *self._made_of)


def _remake(kind: Callable[..., _T], args: tuple[Any, ...], settings: dict[str, Any]) -> _T:
    return kind(*args, **settings)


def interpose(target: ASGIApp, make: Callable[[ASGIApp, Any], ASGIApp]) -> None:
    """Have each call of an ASGI app go to something else.

    Args:
        target: The app, which is changed in place.
        make: Given what calls the object as before, and what it finds that by, returns what is to
            be called in its place. `plain.__call__(target, scope, receive, send)` is the same call
            in one frame less.
    """
    kind = type(target)
    repeated = _KIND in vars(kind) and "__call__" in vars(kind)
    plain: Any = _before(getattr(kind, "__call__")) if repeated else kind  # noqa: B004,B009

    # Looked up for each call: others patch the class, sooner or later.
    def inner(scope: Scope, receive: Receive, send: Send) -> Any:
        return plain.__call__(target, scope, receive, send)

    call = _unbound(make(inner, plain))
    if repeated:
        type.__setattr__(kind, "__call__", call)
    else:
        own_class(target, __call__=call)


def _before(call: ASGIApp) -> types.SimpleNamespace:
    """Return what has, as a class does, a `__call__` that takes the object first."""

    def call_of(_: object, scope: Scope, receive: Receive, send: Send) -> Any:
        return call(scope, receive, send)

    return types.SimpleNamespace(__call__=call_of)


def _unbound(call: Callable[..., Any]) -> Any:
    """Return what a class can have as a method that is not to be bound to the object."""
    return staticmethod(call) if isinstance(call, types.FunctionType) else call
