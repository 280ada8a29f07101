"""Random WSGI applications as data, and a server that writes down all that happens to it.

A `Program` says what an application does, a `Script` what its server and client do. `run` plays
both, around any wrapping of the application, and returns a `Run`: the events that the application
and the server saw, in one list and in their order. Two runs of the same program are equal when
nobody could have told them apart.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from wsgiref.util import FileWrapper, setup_testing_defaults

from hypothesis import strategies as st

from metricsmw.adapters import bodies, measurement, wsgi
from metricsmw.adapters.measurement import exclude_request
from metricsmw.clock import ManualClock

from .outcomes import Outcome, complete, excluded, failed, gone

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers: TypeAlias = "list[tuple[str, str]]"


class Interruption(BaseException):
    """Raised past everything that catches `Exception`, as gevent's GreenletExit is."""


ERRORS: tuple[type[BaseException], ...] = (
    ValueError,
    OSError,
    Interruption,
    KeyboardInterrupt,
    SystemExit,
)


# --- what an application does ---------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Call start_response; `again`: with the exc_info of an exception that is being handled."""

    status: str
    headers: tuple[tuple[str, str], ...]
    again: bool


@dataclass(frozen=True)
class Write:
    """Call what the last start_response returned."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True)
class Raise:
    """Raise an exception of this class."""

    error: type[BaseException]


@dataclass(frozen=True)
class Chunk:
    """Hand out part of the body."""

    data: bytes


@dataclass(frozen=True)
class Exclude:
    """Have the request left out of the numbers."""


Step: TypeAlias = "Start | Write | Wait | Raise | Chunk | Exclude"
BodyKind = Literal[
    "list",
    "tuple",
    "sequence",
    "bytes",
    "file",
    "generator",
    "lazy app",
    "iterator",
    "iterable",
    "nothing",
]


@dataclass(frozen=True)
class Program:
    """An application: what it does when called, and what its body does."""

    prelude: tuple[Step, ...]
    kind: BodyKind
    body: tuple[Step, ...]
    closing: tuple[Step, ...] | None  # what close() does; None: it has none
    sized: bool


@dataclass(frozen=True)
class Script:
    """A server and its client.

    `reads`: how the server iterates. `stop_after`: it stops after that many chunks, None: never,
    0: it does not even begin. `error`: raised by the server then. `broken_write`: the client has
    gone by that call of write().
    """

    method: str
    reads: Literal["for", "iter", "next"]
    stop_after: int | None
    error: type[BaseException] | None
    broken_write: int | None


headers = st.lists(
    st.tuples(
        st.sampled_from(["Content-Type", "content-type", "X-A", "x-a", "Set-Cookie", "ETag"]),
        st.sampled_from(["text/plain", "", "caf\xe9", "a=1; Path=/"]),
    ),
    max_size=3,
).map(tuple)
starts = st.builds(
    Start,
    st.sampled_from(
        ["200 OK", "200 ok", "204 No Content", "304 Not Modified", "404 Nope", "599 ?", "100 x"]
    ),
    headers,
    st.booleans(),
)
chunks = st.builds(Chunk, st.binary(max_size=5))
waits = st.builds(Wait, st.sampled_from([0.5, 1.0, 4.0]))
raises = st.builds(Raise, st.sampled_from(ERRORS))
excludes = st.just(Exclude())
writes = st.builds(Write, st.binary(max_size=5))
first_starts = starts.map(lambda start: Start(start.status, start.headers, again=False))

programs = st.builds(
    Program,
    prelude=st.one_of(
        first_starts.map(lambda start: (start,)),
        st.tuples(waits, first_starts, st.one_of(writes, waits, starts, raises, excludes)),
        st.lists(st.one_of(first_starts, starts, writes, waits, raises), max_size=4).map(tuple),
    ),
    kind=st.sampled_from(BodyKind.__args__),  # type: ignore[attr-defined]
    body=st.lists(
        st.one_of(chunks, chunks, chunks, chunks, waits, starts, raises, excludes), max_size=5
    ).map(tuple),
    closing=st.one_of(
        st.none(), st.just(()), st.lists(st.one_of(waits, raises), max_size=2).map(tuple)
    ),
    sized=st.booleans(),
)
scripts = st.builds(
    Script,
    method=st.sampled_from(["GET", "GET", "HEAD", "POST"]),
    reads=st.sampled_from(["for", "iter", "next"]),
    stop_after=st.one_of(st.none(), st.none(), st.integers(0, 4)),
    error=st.sampled_from([None, BrokenPipeError, SystemExit, TypeError]),
    broken_write=st.one_of(st.none(), st.none(), st.integers(1, 2)),
)


# --- what happens ---------------------------------------------------------------------------------


@dataclass
class Run:
    """What the application and the server saw, and what is needed to judge it."""

    program: Program
    script: Script
    clock: ManualClock
    events: list[object] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    status: str | None = None  # the last that the server accepted
    outcome: Outcome | None = None  # what the numbers must say, judged by the server
    headers_sent: bool = False
    writes: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock.monotonic()

    def note(self, *event: object) -> None:
        if not self.over:  # what the garbage collector finds is not in any order
            self.events.append(event)

    def new(self, kind: type[BaseException]) -> BaseException:
        """An exception that is told from all others of its class."""
        error = kind(f"the exception number {len(self.errors)}")
        self.errors.append(error)
        return error

    def describe(self, error: BaseException | None) -> object:
        """Which exception this is, where it passed, and what it was raised over."""
        if error is None:
            return None
        which: object = next(
            (number for number, known in enumerate(self.errors) if known is error),
            (type(error), str(error)),
        )
        places = [
            (frame.name, frame.lineno)
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in (wsgi.__file__, bodies.__file__, measurement.__file__)
        ]
        return which, places, self.describe(error.__context__), self.describe(error.__cause__)

    @property
    def elapsed(self) -> float:
        return self.clock.monotonic() - self.began

    def judge(self, outcome: Callable[..., Outcome]) -> None:
        """The first verdict counts."""
        if self.outcome is None:
            if self.status is None:
                self.outcome = failed(500, self.elapsed)
            else:
                self.outcome = outcome(int(self.status[:3]), self.elapsed)


class Body:
    """The body of a program that is no builtin: `__iter__`, and what else was asked for."""

    def __init__(self, run: Run, act: Callable[[Step], None]) -> None:
        self.run = run
        self.act = act
        self.left = iter(run.program.body)

    def __iter__(self) -> Iterator[bytes]:
        self.run.note("iter() of the body")
        return self

    def __next__(self) -> bytes:
        self.run.note("next() of the body")
        for step in self.left:
            if isinstance(step, Chunk):
                return step.data
            self.act(step)
        raise StopIteration


def close(body: Any) -> None:
    """Close a body as the program says."""
    body.run.note("close() of the body")
    for step in body.run.program.closing:
        body.act(step)


def length(body: Any) -> int:
    """A body's len(), which may say what it likes."""
    body.run.note("len() of the body")
    return len(body.run.program.body)


def iterate_anew(body: Any) -> Iterator[bytes]:
    """An iterable that is not its own iterator."""
    body.run.note("iter() of the body")
    return generate(body.run, body.act, body.run.program.body)


def generate(run: Run, act: Callable[[Step], None], steps: Iterable[Step]) -> Iterator[bytes]:
    try:
        for step in steps:
            if isinstance(step, Chunk):
                yield step.data
            else:
                act(step)
    except BaseException as error:
        run.note("inside the generator", type(error))
        raise
    finally:
        run.note("the generator ends")


class ListOfItsOwn(list[bytes]):
    """As apps have them that want to say more about their bodies."""


class File(io.BytesIO):
    """A file whose close() is written down."""

    run: Run

    def close(self) -> None:
        if not self.closed:
            self.run.note("close() of the file")
        super().close()


def application(run: Run) -> WSGIApplication:
    """The program, to be called."""
    program = run.program

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        run.note("called", environ["REQUEST_METHOD"], environ["PATH_INFO"])
        write: Callable[[bytes], object] | None = None

        def act(step: Step) -> None:
            nonlocal write
            if isinstance(step, Wait):
                run.clock.advance(step.seconds)
            elif isinstance(step, Raise):
                raise run.new(step.error)
            elif isinstance(step, Exclude):
                exclude_request(environ)
                run.outcome = run.outcome or excluded()
            elif isinstance(step, Start):
                if step.again:
                    try:
                        raise run.new(LookupError)
                    except LookupError:
                        write = start_response(step.status, list(step.headers), sys.exc_info())  # type: ignore[arg-type]
                else:
                    write = start_response(step.status, list(step.headers))
                run.note("write() is", getattr(write, "__self__", None))
            elif isinstance(step, Write) and write is not None:
                write(step.data)

        if program.kind == "lazy app":
            return generate(run, act, program.prelude + program.body)
        for step in program.prelude:
            act(step)
        parts = [step.data for step in program.body if isinstance(step, Chunk)]
        if program.kind == "nothing":
            return None
        if program.kind == "list":
            return parts
        if program.kind == "tuple":
            return tuple(parts)
        if program.kind == "sequence":
            return ListOfItsOwn(parts)
        if program.kind == "bytes":
            return b"".join(parts)
        if program.kind == "file":
            file = File(b"".join(parts))
            file.run = run
            return environ["wsgi.file_wrapper"](file, 3)
        if program.kind == "generator":
            return generate(run, act, program.body)
        methods: dict[str, object] = {}
        if program.kind == "iterable":
            methods["__iter__"] = iterate_anew
        if program.closing is not None:
            methods["close"] = close
        if program.sized:
            methods["__len__"] = length
        return type("Body", (Body,), methods)(run, act)

    return app


class Server:
    """Serves one request, by the letter of PEP 3333."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.raised: BaseException | None = None  # by the server itself
        self.verdict: Callable[..., Outcome] = complete

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Server)  # those of two runs are the same

    __hash__ = None  # type: ignore[assignment]

    def start_response(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], None]:
        run = self.run
        run.note("start_response", status, headers, run.describe(exc_info and exc_info[1]))
        if exc_info is not None:
            try:
                if run.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif run.status is not None:
            raise AssertionError("start_response was called twice")
        run.status = status
        return self.write

    def write(self, data: bytes) -> None:
        run = self.run
        run.note("write", data)
        run.writes += 1
        if run.writes == run.script.broken_write:
            raise run.new(BrokenPipeError)
        self.send(data)

    def send(self, data: bytes) -> None:
        run = self.run
        run.note("sent", data)
        if run.status is None:
            self.raised = AssertionError("no start_response before the body")
            raise self.raised
        run.headers_sent = True

    def serve(self, app: WSGIApplication) -> None:
        run = self.run
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": run.script.method,
            "PATH_INFO": "/some/path",
            "wsgi.file_wrapper": FileWrapper,
        }
        setup_testing_defaults(environ)
        try:
            body = app(environ, self.start_response)
        except BaseException as error:
            run.note("the app raised", run.describe(error))
            run.judge(failed)
            return
        whole = isinstance(body, (list, tuple, bytes))
        run.note("returned", type(body) if whole or isinstance(body, FileWrapper) else "a body")
        if whole:
            run.judge(complete)
        try:
            try:
                if hasattr(body, "__len__"):
                    run.note("len()", len(body))
                if run.script.stop_after != 0:
                    self.iterate(body)
            finally:
                self.close(body)
        except BaseException as error:
            run.note("the server caught", run.describe(error))

    def iterate(self, body: Any) -> None:
        """Send the body, as far as the script goes."""
        run, script = self.run, self.run.script
        is_iterator = run.program.kind in ("generator", "lazy app", "iterator")
        sent = 0
        try:
            if script.reads == "for" or run.program.kind == "nothing":
                for chunk in body:
                    self.send(chunk)
                    sent += 1
                    if sent == script.stop_after:
                        self.stop()
                        break
                return
            chunks = body if script.reads == "next" and is_iterator else iter(body)
            while True:
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
                self.send(chunk)
                sent += 1
                if sent == script.stop_after:
                    self.stop()
                    return
        except BaseException as error:
            if error is not self.raised:
                run.judge(failed)
            elif not isinstance(error, (SystemExit, TypeError, AssertionError)):
                self.verdict = self.left
            elif not self.is_bodiless():
                self.verdict = failed
            raise

    def stop(self) -> None:
        """The client is gone, or the server is at its end."""
        if self.run.script.error is not None:
            self.raised = self.run.new(self.run.script.error)
            raise self.raised
        # A file wrapper that is closed looks the same as one that was sent.
        if self.run.program.kind != "file":
            self.verdict = self.left

    def left(self, status: int, seconds: float) -> Outcome:
        return complete(status, seconds) if self.is_bodiless() else gone()

    def is_bodiless(self) -> bool:
        status = self.run.status or ""
        return self.run.script.method == "HEAD" or status[:3] in ("204", "304")

    def close(self, body: Any) -> None:
        try:
            if hasattr(body, "close"):
                body.close()
        except BaseException:
            self.run.judge(failed)
            raise
        finally:
            self.run.judge(self.verdict)


def play(
    program: Program,
    script: Script,
    clock: ManualClock,
    wrap: Callable[[WSGIApplication], WSGIApplication] = lambda app: app,
) -> Run:
    """Serve one request to the program, as wrapped."""
    run = Run(program, script, clock)
    Server(run).serve(wrap(application(run)))
    run.over = True
    return run
