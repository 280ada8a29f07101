"""One reading of the server for all who ask at once.

Questions that come while a reading is made wait, and the next reading answers all of them: what one
of them has had worked out, the others find. A reading never begins before a question that it
answers. So no answer is from before its question, a reset or another answer, and totals never go
back.

Here are the readings of an app whose requests have threads of their own (WSGI); those of an event
loop are in `off_loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from metricsmw import MetricsMonitor
from metricsmw.engine.fork import Stage, on_fork

if TYPE_CHECKING:
    from metricsmw.engine.reading.moment import Reading

T = TypeVar("T")

# Seconds that a question waits for the reading of another thread; then it makes one of its own.
PATIENCE = 10.0


class Question(Generic[T]):
    """What is asked of a reading, and its answer, once `is_answered`."""

    def __init__(self, work: Callable[[Reading], T], routes: bool = False) -> None:
        """Ask nothing yet.

        Args:
            work: Works out the answer.
            routes: It asks for the table of routes beside totals; see `MetricsMonitor.read`.
        """
        self.routes = routes
        self.is_answered = False
        self._work = work
        self._answer: T
        self._error: Exception | None = None

    def ask(self, reading: Reading) -> None:
        """Keep the answer, or the exception, of a reading."""
        try:
            self._answer = self._work(reading)
        except Exception as error:
            self._error = error
        self.is_answered = True

    def fail(self, error: Exception) -> None:
        """Keep an exception as the answer."""
        self._error = error
        self.is_answered = True

    @property
    def answer(self) -> T:
        """The answer; what working it out has raised is raised here."""
        if self._error is not None:
            raise self._error
        return self._answer


def answer_all(monitor: MetricsMonitor, questions: Sequence[Question[T]]) -> None:
    """Answer questions from one reading."""
    try:
        monitor.instruments.show()
        reading = monitor.read(routes=any(question.routes for question in questions))
    except Exception as error:
        for question in questions:
            question.fail(error)
        return
    for question in questions:
        question.ask(reading)


class Work(Protocol):
    """Where answers are worked out."""

    async def run(self, work: Callable[[], T]) -> T:
        """Return what a function returns."""

    async def read(
        self, monitor: MetricsMonitor, work: Callable[[Reading], T], *, routes: bool = False
    ) -> T:
        """Return what a function makes of a reading that it shares with all who ask at once.

        Args:
            monitor: It is read.
            work: Works out the answer.
            routes: As for `Question`.
        """


class InThisThread:
    """The `Work` of an app whose requests have threads of their own. Nothing here is awaited."""

    async def run(self, work: Callable[[], T]) -> T:
        """See `Work`."""
        return work()

    async def read(
        self, monitor: MetricsMonitor, work: Callable[[Reading], T], *, routes: bool = False
    ) -> T:
        """See `Work`."""
        return _of_threads(monitor).answer(Question(work, routes))


class ThreadReadings:
    """The readings of a monitor that threads share."""

    def __init__(self, monitor: MetricsMonitor, patience: float = PATIENCE) -> None:
        self._monitor = monitor
        self._patience = patience
        self._waiting: list[Question[object]] = []
        self._turn = Lock()

    def answer(self, question: Question[T]) -> T:
        """Answer a question; the thread whose turn it is answers all that wait."""
        self._waiting.append(question)  # type: ignore[arg-type]
        mine = self._turn.acquire(timeout=self._patience)
        try:
            if not question.is_answered:
                # A question that another thread adds right here gets lost: it is then not answered
                # when that thread has its turn, which answers it.
                questions, self._waiting = [*self._waiting], []
                if question not in questions:
                    questions.append(question)  # type: ignore[arg-type]
                answer_all(self._monitor, questions)
        finally:
            if mine:
                self._turn.release()
        return question.answer


IN_THIS_THREAD = InThisThread()
_shared: WeakKeyDictionary[MetricsMonitor, ThreadReadings] = WeakKeyDictionary()


def _of_threads(monitor: MetricsMonitor) -> ThreadReadings:
    found = _shared.get(monitor)
    return _shared.setdefault(monitor, ThreadReadings(monitor)) if found is None else found


on_fork(_shared.clear, Stage.LOCKS)  # a thread of the parent may have had its turn
