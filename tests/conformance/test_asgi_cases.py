"""ASGI, case by case: what a server, an application and the numbers see of a measured request."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from types import MethodType
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware, metrics_app
from metricsmw.adapters.auth import public
from metricsmw.clock import ManualClock

from .drivers import DISCONNECT, REQUEST, Exchange, ask, fetch, hello, new_scope, part, start
from .outcomes import assert_counted, complete, failed, gone, rows

if TYPE_CHECKING:
    from pathlib import Path

    from metricsmw.adapters.types import ASGIApp, Message, Receive, Scope, Send


# --- streaming ------------------------------------------------------------------------------------


def test_a_part_is_sent_before_the_next_is_made(monitor: MetricsMonitor) -> None:
    made: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        for data in (b"one", b"two", b"three"):
            made.append(data)
            await part(send, data, more=True)
        await part(send)

    async def seen(message: Message) -> None:
        if message.get("body"):
            assert made[-1] == message["body"]
            assert_counted(monitor, in_flight=1)

    async def main() -> None:
        exchange = Exchange()
        exchange.on_send = seen
        await ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)
        assert exchange.body == b"onetwothree"

    asyncio.run(main())
    assert_counted(monitor, complete())


# What ends a response, after its start: the messages, and which of them is the last.
ENDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "body": ({}, [{"type": "http.response.body", "body": b"x"}]),
    "empty body": ({}, [{"type": "http.response.body"}]),
    "stream": (
        {},
        [{"type": "http.response.body", "more_body": True}, {"type": "http.response.body"}],
    ),
    "path": ({}, [{"type": "http.response.pathsend", "path": "/tmp/x"}]),
    "file": (
        {},
        [
            {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
            {"type": "http.response.zerocopysend", "file": 3},
        ],
    ),
    "trailers": (
        {"trailers": True},
        [
            {"type": "http.response.body", "body": b"x"},
            {"type": "http.response.trailers", "headers": [], "more_trailers": True},
            {"type": "http.response.trailers", "headers": []},
        ],
    ),
    "path and trailers": (
        {"trailers": True},
        [
            {"type": "http.response.pathsend", "path": "/tmp/x"},
            {"type": "http.response.trailers", "headers": []},
        ],
    ),
    "no trailers": ({"trailers": False}, [{"type": "http.response.body", "body": b"x"}]),
    "debug": ({}, [{"type": "http.response.debug", "info": {}}, {"type": "http.response.body"}]),
}


@pytest.mark.parametrize(("head", "messages"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("early_hints", [False, True])
def test_latency_runs_until_the_server_has_the_last_message(
    head: dict[str, Any],
    messages: list[dict[str, Any]],
    early_hints: bool,
    monitor: MetricsMonitor,
    clock: ManualClock,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if early_hints:
            await send({"type": "http.response.early_hint", "links": []})
        await start(send, 201, **head)
        for message in messages:
            assert_counted(monitor, in_flight=1)
            await send(message)
        assert_counted(monitor, complete(201, len(messages) + 1 + early_hints))
        clock.advance(100)  # a background task

    async def slow(message: Message) -> None:
        clock.advance(1)

    async def main() -> None:
        exchange = Exchange()
        exchange.on_send = slow
        await ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)
        assert exchange.sent[-len(messages) :] == messages

    asyncio.run(main())
    assert_counted(monitor, complete(201, len(messages) + 1 + early_hints))


def test_background_tasks_are_in_no_latency(monitor: MetricsMonitor, clock: ManualClock) -> None:
    done: list[str] = []

    def background() -> None:
        assert_counted(monitor, complete(200, 1))
        clock.advance(100)
        done.append("background")

    async def page(request: Any) -> PlainTextResponse:
        clock.advance(1)
        return PlainTextResponse("page", background=BackgroundTask(background))

    app = ASGIMetricsMiddleware(Starlette(routes=[Route("/", page)]), monitor)
    assert fetch(app) == b"page"
    assert done == ["background"]
    assert_counted(monitor, complete(200, 1))


def test_a_background_task_that_fails_changes_nothing(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        raise ValueError("in the background")

    with pytest.raises(ValueError, match="in the background"):
        fetch(ASGIMetricsMiddleware(app, monitor))
    assert_counted(monitor, complete())


def test_files_and_streams_of_starlette(monitor: MetricsMonitor, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    routes = [
        Route("/file", lambda request: FileResponse(tmp_path / "file")),
        Route("/stream", lambda request: StreamingResponse(chunks())),
    ]
    app = ASGIMetricsMiddleware(Starlette(routes=routes), monitor)
    assert fetch(app, path="/file") == b"content"
    assert fetch(app, path="/stream") == b"onetwo"
    exchange = asyncio.run(ask(app, new_scope("/file", extensions={"http.response.pathsend": {}})))
    assert exchange.sent[-1]["type"] == "http.response.pathsend"
    assert_counted(monitor, complete(), complete(), complete())


# --- how it ends otherwise ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("started", [False, True])
def test_an_exception_is_raised_on_and_counted_once(
    error: type[BaseException], started: bool, monitor: MetricsMonitor
) -> None:
    raised = error()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await start(send, 202)
            await part(send, b"some", more=True)
        raise raised

    exchange = Exchange()
    coroutine = ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)
    with pytest.raises(error) as caught:
        coroutine.send(None)  # type: ignore[attr-defined]
    assert caught.value is raised
    assert caught.value.__context__ is None
    assert_counted(monitor, failed(202 if started else 500))


@pytest.mark.parametrize("started", [False, True])
def test_no_whole_response_is_an_error(started: bool, monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await start(send, 204)

    fetch(ASGIMetricsMiddleware(app, monitor))
    assert_counted(monitor, failed(204 if started else 500))


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_sent_after_the_end_changes_nothing(
    refused: bool, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200)
        await part(send, b"whole")
        clock.advance(1)
        await start(send, 500)
        await part(send, b"again")
        await send({"type": "http.response.trailers", "headers": []})

    async def on_send(message: Message) -> None:
        if refused and len(exchange.sent) == 2:
            raise RuntimeError("after the end")

    exchange = Exchange()
    exchange.on_send = on_send
    run = ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)
    if refused:
        with pytest.raises(RuntimeError, match="after the end"):
            asyncio.run(run)  # type: ignore[arg-type]
    else:
        asyncio.run(run)  # type: ignore[arg-type]
        assert len(exchange.sent) == 5
    assert_counted(monitor, complete())


def test_a_body_without_a_start_is_no_response(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await part(send, b"body")
        await send({"type": "http.response.trailers", "headers": []})

    fetch(ASGIMetricsMiddleware(app, monitor))  # this server takes it
    assert_counted(monitor, failed(500))


def test_a_start_in_place_of_one_that_was_refused(monitor: MetricsMonitor) -> None:
    """As gunicorn refuses a bad header, and then takes the page of the error."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.informational", "status": 103, "headers": []})
        with pytest.raises(ValueError, match="bad header"):
            await start(send, 200, trailers=True)
        await start(send, 503)
        await part(send, b"sorry", more=True)
        await part(send)
        assert_counted(monitor, complete(503))

    async def on_send(message: Message) -> None:
        if message.get("status") == 200:
            raise ValueError("bad header")

    exchange = Exchange()
    exchange.on_send = on_send
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert len(exchange.sent) == 4
    assert_counted(monitor, complete(503))


def test_an_informational_response_is_no_start(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.informational", "status": 103, "headers": []})

    fetch(ASGIMetricsMiddleware(app, monitor))
    assert_counted(monitor, failed(500))


class Bare:
    """A message that has no more than a server needs."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def __getitem__(self, key: str) -> object:
        return self.fields[key]

    def __contains__(self, key: str) -> bool:
        return key in self.fields


def test_what_cannot_be_noted_of_a_part_never_reaches_the_app(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Any) -> None:
        await send(Bare(type="http.response.start", status=200, headers=[]))
        await part(send, b"one", more=True)
        await part(send, b"two", more=True)
        await part(send)

    exchange = Exchange()
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert len(exchange.sent) == 4
    assert_counted(monitor, complete())
    assert monitor.get_health()["faults"] == 1


def test_an_exception_whose_status_cannot_be_read_is_raised_on(monitor: MetricsMonitor) -> None:
    class OddError(Exception):
        @property
        def status_code(self) -> int:
            raise LookupError("it has none yet")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["litestar_app"] = None
        raise OddError

    with pytest.raises(OddError):
        fetch(ASGIMetricsMiddleware(app, monitor))
    assert_counted(monitor, failed(500))


def test_two_tasks_that_both_end_the_response_count_once(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await asyncio.gather(part(send, b"one"), part(send, b"two"))

    async def on_send(message: Message) -> None:
        await asyncio.sleep(0)

    exchange = Exchange()
    exchange.on_send = on_send
    asyncio.run(
        ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)  # type: ignore[arg-type]
    )
    assert exchange.body == b"onetwo"
    assert_counted(monitor, complete())


# --- the client goes away -------------------------------------------------------------------------


class Uvicorn(Exchange):
    """Drops what comes for a client that has gone, and can be asked."""

    __module__ = "uvicorn.protocols.http.h11_impl"

    disconnected = False

    async def send(self, message: Message) -> None:
        if not self.disconnected:
            await super().send(message)


class Hypercorn(Exchange):
    """Is closed when the client has gone, and also by the end of a response."""

    __module__ = "hypercorn.protocol.http_stream"

    closed = False

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.closed = True
            self.messages.append(dict(DISCONNECT))
            self.over.set()
            await asyncio.sleep(0)

    def __init__(self, *messages: Message) -> None:
        super().__init__(*messages)
        self.over = asyncio.Event()

    async def receive(self) -> Message:
        if not self.messages:
            await self.over.wait()
        return self.messages.pop(0)


async def run_until(app: ASGIApp, exchange: Exchange, until: asyncio.Event) -> asyncio.Task[None]:
    """Run the application as a task, up to when it sets an event."""
    task = asyncio.ensure_future(app(new_scope(), exchange.receive, exchange.send))
    await until.wait()
    return task


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("ending", ["return", "raise", "respond"])
def test_an_application_that_hears_of_it(
    started: bool, ending: str, monitor: MetricsMonitor
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await start(send)
        message = await receive()
        assert message["type"] == "http.request"
        assert await receive() == DISCONNECT
        if ending == "raise":
            raise ValueError("nobody there")
        if ending == "respond":
            await hello(scope, receive, send)

    exchange = Exchange(dict(REQUEST), dict(DISCONNECT))
    run = ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send)
    if ending == "raise":
        with pytest.raises(ValueError, match="nobody there"):
            asyncio.run(run)  # type: ignore[arg-type]
    else:
        asyncio.run(run)  # type: ignore[arg-type]
    assert_counted(monitor, gone())


@pytest.mark.parametrize("ending", ["return", "respond"])
@pytest.mark.parametrize(("started", "outcome"), [(True, complete()), (False, gone())])
def test_a_client_that_goes_with_its_answer_to_head(
    started: bool, ending: str, outcome: Any, monitor: MetricsMonitor
) -> None:
    """There is no body for it to wait for, though the application may go on to make one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await start(send)
        assert await receive() == DISCONNECT
        if started and ending == "respond":
            await part(send)

    exchange = Exchange(dict(DISCONNECT))
    scope = new_scope(method="HEAD")
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(scope, exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert_counted(monitor, outcome)


@pytest.mark.parametrize("when", ["before the start", "before the body", "in the stream"])
def test_a_server_that_is_asked(when: str, monitor: MetricsMonitor) -> None:
    """The application never hears of it, nor does `send` say so."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        server.disconnected = when == "before the start"
        await start(send)
        server.disconnected = when != "in the stream"
        await part(send, b"some", more=True)
        server.disconnected = True
        await part(send)

    server = Uvicorn()
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(new_scope(), server.receive, server.send))  # type: ignore[arg-type]
    assert_counted(monitor, gone())


def test_a_server_that_raises(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        with pytest.raises(ConnectionResetError):
            await part(send, b"some", more=True)

    async def on_send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    exchange = Exchange()
    exchange.on_send = on_send
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    assert_counted(monitor, gone())


def test_an_os_error_of_the_application_is_its_own(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        raise ConnectionResetError("of the database")

    with pytest.raises(ConnectionResetError):
        fetch(ASGIMetricsMiddleware(app, monitor))
    assert_counted(monitor, failed(200))


def test_the_disconnect_that_a_whole_response_brings_is_none(monitor: MetricsMonitor) -> None:
    """An application that listens beside its stream hears of it while its last part is taken."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            heard.append(await receive())

        listener = asyncio.ensure_future(listen())
        await start(send)
        await part(send, b"some", more=True)
        await part(send)
        await listener

    async def main() -> None:
        server = Hypercorn()
        await ASGIMetricsMiddleware(app, monitor)(new_scope(), server.receive, server.send)

    asyncio.run(main())
    assert heard == [DISCONNECT]
    assert_counted(monitor, complete())


@pytest.mark.parametrize("is_known", [True, False])
def test_a_last_part_that_is_cancelled_when_the_response_is_over(
    is_known: bool, monitor: MetricsMonitor
) -> None:
    """As by Starlette's streams under Trio, or where a middleware goes on after its `send`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def respond() -> None:
            await start(send)
            await part(send, b"some", more=True)
            await part(send)

        responding = asyncio.ensure_future(respond())
        assert await receive() == DISCONNECT
        responding.cancel()
        await asyncio.wait([responding])

    async def main() -> None:
        server = Hypercorn()

        async def send(message: Message) -> None:
            await server.send(message)
            if server.closed:
                await asyncio.Event().wait()

        server_send = MethodType(lambda _, message: send(message), server) if is_known else send
        await ASGIMetricsMiddleware(app, monitor)(new_scope(), server.receive, server_send)

    asyncio.run(main())
    assert_counted(monitor, complete())


@pytest.mark.parametrize(
    ("kind", "client_there", "outcome"),
    [
        (Uvicorn, True, failed(200)),  # the server shuts down
        (Uvicorn, False, gone()),
        (Hypercorn, True, failed(200)),
        (Hypercorn, False, gone()),
        (Exchange, True, gone()),  # which says nothing: that of a server for each client
    ],
)
def test_a_cancelled_task(
    kind: type[Exchange], client_there: bool, outcome: Any, monitor: MetricsMonitor
) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            waiting.set()
            await asyncio.Event().wait()

        server: Any = kind()
        task = await run_until(ASGIMetricsMiddleware(app, monitor), server, waiting)
        assert_counted(monitor, in_flight=1)
        if not client_there:
            server.disconnected = server.closed = True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert_counted(monitor, outcome)


# --- what is around us ----------------------------------------------------------------------------


@pytest.mark.parametrize("scope_type", ["lifespan", "telnet"])
def test_other_scopes_are_passed_on_untouched(scope_type: str, monitor: MetricsMonitor) -> None:
    seen: list[Any] = []

    async def app(*args: Any) -> None:
        seen.extend(args)

    scope: Scope = {"type": scope_type, "asgi": {"version": "3.0"}, "state": {}}
    before = copy.deepcopy(scope)
    exchange = Exchange()
    given = (scope, exchange.receive, exchange.send)
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(*given))  # type: ignore[arg-type]
    assert all(one is other for one, other in zip(seen, given, strict=True))
    assert scope == before
    assert_counted(monitor)


def test_the_scope_is_the_server_s(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["seen"] = "by the application"
        await hello(scope, receive, send)

    scope = new_scope()
    fetch(ASGIMetricsMiddleware(app, monitor), scope)
    assert scope["seen"] == "by the application"


def test_context_variables_go_both_ways(monitor: MetricsMonitor) -> None:
    outer: ContextVar[str] = ContextVar("outer")
    inner: ContextVar[str] = ContextVar("inner")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inner.set("of the app")
        await start(send)
        await part(send, outer.get().encode())

    async def main() -> None:
        outer.set("of the server")
        exchange = await ask(ASGIMetricsMiddleware(app, monitor))
        assert exchange.body == b"of the server"
        assert inner.get() == "of the app"

    asyncio.run(main())


def test_beside_starlette_s_own_middleware(monitor: MetricsMonitor) -> None:
    """On either side of one that runs the application in another task."""
    user: ContextVar[str] = ContextVar("user")

    async def set_user(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        user.set("ada")
        return await call_next(request)

    async def page(request: Any) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield "hello, "
            yield user.get()

        return StreamingResponse(chunks())

    base = Middleware(BaseHTTPMiddleware, dispatch=set_user)
    ours = Middleware(ASGIMetricsMiddleware, monitor=monitor)
    for stack in ([base, ours], [ours, base]):
        app = Starlette(routes=[Route("/", page)], middleware=stack)
        assert fetch(app) == b"hello, ada"
    assert_counted(monitor, complete(), complete())


def test_a_scope_that_the_application_empties(monitor: MetricsMonitor) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.clear()
        await hello(scope, receive, send)

    assert fetch(ASGIMetricsMiddleware(app, monitor)) == b"hello"
    assert monitor.get_current_snapshot().requests_in_flight == 0


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda scope: pickle.loads(pickle.dumps(scope))]
)
def test_a_scope_can_be_copied_and_counts_once(
    copied: Callable[[Scope], Scope], monitor: MetricsMonitor
) -> None:
    inner = ASGIMetricsMiddleware(hello, monitor)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(copied(scope), receive, send)

    assert fetch(ASGIMetricsMiddleware(app, monitor)) == b"hello"
    assert_counted(monitor, complete())


def test_a_sub_app_below_a_copied_scope_is_left_out(monitor: MetricsMonitor) -> None:
    """As many hosts copy it to mount what is below."""
    sub_app = metrics_app(monitor, public())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sub_app(dict(scope), receive, send)

    other = MetricsMonitor()
    measured = ASGIMetricsMiddleware(ASGIMetricsMiddleware(app, monitor), other)
    assert b"healthy" in fetch(measured, path="/health")
    for each in (monitor, other):
        assert_counted(each)


@pytest.mark.parametrize("ending", ["whole", "failed", "sub-app"])
def test_a_request_leaves_no_garbage(ending: str, monitor: MetricsMonitor) -> None:
    class WatchedScope(dict[str, Any]):
        """A dict that may be watched."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        if ending == "whole":
            await part(send)

    async def main() -> None:
        measured = ASGIMetricsMiddleware(app, monitor, path="/metrics")
        path = "/metrics/health" if ending == "sub-app" else "/"
        await ask(measured, path=path)
        gc.collect()
        gc.disable()
        try:
            scope = WatchedScope(new_scope(path))
            watched = weakref.ref(scope)
            exchange = Exchange(dict(REQUEST))
            await measured(scope, exchange.receive, exchange.send)
            del scope
            assert watched() is None
        finally:
            gc.enable()

    asyncio.run(main())


# --- wrapped twice, and mounted -------------------------------------------------------------------


def test_the_outermost_of_two_counts(clock: ManualClock) -> None:
    monitor, other = MetricsMonitor(clock=clock), MetricsMonitor(clock=clock)
    app = ASGIMetricsMiddleware(hello, monitor, route=lambda scope: "/inner")
    app = ASGIMetricsMiddleware(app, other, route=lambda scope: "/other")
    app = ASGIMetricsMiddleware(app, monitor, route=lambda scope: "/outer")
    assert fetch(app) == b"hello"
    assert_counted(monitor, complete())
    assert_counted(other, complete())
    assert rows(monitor) == {"GET /outer": 1}
    assert rows(other) == {"GET /other": 1}


def test_a_measured_app_mounted_in_a_measured_app(monitor: MetricsMonitor) -> None:
    mounted = Starlette(routes=[Route("/items/{id}", lambda request: PlainTextResponse("item"))])
    measured = ASGIMetricsMiddleware(mounted, monitor)
    app = ASGIMetricsMiddleware(Starlette(routes=[Mount("/sub", measured)]), monitor)
    assert fetch(app, path="/sub/items/7") == b"item"
    assert_counted(monitor, complete())
    assert rows(monitor) == {"GET /sub/items/{id}": 1}


@pytest.mark.parametrize("root", ["/site", "/site/"])
@pytest.mark.parametrize("in_path", [True, False])
def test_below_a_root_path(root: str, in_path: bool, monitor: MetricsMonitor) -> None:
    """Servers differ in whether `path` includes it."""
    app = ASGIMetricsMiddleware(hello, monitor, path="/metrics", auth=public(), exclude=["/static"])
    prefix = "/site" if in_path else ""
    assert b"healthy" in fetch(app, path=f"{prefix}/metrics/health", root_path=root)
    assert fetch(app, path=f"{prefix}/static/x", root_path=root) == b"hello"
    assert_counted(monitor)
    assert fetch(app, path=f"{prefix}/page", root_path=root) == b"hello"
    assert_counted(monitor, complete())
