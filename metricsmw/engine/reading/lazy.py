"""`lazy`: a property that is worked out once an object, without a lock.

`functools.cached_property` has one until Python 3.12, for all objects together: readings of several
threads would wait for each other, and a forked child for ever, for a thread that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Owner = TypeVar("Owner")
Value = TypeVar("Value")


class lazy(Generic[Owner, Value]):  # noqa: N801 (as `property`)
    """A property whose first value is kept. Two threads may both work it out."""

    def __init__(self, compute: Callable[[Owner], Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: Any) -> lazy[Owner, Value]: ...
    @overload
    def __get__(self, instance: Owner, owner: Any) -> Value: ...
    def __get__(self, instance: Owner | None, owner: Any) -> lazy[Owner, Value] | Value:
        """Work it out; from then on the object's own dict answers."""
        if instance is None:
            return self
        value = self._compute(instance)
        vars(instance)[self._name] = value
        return value
