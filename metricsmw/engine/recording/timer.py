"""How long something takes, for a histogram of the app's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Timer:
    """Counts how long a block takes, or each call of a function."""

    __slots__ = ("_clock", "_observe", "_start")

    def __init__(self, observe: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._observe = observe
        self._clock = clock
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *exception: object) -> None:
        self._observe(max(self._clock() - self._start, 0.0))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function; how long a coroutine function takes to return is not its work."""

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with Timer(self._observe, self._clock):
                return function(*args, **kwargs)

        return timed
