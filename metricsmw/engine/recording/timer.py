"""How long something takes, for a histogram of the app's own."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Steps: TypeAlias = Generator[object, object, object]
AsyncSteps: TypeAlias = AsyncGenerator[object, object]


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
        """Decorate a function: each call counts.

        A coroutine function counts as long as it is awaited; a generator function, async or not,
        from the first step to the end.
        """
        import inspect  # here, as importing the package is to cost next to nothing

        made: Any = function
        if inspect.iscoroutinefunction(function):
            made = self._coroutine(made)
        elif inspect.isgeneratorfunction(function):
            made = self._generator(made)
        elif inspect.isasyncgenfunction(function):
            made = self._async_generator(made)
        else:
            made = self._function(made)
        timed: Callable[P, R] = functools.wraps(function)(made)
        return timed

    def _again(self) -> Timer:
        return Timer(self._observe, self._clock)

    def _function(self, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._again():
                return function(*args, **kwargs)

        return timed

    def _coroutine(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        async def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._again():
                return await function(*args, **kwargs)

        return timed

    def _generator(self, function: Callable[P, Steps]) -> Callable[P, Steps]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> Steps:
            with self._again():
                return (yield from function(*args, **kwargs))

        return timed

    def _async_generator(self, function: Callable[P, AsyncSteps]) -> Callable[P, AsyncSteps]:
        async def timed(*args: P.args, **kwargs: P.kwargs) -> AsyncSteps:
            with self._again():
                steps = function(*args, **kwargs)
                step = steps.asend(None)
                while True:
                    try:
                        found = await step
                    except StopAsyncIteration:
                        return
                    try:
                        step = steps.asend((yield found))
                    except GeneratorExit:
                        await steps.aclose()
                        raise
                    except BaseException as error:
                        step = steps.athrow(error)

        return timed
