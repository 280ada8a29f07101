"""Answers worked out in threads, so that the event loop of an app goes on serving requests.

Even in a thread, a reading of many workers with many routes holds up the loop, which waits for the
interpreter's lock again and again. So readings have pauses between them, in proportion to what they
take, and whoever asks in a pause shares the reading after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from metricsmw import MetricsMonitor

from .readings import Question, answer_all

if TYPE_CHECKING:
    from metricsmw.engine.reading.moment import Reading

T = TypeVar("T")

# Threads of an event loop that read the metrics.
MAX_THREADS = 4
# The pause after a reading: so many times what it took, but at most so many seconds.
PAUSE_RATIO = 4.0
MAX_PAUSE = 0.5

_threads: RunVar[CapacityLimiter] = RunVar("metricsmw")
_readings: RunVar[WeakKeyDictionary[MetricsMonitor, LoopReadings]] = RunVar("metricsmw readings")


async def in_thread(work: Callable[[], T]) -> T:
    """Call a function in a thread, of which the app's own work can take none away.

    Where no thread can be started, it is called in the loop: `/health` has to say so.
    """
    has_begun = False

    def begin() -> T:
        nonlocal has_begun
        has_begun = True
        return work()

    try:
        limiter = _threads.get()
    except LookupError:
        limiter = CapacityLimiter(MAX_THREADS)
        _threads.set(limiter)
    try:
        return await to_thread.run_sync(begin, limiter=limiter)
    except RuntimeError:
        if has_begun:
            raise
        return work()


class OffLoop:
    """The `Work` of an app in an event loop."""

    async def run(self, work: Callable[[], T]) -> T:
        """See `Work`."""
        return await in_thread(work)

    async def read(
        self, monitor: MetricsMonitor, work: Callable[[Reading], T], *, routes: bool = False
    ) -> T:
        """See `Work`."""
        try:
            of_loop = _readings.get()
        except LookupError:
            of_loop = WeakKeyDictionary()
            _readings.set(of_loop)
        readings = of_loop.get(monitor)
        if readings is None:
            readings = of_loop[monitor] = LoopReadings()
        return await readings.answer(monitor, work, routes)


OFF_LOOP = OffLoop()


class _Waiting(Question[T]):
    """A question whose task waits until it is woken: answered, or to lead."""

    def __init__(self, work: Callable[[Reading], T], routes: bool) -> None:
        super().__init__(work, routes)
        self.wake = anyio.Event()


class LoopReadings:
    """The readings of a monitor that the tasks of one event loop share.

    One task leads: it has a thread answer all questions that wait, and then has another one lead.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting[Any]] = []
        self._leader: _Waiting[Any] | None = None
        self._pause_until = 0.0  # monotonic time

    async def answer(
        self, monitor: MetricsMonitor, work: Callable[[Reading], T], routes: bool
    ) -> T:
        """Return what a function makes of a reading, which begins after this call."""
        question = _Waiting(work, routes)
        self._waiting.append(question)
        if self._leader is None:
            self._leader = question
        try:
            if self._leader is not question:
                await question.wake.wait()
            if not question.is_answered:
                await self._lead(monitor)
        finally:
            if question in self._waiting:
                self._waiting.remove(question)
            if self._leader is question:
                self._leader = self._waiting[0] if self._waiting else None
                if self._leader is not None:
                    self._leader.wake.set()
        return question.answer

    async def _lead(self, monitor: MetricsMonitor) -> None:
        await anyio.sleep(max(self._pause_until - monotonic(), 0))
        questions, self._waiting = self._waiting, []
        begun = monotonic()
        try:
            await in_thread(partial(answer_all, monitor, questions))
        finally:
            took = monotonic() - begun
            self._pause_until = begun + took + min(PAUSE_RATIO * took, MAX_PAUSE)
            # Some are not answered where this task was cancelled: they have another one lead.
            self._waiting[:0] = [each for each in questions if not each.is_answered]
            for question in questions:
                if question.is_answered:
                    question.wake.set()
