"""Worker processes of one server: forked by the test, on one clock, told what to do by pipe."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from metricsmw import MetricsMonitor
from metricsmw.clock import SYSTEM_CLOCK, Clock

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 60.0  # seconds that a worker has for one answer
FORK = multiprocessing.get_context("fork")


def shared_numbers(count: int) -> memoryview[float]:
    """Numbers that this process and all that it forks read and write."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("d")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Poll until it holds; fail after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.0005)


class SharedClock:
    """A clock that stands still until the test moves it, for all workers at once."""

    def __init__(self, start: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._times = shared_numbers(2)
        self._times[0], self._times[1] = start, wall

    def monotonic(self) -> float:
        return self._times[0]

    def time(self) -> float:
        return self._times[1]

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        self._times[0] += seconds
        self._times[1] += seconds


class Failed(NamedTuple):
    """What a worker answers where the job raised."""

    trace: str


class Worker:
    """A process with a monitor. Jobs are functions of a module, called as ``job(monitor, …)``."""

    def __init__(self, connection: Connection, process: multiprocessing.process.BaseProcess):
        self._connection = connection
        self.process = process
        self.pid = cast(int, process.pid)

    def begin(
        self, job: Callable[Concatenate[MetricsMonitor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], R]:
        """Start the job; its result is what the returned function waits for."""
        self._connection.send((job, args, kwargs))

        def result() -> R:
            assert self._connection.poll(PATIENCE), "a worker does not answer"
            answer = self._connection.recv()
            assert not isinstance(answer, Failed), answer.trace
            return cast(R, answer)

        return result

    def do(
        self, job: Callable[Concatenate[MetricsMonitor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run the job; its result."""
        return self.begin(job, *args, **kwargs)()

    def survives(self) -> bool:
        """Wait until it has answered the job that was begun, or has died of it; which of them."""
        wait_until(self._connection.poll, "a worker has answered or died")
        try:
            self._connection.recv()
        except EOFError:
            self.wait()
            return False
        return True

    def kill(self) -> None:
        """End it by SIGKILL, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        assert code is not None, "a worker does not end"
        self._connection.close()
        return code

    def leave(self) -> None:
        """End it politely: its monitor is closed."""
        self.do(MetricsMonitor.close)
        self._connection.send(None)
        assert self.wait() == 0


def _work(
    connection: Connection,
    others: Sequence[Connection],
    clock: Clock,
    settings: dict[str, Any],
    prepare: Callable[[], None] | None,
) -> None:
    # What belongs to the test alone: with these held open, no worker would notice its end.
    for other in others:
        other.close()
    if prepare is not None:
        prepare()
    monitor = MetricsMonitor(shared=True, clock=clock, **settings)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message is None:
            return
        job, args, kwargs = message
        try:
            answer = job(monitor, *args, **kwargs)
        except BaseException:
            answer = Failed(traceback.format_exc())
        connection.send(answer)


class Crew:
    """The workers of one server, and those that have left it."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, **settings: Any) -> None:
        self._clock = clock
        self.settings = settings
        self._connections: list[Connection] = []
        self.workers: list[Worker] = []

    def start(self, prepare: Callable[[], None] | None = None) -> Worker:
        """One more worker; ``prepare`` is called in it first. It has a monitor, not yet open."""
        mine, its = FORK.Pipe()
        self._connections = [c for c in self._connections if not c.closed] + [mine]
        process = FORK.Process(
            target=_work,
            args=(its, self._connections, self._clock, self.settings, prepare),
            daemon=True,
        )
        process.start()
        its.close()
        worker = Worker(mine, process)
        self.workers.append(worker)
        return worker

    def all(
        self, job: Callable[Concatenate[MetricsMonitor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> list[R]:
        """Run the job in all workers that live, at once; their results."""
        alive = [worker for worker in self.workers if worker.process.is_alive()]
        return [result() for result in [w.begin(job, *args, **kwargs) for w in alive]]


@contextmanager
def crew(number: int, clock: Clock = SYSTEM_CLOCK, **settings: Any) -> Iterator[Crew]:
    """That many workers with these settings of their monitors; none outlives the block."""
    workers = Crew(clock, **settings)
    try:
        for _ in range(number):
            workers.start()
        yield workers
    finally:
        for worker in workers.workers:
            worker.process.kill()
            worker.process.join()
