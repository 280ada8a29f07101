"""Random ASGI applications as data, and servers that write down all that happens to them.

A `Program` says what an application does, a `Script` what its server and client do. `play` runs
both, around any wrapping of the application, and returns a `Run`: the events that the application
and the server saw, in one list and in their order. Two runs of the same program are equal when
nobody could have told them apart. There is no event loop: `play` resumes the application itself,
so that it is cancelled exactly where the script says.
"""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hypothesis import strategies as st

from metricsmw.adapters import asgi, asgi_exchange, measurement
from metricsmw.adapters.measurement import exclude_request
from metricsmw.clock import ManualClock

from .outcomes import Outcome, complete, excluded, failed, gone

if TYPE_CHECKING:
    from metricsmw.adapters.types import ASGIApp, Message, Receive, Scope, Send


class Interruption(BaseException):
    """Raised past everything that catches `Exception`."""


class ClientGoneError(OSError):
    """What a server's `send` may raise for a client that has gone."""


ERRORS: tuple[type[BaseException], ...] = (
    ValueError,
    OSError,
    Interruption,
    KeyboardInterrupt,
    SystemExit,
    CancelledError,
)


# --- what an application does ---------------------------------------------------------------------


@dataclass(frozen=True)
class Sending:
    """Send this message; `spoils`: and use its dict for something else afterwards."""

    message: tuple[tuple[str, Any], ...]
    spoils: bool


@dataclass(frozen=True)
class Receiving:
    """Ask for a message."""


@dataclass(frozen=True)
class Pause:
    """Wait for something else than the server."""


@dataclass(frozen=True)
class Wait:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True)
class Raise:
    """Raise an exception of this class."""

    error: type[BaseException]


@dataclass(frozen=True)
class Exclude:
    """Have the request left out of the numbers."""


Step: TypeAlias = "Sending | Receiving | Pause | Wait | Raise | Exclude"


@dataclass(frozen=True)
class Program:
    """An application. `stubborn`: it goes on after an `Exception` from the server."""

    steps: tuple[Step, ...]
    stubborn: bool


@dataclass(frozen=True)
class Script:
    """A server and its client.

    How the server treats messages to a client that has gone:
    - "asking": drops them, and tells who asks (`disconnected`), as uvicorn does;
    - "closing": drops them, and is `closed`, also after a whole response, as hypercorn is;
    - "raising": raises an OSError, as the specification has it from 2.4 on;
    - "mute": drops them.
    Two more things that servers do, beside raising for each message that is out of turn:
    - `forbearing`: it ignores such a message after the start, but takes another start as long as
      it has no bytes, and trailers without a body;
    - `choosy`: it refuses the first start, for a bad header, say.
    The client leaves at the turn `leaves_at`, the application is cancelled at `cancelled_at`
    (`finally_closed`: its coroutine is closed instead); None: never.
    """

    server: Literal["asking", "closing", "raising", "mute"]
    body: tuple[bytes, ...]  # of the request
    slow: bool  # every call of the server takes a turn
    leaves_at: int | None
    cancelled_at: int | None
    finally_closed: bool
    forbearing: bool = False
    choosy: bool = False


def messages(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    message = st.fixed_dictionaries({"type": st.just(kind)}, optional=fields)
    return st.builds(Sending, message.map(lambda fields: tuple(fields.items())), st.booleans())


headers = st.lists(
    st.tuples(
        st.sampled_from([b"content-type", b"Content-Type", b"x-a", b"X-A", b"set-cookie"]),
        st.sampled_from([b"text/plain", b"", b"caf\xe9"]),
    ),
    max_size=3,
)


def starts(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    status = st.sampled_from([200, 200, 204, 304, 404, 500, 599, 101])
    message = st.fixed_dictionaries(
        {"type": st.just("http.response.start"), "status": status, "headers": headers, **fields}
    )
    return st.builds(Sending, message.map(lambda fields: tuple(fields.items())), st.booleans())


body = {"body": st.binary(max_size=5)}
parts = messages("http.response.body", **body).map(
    lambda step: Sending((*step.message, ("more_body", True)), step.spoils)
)
lasts = messages("http.response.body", **body, more_body=st.just(False))
others = st.one_of(
    messages("http.response.pathsend", path=st.just("/tmp/x")),
    messages("http.response.zerocopysend", more_body=st.booleans()),
    messages("http.response.trailers", headers=headers, more_trailers=st.booleans()),
    messages("http.response.early_hint", links=st.just([b"</x>"])),
    messages("http.response.informational", status=st.just(103), headers=headers),
    messages("http.response.push", path=st.just("/x"), headers=headers),
    messages("http.response.debug", info=st.just({})),
    messages("http.response.unheard_of"),
)
receives = st.just(Receiving())
pauses = st.just(Pause())
waits = st.builds(Wait, st.sampled_from([0.5, 1.0, 4.0]))
raises = st.builds(Raise, st.sampled_from(ERRORS))
excludes = st.just(Exclude())
between = st.lists(
    st.one_of(parts, parts, receives, pauses, waits, others, raises, excludes, starts()),
    max_size=3,
).map(tuple)
# Most are responses as they should be, up to something that happens in between.
likely = st.tuples(
    st.lists(st.one_of(receives, pauses, waits, others), max_size=2).map(tuple),
    st.one_of(starts(), starts(), starts(trailers=st.booleans())),
    between,
    st.one_of(lasts, lasts, others),
    between,
).map(lambda each: (*each[0], each[1], *each[2], each[3], *each[4]))
anything = st.lists(
    st.one_of(
        starts(), starts(trailers=st.booleans()), parts, lasts, others, receives, raises, excludes
    ),
    max_size=6,
).map(tuple)
programs = st.builds(Program, st.one_of(likely, likely, anything), st.booleans())
scripts = st.builds(
    Script,
    server=st.sampled_from(["asking", "closing", "raising", "mute"]),
    body=st.lists(st.binary(max_size=3), max_size=2).map(tuple),
    slow=st.booleans(),
    leaves_at=st.one_of(st.none(), st.none(), st.integers(1, 6)),
    cancelled_at=st.one_of(st.none(), st.none(), st.none(), st.integers(1, 6)),
    finally_closed=st.booleans(),
    forbearing=st.booleans(),
    choosy=st.sampled_from([False, False, True]),
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
    is_over: bool = False  # nobody can say which message was the last one
    outcome: Outcome | None = None  # what the numbers must say, judged by the server

    def __post_init__(self) -> None:
        self.began = self.clock.monotonic()

    def note(self, *event: object) -> None:
        self.events.append(event)

    def new(self, kind: type[BaseException], about: str = "") -> BaseException:
        """An exception that is told from all others of its class."""
        error = kind(f"the exception number {len(self.errors)}: {about}")
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
            if frame.filename not in (asgi.__file__, asgi_exchange.__file__, measurement.__file__)
        ]
        return which, places, self.describe(error.__context__), self.describe(error.__cause__)

    @property
    def elapsed(self) -> float:
        return self.clock.monotonic() - self.began


class Turn:
    """Awaited: the driver has its turn."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def application(run: Run) -> ASGIApp:
    """The program, to be called."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        run.note("called", {key: scope[key] for key in scope if "metricsmw" not in key})

        async def act(step: Step) -> None:
            if isinstance(step, Sending):
                message = dict(step.message)
                try:
                    run.note("send() answered", await send(message))  # type: ignore[func-returns-value]
                finally:
                    if step.spoils:
                        message.clear()
            elif isinstance(step, Receiving):
                run.note("received", await receive())
            elif isinstance(step, Pause):
                await Turn()
            elif isinstance(step, Exclude):
                if not run.is_over:
                    exclude_request(scope)
                    run.outcome = run.outcome or excluded()
            elif isinstance(step, Wait):
                run.clock.advance(step.seconds)
            else:
                raise run.new(step.error)

        for step in run.program.steps:
            try:
                await act(step)
            except Exception as error:
                run.note("the app got", run.describe(error))
                if not run.program.stubborn or isinstance(step, Raise):
                    raise

    return app


class Server:
    """Serves one request."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.script = run.script
        self.state = "start"
        self.trailers = False
        self.has_bytes = False
        self.choosy = run.script.choosy
        self.status: int | None = None
        self.turns = 0
        self.requests = list(run.script.body)
        self.gone = False  # the client
        self.told = False  # and the application knows
        self.closed = False

    def leave(self) -> None:
        self.gone = self.closed = True
        # What the application sends from now on is dropped unseen, the last message too.
        self.run.is_over = self.script.server == "asking"

    async def turn(self) -> None:
        if self.run.script.slow:
            await Turn()
        else:
            self.count_turn()

    def count_turn(self) -> None:
        self.turns += 1
        if self.turns == self.run.script.leaves_at:
            self.leave()

    async def receive(self) -> Message:
        await self.turn()
        if self.gone or self.state == "done":
            if self.state != "done":
                self.told = True
            return {"type": "http.disconnect"}
        if self.requests:
            chunk = self.requests.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.requests)}
        # A server waits; this client has no patience.
        await Turn()
        self.leave()
        self.told = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        run = self.run
        run.note("sent", dict(message))
        told = self.told or (self.gone and run.script.server == "closing")
        is_first = self.status is None and message["type"] == "http.response.start"
        if is_first:
            self.status = message.get("status")  # that of the app, whether or not it gets there
        await self.turn()
        if self.gone and run.script.server == "asking":
            return
        if self.gone and run.script.server == "raising":
            if not is_first:
                self.told = True
            raise run.new(ClientGoneError, message["type"])
        self.accept(message)
        if self.state == "done" and run.outcome is None:
            if run.script.server == "closing":
                self.closed = True
                await self.turn()
            run.outcome = gone() if told else complete(self.status or 500, run.elapsed)

    def accept(self, message: Message) -> None:
        """Take a message, or refuse it as being out of turn."""
        kind = message["type"]
        if kind.removeprefix("http.response.") in ("early_hint", "debug", "informational", "push"):
            return
        again = self.script.forbearing and self.state != "done" and not self.has_bytes
        if kind == "http.response.start" and (self.state == "start" or again):
            if self.choosy:
                self.choosy = False
                raise self.run.new(RuntimeError, "a bad header")
            self.status = message["status"]
            self.trailers = message.get("trailers", False)
            self.state = "body"
        elif self.state == "body" and kind in (
            "http.response.body",
            "http.response.pathsend",
            "http.response.zerocopysend",
        ):
            self.has_bytes = self.has_bytes or bool(message.get("body"))
            if not message.get("more_body"):
                self.state = "trailers" if self.trailers else "done"
        elif kind == "http.response.trailers" and (
            self.state == "trailers"
            or (self.state == "body" and self.trailers and self.script.forbearing)
        ):
            if not message.get("more_trailers"):
                self.state = "done"
        elif self.state == "start" or not self.script.forbearing:
            raise self.run.new(RuntimeError, f"{kind} in state {self.state}")

    def drive(self, app: Awaitable[None]) -> None:
        """Resume the application until it ends."""
        run, coroutine = self.run, app.__await__()
        resumed = 0
        resume: Callable[[], object] = lambda: coroutine.send(None)  # noqa: E731
        try:
            while True:
                resume()
                resumed += 1
                self.count_turn()
                if resumed == run.script.cancelled_at:
                    if run.script.finally_closed:
                        coroutine.close()
                        raise StopIteration("closed")
                    error = run.new(CancelledError)
                    resume = lambda error=error: coroutine.throw(error)  # noqa: E731
                else:
                    resume = lambda: coroutine.send(None)  # noqa: E731
        except StopIteration as end:
            run.note("the app returned", end.value)
            self.judge(None)
        except BaseException as error:
            run.note("the app raised", run.describe(error))
            self.judge(error)

    def judge(self, error: BaseException | None) -> None:
        """The first verdict counts: that on a whole response, or else this one."""
        run, server = self.run, self.run.script.server
        if run.outcome is None:
            says = {"asking": self.gone, "closing": self.closed}.get(server)
            if says is None:
                says = isinstance(error, CancelledError)
            if self.told or says:
                run.outcome = gone()
            else:
                run.outcome = failed(self.status or 500, run.elapsed)

    def serve(self, app: ASGIApp) -> None:
        scope: Scope = {"type": "http", "method": "GET", "path": "/some/path", "headers": []}
        kind = {"asking": Asking, "closing": Closing}.get(self.run.script.server)
        if kind is not None:
            cycle = kind(self)
            self.drive(app(scope, cycle.receive, cycle.send))
            return

        # What others hand out tells nothing.
        async def receive() -> Message:
            return await self.receive()

        async def send(message: Message) -> None:
            await self.send(message)

        self.drive(app(scope, receive, send))


class Cycle:
    """What receive and send are methods of, where that can be asked."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def receive(self) -> Message:
        return await self.server.receive()

    async def send(self, message: Message) -> None:
        await self.server.send(message)


class Asking(Cycle):
    """As uvicorn's."""

    __module__ = "uvicorn.protocols.http.httptools_impl"

    @property
    def disconnected(self) -> bool:
        return self.server.gone


class Closing(Cycle):
    """As hypercorn's."""

    __module__ = "hypercorn.protocol.http_stream"

    @property
    def closed(self) -> bool:
        return self.server.closed


def play(
    program: Program,
    script: Script,
    clock: ManualClock,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> Run:
    """Serve one request to the program, as wrapped."""
    run = Run(program, script, clock)
    Server(run).serve(wrap(application(run)))
    return run
