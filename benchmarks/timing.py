"""Interleaved timing: many short rounds, each of which runs every contender once.

A machine that other work shares drifts by more than what is measured here, so nothing is ever
compared with a figure taken at another time. Each round runs one batch of every contender, in an
order that rotates. Contenders that share code also share the interpreter's inline caches, which
settle on the one that runs within some hundred calls: a batch is to be many more. Whatever else
runs can only make a round longer, so the quietest quarter of the rounds counts; differences are
taken inside a round, and their median is reported with its 95 % interval (bootstrap over the
rounds). The garbage collector rests meanwhile, as in `timeit`.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import median
from time import perf_counter

Batch = Callable[[int], None]
"""Does its work the given number of times."""

RESAMPLES = 200
QUIETEST = 4


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        return cls(value, value, value)

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def estimate(rounds: Sequence[Sequence[float]], figure: Callable[..., float]) -> Estimate:
    """`figure` of the columns of `rounds` (one row a round), with its bootstrap interval."""
    draw = random.Random(2).choices
    drawn = sorted(
        figure(*zip(*draw(rounds, k=len(rounds)), strict=True)) for _ in range(RESAMPLES)
    )
    return Estimate(
        figure(*zip(*rounds, strict=True)),
        drawn[RESAMPLES // 40],
        drawn[-1 - RESAMPLES // 40],
    )


class Race:
    """Seconds a call of each contender, round by round."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self._seconds = seconds

    def cost(self, name: str) -> Estimate:
        """Seconds a call, the loop around it included."""
        return estimate([(value,) for value in self._seconds[name]], median)

    def added(self, name: str, base: str) -> Estimate:
        """Seconds a call above `base`."""
        return estimate([(value,) for value in self._above(name, base)], median)

    def ratio(self, name: str, other: str, base: str) -> Estimate:
        """Return the cost that `name` adds to `base`, as a multiple of `other`'s."""
        rounds = list(zip(self._above(name, base), self._above(other, base), strict=True))
        return estimate(rounds, lambda ours, theirs: median(ours) / median(theirs))

    def multiple(self, name: str, other: str) -> Estimate:
        """Return the cost of `name`, as a multiple of `other`'s."""
        rounds = list(zip(self._seconds[name], self._seconds[other], strict=True))
        return estimate(rounds, lambda one, two: median(one) / median(two))

    def _above(self, name: str, base: str) -> list[float]:
        pairs = zip(self._seconds[name], self._seconds[base], strict=True)
        return [value - bare for value, bare in pairs]


def race(contenders: Mapping[str, Batch], rounds: int, batch_seconds: float) -> Race:
    """Time every contender in batches of about that long; keep the `rounds` quietest rounds."""
    sizes = {name: _batch_size(batch, batch_seconds) for name, batch in contenders.items()}
    batches = {name: partial(batch, sizes[name]) for name, batch in contenders.items()}
    return race_once(batches, rounds, sizes)


def race_once(
    batches: Mapping[str, Callable[[], object]],
    rounds: int,
    sizes: Mapping[str, int] | None = None,
) -> Race:
    """As `race`, of batches whose size is given: what one does counts as so many calls, or one."""
    names = list(batches)
    timed: list[dict[str, float]] = []
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds * QUIETEST):
            timed.append({name: _seconds(batches[name]) for name in names})
            names.append(names.pop(0))
    finally:
        if enabled:
            gc.enable()
    timed.sort(key=lambda seconds: sum(seconds.values()))
    quiet = timed[:rounds]
    sizes = sizes or dict.fromkeys(names, 1)
    return Race({name: [seconds[name] / sizes[name] for seconds in quiet] for name in names})


def calls(function: Callable[..., object], *args: object, **kwargs: object) -> Batch:
    """Return a batch that calls `function` with these arguments."""

    def bare(n: int) -> None:
        for _ in repeat(None, n):
            function()

    def positional(n: int) -> None:
        for _ in repeat(None, n):
            function(*args)

    def full(n: int) -> None:
        for _ in repeat(None, n):
            function(*args, **kwargs)

    return full if kwargs else positional if args else bare


def empty_loop(n: int) -> None:
    """Do nothing: the cost of the loop itself."""
    for _ in repeat(None, n):
        pass


def _batch_size(batch: Batch, batch_seconds: float) -> int:
    """How often the work fits in a batch; warms the contender up on the way."""
    size = 1
    while True:
        # The quickest of three: the first one may open files or fill caches.
        elapsed = min(_seconds(partial(batch, size)) for _ in range(3))
        if elapsed >= batch_seconds / 2:
            return max(1, round(size * batch_seconds / elapsed))
        size *= 2


def _seconds(batch: Callable[[], object]) -> float:
    start = perf_counter()
    batch()
    return perf_counter() - start
