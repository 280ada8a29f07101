"""Counts of any span of whole steps within the window: of the server, or of one route."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from metricsmw.engine.reading.counts import Counts


class StepTable:
    """The counts of the steps that have ended, oldest first.

    Args:
        lanes: What was counted in each step, as lanes; idle steps may be left out.
        count: Returns the counts of lanes.
        first: The number of the first step: the window's, or the one that the server began in.
        last: The number of the last step that has ended.
        length: The length of a step in seconds.
    """

    def __init__(
        self,
        lanes: Mapping[int, int],
        count: Callable[[int], Counts],
        first: int,
        last: int,
        length: float,
    ) -> None:
        self._lanes = lanes
        self._count = count
        self.first = first
        self.last = last
        self.length = length

    def span(self, last: int, steps: int) -> Counts:
        """Return the counts of so many steps up to ``last``, as far as they are there."""
        numbers = range(max(last - steps + 1, self.first), last + 1)
        return self._count(sum(self._lanes.get(number, 0) for number in numbers))

    def covers(self, last: int, steps: int) -> bool:
        """Return whether all of these steps are there."""
        return last - steps + 1 >= self.first

    def end(self, number: int) -> float:
        """Return the monotonic time at which a step ended."""
        return number * self.length
