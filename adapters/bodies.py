"""A WSGI body, wrapped for the server: it passes the chunks on and reports its end.

Servers differ in their use of a body: most iterate it to its end and close it, some bridges never
close it, and some drop it in the middle. The exchange, which app and environ can reach, has no
reference to the body, so that the app's own body is released the moment the server drops this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from metricsmw.engine.recording.exchange import DISCONNECTED, State

if TYPE_CHECKING:
    from metricsmw.engine.recording.recorder import Recorder


class Exchange(Protocol):
    """The request that a body belongs to."""

    state: State
    status: int | None

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""

    def note_first_byte(self, at: float) -> None:
        """Note when the first bytes of a stream had been passed on, unless that is known."""

    def complete(self) -> None:
        """Report that the response is whole."""

    def failed(self, error: BaseException | None) -> None:
        """Report that an exception escaped, or that there was no response."""

    def cut_short(self) -> None:
        """Report that the body was closed before its end."""

    def report(self, outcome: State) -> None:
        """Report any other outcome."""


class Body:
    """A body as the server sees it, which reports its end to the measurement.

    A body that nobody closes reports its end when it is dropped.

    Attributes:
        exchange: The request's measurement.
        body: The app's body.
        exhausted: The body has been iterated to its end, or never, as that of a HEAD may be.
    """

    __slots__ = ("body", "exchange", "exhausted")

    # What a body is that has a length.
    sized: ClassVar[type[Body]]

    exchange: Exchange
    body: Iterable[bytes]
    exhausted: bool

    def __iter__(self) -> Iterator[bytes]:
        raise NotImplementedError

    def __next__(self) -> bytes:
        self.exhausted = False
        try:
            return next(self.body)  # type: ignore[call-overload, no-any-return]
        except StopIteration:
            self.exhausted = True
            raise
        except BaseException as error:
            self.exchange.failed(error)
            raise

    def close(self) -> None:
        """Close the app's body, and report how it ended."""
        body: Any = self.body
        exchange = self.exchange
        if type(body) is GeneratorType:
            # Its frame is gone once it has ended: if not exhausted, then by an exception.
            if body.gi_frame is None:
                if self.exhausted:
                    exchange.complete()
                else:
                    exchange.failed(None)
                return
            close: Callable[[], object] | None = body.close
        else:
            close = getattr(body, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:
            exchange.failed(error)
            raise
        if self.exhausted:
            exchange.complete()
        else:
            exchange.cut_short()

    def __del__(self) -> None:
        exchange = self.exchange
        if exchange.is_open:
            # A generator that was never begun has not started a response either.
            if self.exhausted and exchange.status is not None:
                exchange.complete()
            else:
                exchange.report(DISCONNECTED)


def body_class(recorder: Recorder) -> type[Body]:
    """Return a class of bodies with the recorder's clock in a closure."""
    clock = recorder.clock

    class Passed(Body):
        """The methods that every body but a list goes through."""

        __slots__ = ()

        def __iter__(self) -> Iterator[bytes]:
            self.exhausted = False
            exchange = self.exchange
            taken = 0.0
            # A generator is its own iterator; another body sees but one iter().
            body = self.body if type(self.body) is GeneratorType else chain(self.body)
            try:
                # No "yield from": it would close the body when the server drops the iterator.
                for chunk in body:
                    yield chunk
                    if chunk:
                        taken = clock()
                        for chunk in body:
                            exchange.note_first_byte(taken)
                            yield chunk
                            for chunk in body:
                                yield chunk
                            break
                        break
            except GeneratorExit:
                raise
            except BaseException as error:
                if taken:
                    exchange.note_first_byte(taken)
                exchange.failed(error)
                raise
            self.exhausted = True

    class Sized(Passed):
        """A body that has a length."""

        __slots__ = ()

        def __len__(self) -> int:
            return len(self.body)  # type: ignore[arg-type]

    Passed.sized = Sized
    return Passed
