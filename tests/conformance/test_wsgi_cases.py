"""WSGI, case by case: what a server, an application and the numbers see of a measured request."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw import MetricsMonitor
from metricsmw.adapters.auth import public
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware, metrics_app
from metricsmw.clock import ManualClock

from .drivers import Answer, call, get, new_environ, wsgi_hello
from .outcomes import assert_counted, complete, failed, gone, rows

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Body = Callable[[Iterator[bytes]], Any]
"""Makes a body of some kind from a generator."""


class Plain:
    """A body that is iterable, and no iterator; it is closed as the generator is."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        self.chunks.close()  # type: ignore[attr-defined]


class Sized(Plain):
    def __len__(self) -> int:
        return 2


class Own(Plain):
    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.chunks)


BODIES: dict[str, Body] = {
    "generator": lambda chunks: chunks,
    "iterable": Plain,
    "sized": Sized,
    "iterator": Own,
}
bodies = pytest.mark.parametrize("make", BODIES.values(), ids=BODIES)


def streaming(make: Body, chunks: Callable[[], Iterator[bytes]], status: str = "200 OK") -> Any:
    """An application that answers with a body of a kind."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response(status, [("Content-Type", "text/plain")])
        return make(chunks())

    return app


# --- streaming ------------------------------------------------------------------------------------


@bodies
def test_a_chunk_is_there_before_the_next_is_made(make: Body, monitor: MetricsMonitor) -> None:
    made: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"one", b"two", b"three"):
            made.append(chunk)
            yield chunk

    answer = call(WSGIMetricsMiddleware(streaming(make, chunks), monitor))
    assert made == []
    for number, chunk in enumerate(answer.body, 1):
        assert made[-1] == chunk
        assert len(made) == number
        assert_counted(monitor, in_flight=1)
    answer.close()
    assert made == [b"one", b"two", b"three"]
    assert_counted(monitor, complete())


@bodies
def test_latency_runs_to_the_last_byte_and_through_close(
    make: Body, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    def chunks() -> Iterator[bytes]:
        try:
            clock.advance(1)
            yield b"one"
            clock.advance(2)
            yield b"two"
        finally:
            clock.advance(4)

    app = WSGIMetricsMiddleware(streaming(make, chunks), monitor)
    answer = call(app)
    clock.advance(8)
    assert list(answer.body) == [b"one", b"two"]
    clock.advance(16)
    answer.close()
    clock.advance(32)
    answer.close()
    assert_counted(monitor, complete(200, 31))


@pytest.mark.parametrize("kind", [list, tuple, bytes])
def test_a_whole_body_counts_at_once(
    kind: type, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    body = kind([b"one", b"two"]) if kind is not bytes else b"one"

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        clock.advance(1)
        start_response("404 Not Found", [])
        return body

    answer = call(WSGIMetricsMiddleware(app, monitor))
    assert answer.body is body
    assert_counted(monitor, complete(404, 1))
    answer.close()
    assert_counted(monitor, complete(404, 1))


@bodies
@pytest.mark.parametrize(
    ("method", "reads", "status", "outcome"),
    [
        ("GET", 9, "200 OK", complete()),
        ("GET", 1, "200 OK", gone()),
        ("POST", 1, "404 Not Found", gone()),
        ("HEAD", 0, "200 OK", complete()),
        ("HEAD", 1, "200 OK", complete()),
        ("GET", 0, "204 No Content", complete(204)),
        ("GET", 1, "304 Not Modified", complete(304)),
        # Before it iterates no server knows about its client; a middleware may want no body.
        ("GET", 0, "200 OK", complete()),
    ],
)
def test_the_body_is_closed_once_however_much_is_read(
    make: Body, method: str, reads: int, status: str, outcome: Any, monitor: MetricsMonitor
) -> None:
    closed: list[str] = []

    class Chunks:
        """A generator of three chunks that says when it is closed, though it never began."""

        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Chunks:
            return self

        def __next__(self) -> bytes:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return b"chunk"

        def close(self) -> None:
            closed.append("closed")

    def generator() -> Iterator[bytes]:
        def chunks() -> Iterator[bytes]:
            try:
                yield from (b"chunk", b"chunk", b"chunk")
            finally:
                closed.append("closed")

        generators.append(chunks())
        return generators[0]

    generators: list[Any] = []
    is_generator = make is BODIES["generator"]
    chunks: Any = generator if is_generator else Chunks
    answer = call(WSGIMetricsMiddleware(streaming(make, chunks, status), monitor), method=method)
    if reads:
        iterator = iter(answer.body)
        for _ in range(min(reads, 3)):
            assert next(iterator) == b"chunk"
        if reads > 3:
            assert list(iterator) == []
    assert_counted(monitor, in_flight=1)
    answer.close()
    # A generator that never began has nothing to end.
    assert closed == ([] if is_generator and not reads else ["closed"])
    assert [inspect.getgeneratorstate(each) for each in generators] == (
        [inspect.GEN_CLOSED] if is_generator else []
    )
    assert_counted(monitor, outcome)


def test_what_the_server_drops_ends_at_once(monitor: MetricsMonitor) -> None:
    """The common `def __iter__(self): yield …`, whose `finally` frees what it holds."""
    ended: list[str] = []

    class Rows:
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield b"row"
                yield b"row"
            finally:
                ended.append("ended")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Rows()

    answer = call(WSGIMetricsMiddleware(app, monitor))
    for _ in answer.body:
        break
    assert ended == ["ended"]
    answer.close()
    assert_counted(monitor, gone())


@bodies
@pytest.mark.parametrize("left_early", [False, True])
def test_a_request_leaves_no_garbage(make: Body, left_early: bool, monitor: MetricsMonitor) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    app = WSGIMetricsMiddleware(streaming(make, chunks), monitor)
    get(app)

    class Environ(dict[str, Any]):
        """A dict that may be watched."""

    gc.collect()
    gc.disable()
    try:
        environ = Environ(new_environ())
        watched = weakref.ref(environ)
        answer = call(app, environ)
        for _ in answer.body:
            if left_early:
                break
        answer.close()
        del environ, answer
        assert watched() is None
    finally:
        gc.enable()


# --- exceptions -----------------------------------------------------------------------------------


def test_a_second_start_is_refused_with_the_first_status_counted(monitor: MetricsMonitor) -> None:
    """The server raises the exception on where bytes are out already."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("206 Partial Content", [])
        yield b"one"
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("500 Internal Server Error", [], sys.exc_info())

    class Strict(Answer):
        def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
            if exc_info is not None:
                raise exc_info[1].with_traceback(exc_info[2])
            return super().start_response(status, headers)

    answer = Strict()
    answer.body = WSGIMetricsMiddleware(app, monitor)(new_environ(), answer.start_response)
    with pytest.raises(LookupError, match="too late"):
        answer.read()
    assert_counted(monitor, failed(206))


@pytest.mark.parametrize("exc_info", [(), False, (None, None, None)])
def test_a_second_start_without_an_exception(exc_info: Any, monitor: MetricsMonitor) -> None:
    """What the server takes is its own affair."""

    def app(environ: WSGIEnvironment, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("404 Not Found", [], exc_info)
        return [b"body"]

    assert get(WSGIMetricsMiddleware(app, monitor)) == b"body"
    assert_counted(monitor, complete(404))


def test_a_start_the_server_refuses_is_no_status(monitor: MetricsMonitor) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Bad\n", "header")])
        return [b"never"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        raise ValueError("bad header")

    with pytest.raises(ValueError, match="bad header"):
        WSGIMetricsMiddleware(app, monitor)(new_environ(), start_response)
    assert_counted(monitor, failed(500))


def test_a_body_that_starts_again_as_it_closes_counts_once(monitor: MetricsMonitor) -> None:
    class Restless:
        def __init__(self, start_response: StartResponse) -> None:
            self.start_response = start_response

        def __iter__(self) -> Iterator[bytes]:
            raise ValueError("no body")
            yield b""

        def close(self) -> None:
            self.start_response("200 OK", [])

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("202 Accepted", [])
        return Restless(start_response)

    answer = call(WSGIMetricsMiddleware(app, monitor))
    with pytest.raises(ValueError, match="no body"):
        answer.read()
    answer.close()
    assert_counted(monitor, failed(202))


def end_early(answer: Answer, error: type[BaseException]) -> None:
    """What a server does that fails to send what it got."""
    try:
        for _ in answer.body:
            raise error
    finally:
        answer.close()


@bodies
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BrokenPipeError, gone()),
        (GeneratorExit, gone()),  # a middleware outside that is a generator, and is closed
        (SystemExit, failed()),  # the server shuts down
        (KeyboardInterrupt, failed()),
        (TypeError, failed()),  # the server finds something in the body that is not bytes
        (AssertionError, failed()),
    ],
)
def test_who_ends_a_stream_early_is_told_apart(
    make: Body, error: type[BaseException], outcome: Any, monitor: MetricsMonitor
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    answer = call(WSGIMetricsMiddleware(streaming(make, chunks), monitor))
    with pytest.raises(error):
        end_early(answer, error)
    assert_counted(monitor, outcome._replace(status=200))


@pytest.mark.parametrize("answer", [None, [], (), iter([])])
def test_no_response_at_all_is_an_error(answer: Any, monitor: MetricsMonitor) -> None:
    body = call(WSGIMetricsMiddleware(lambda environ, start_response: answer, monitor))
    if answer is None:
        with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
            body.read()
    else:
        assert body.read() == b""
    assert_counted(monitor, failed(500))


@pytest.mark.parametrize(
    ("line", "status"),
    [("404", 404), ("500 x", 500), ("OK", 500), ("", 500), ("closed", 500), (None, 500)],
)
def test_odd_status_lines(line: Any, status: int, monitor: MetricsMonitor) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(line, [])
        return [b"body"]

    answer = call(WSGIMetricsMiddleware(app, monitor))
    assert answer.status is line
    assert_counted(monitor, complete(status))


def test_made_up_status_lines_take_no_memory(monitor: MetricsMonitor) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(f"200 {environ['PATH_INFO']}", [])
        return [b"body"]

    app = WSGIMetricsMiddleware(app, monitor)
    for number in range(2_000):
        get(app, f"/{number}")
    before = sys.getallocatedblocks()
    for number in range(2_000, 7_000):
        get(app, f"/{number}")
    assert sys.getallocatedblocks() - before < 1_000
    assert monitor.total_requests == 7_000


# --- file wrappers --------------------------------------------------------------------------------


def serving(file: Any) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file, 4)

    return app


FILE_WRAPPER = {"wsgi.file_wrapper": FileWrapper}


def test_a_file_wrapper_is_returned_as_it_is(monitor: MetricsMonitor, clock: ManualClock) -> None:
    made: list[FileWrapper] = []

    class Wrapper(FileWrapper):
        def __new__(cls, *args: Any) -> Any:
            made.append(super().__new__(cls))
            return made[-1]

    file = io.BytesIO(b"content")
    answer = call(WSGIMetricsMiddleware(serving(file), monitor), **{"wsgi.file_wrapper": Wrapper})
    assert answer.body is made[0]
    clock.advance(1)
    assert_counted(monitor, in_flight=1)
    assert answer.read() == b"content"
    assert file.closed
    assert_counted(monitor, complete(200, 1))


def test_a_file_wrapper_that_is_closed_twice(monitor: MetricsMonitor) -> None:
    file = io.BytesIO(b"content")
    answer = call(WSGIMetricsMiddleware(serving(file), monitor), **FILE_WRAPPER)
    assert answer.read() == b"content"
    answer.close()
    assert answer.body.close == file.close
    assert_counted(monitor, complete())


def test_a_wrapper_that_is_a_function(monitor: MetricsMonitor) -> None:
    """uWSGI's returns the file itself, and sends it where the application returns that."""
    file = io.BytesIO(b"content")
    wrapper = {"wsgi.file_wrapper": lambda file, size: file}
    answer = call(WSGIMetricsMiddleware(serving(file), monitor), **wrapper)
    assert answer.body is file
    assert answer.read() == b"content"
    assert file.closed
    assert_counted(monitor, complete())


def test_a_wrapper_that_cannot_be_watched_counts_at_once(monitor: MetricsMonitor) -> None:
    class Wrapper:
        __slots__ = ("file",)

        def __init__(self, file: Any, size: int) -> None:
            self.file = file

        def close(self) -> None:
            self.file.close()

    file = io.BytesIO()
    call(WSGIMetricsMiddleware(serving(file), monitor), **{"wsgi.file_wrapper": Wrapper}).close()
    assert file.closed
    assert_counted(monitor, complete())


@pytest.mark.parametrize(
    ("error", "outcome"), [(BrokenPipeError, gone()), (SystemExit, failed(200))]
)
def test_a_file_that_is_sent_in_part(
    error: type[BaseException], outcome: Any, monitor: MetricsMonitor
) -> None:
    app = WSGIMetricsMiddleware(serving(io.BytesIO(b"content")), monitor)
    answer = call(app, **FILE_WRAPPER)
    with pytest.raises(error):
        end_early(answer, error)
    assert_counted(monitor, outcome)


def test_a_file_whose_close_fails(monitor: MetricsMonitor) -> None:
    class File(io.BytesIO):
        def close(self) -> None:
            raise ValueError("stays open")

    file = File()
    answer = call(WSGIMetricsMiddleware(serving(file), monitor), **FILE_WRAPPER)
    with pytest.raises(ValueError, match="stays open"):
        answer.close()
    assert_counted(monitor, failed(200))
    io.BytesIO.close(file)


def test_a_server_that_was_started_in_an_except_block(monitor: MetricsMonitor) -> None:
    try:
        raise PermissionError("port 80")
    except PermissionError:
        app = WSGIMetricsMiddleware(serving(io.BytesIO(b"content")), monitor)
        assert get(app, **FILE_WRAPPER) == b"content"
    assert_counted(monitor, complete())


# --- what is around us ----------------------------------------------------------------------------


def writing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"written, ")
    return [b"returned"]


def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        raise LookupError
    except LookupError:
        start_response("503 Busy", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"busy"]


def two() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


APPS: dict[str, tuple[Any, bytes, int]] = {
    "list": (wsgi_hello, b"hello", 200),
    "write": (writing, b"written, returned", 200),
    "exc_info": (failing, b"busy", 503),
    **{name: (streaming(make, two), b"onetwo", 200) for name, make in BODIES.items()},
}


@pytest.mark.parametrize(("app", "body", "status"), APPS.values(), ids=APPS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.filterwarnings("error")
def test_the_validator_has_nothing_to_say(
    app: Any,
    body: bytes,
    status: int,
    method: str,
    monitor: MetricsMonitor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = validator(WSGIMetricsMiddleware(validator(app), monitor))
    answer = call(measured, method=method)
    assert answer.read() == body
    del answer
    gc.collect()
    assert capsys.readouterr().err == ""  # where it says that a body was not closed
    assert_counted(monitor, complete(status))


def test_context_variables_go_both_ways(monitor: MetricsMonitor) -> None:
    outer: ContextVar[str] = ContextVar("outer")
    inner: ContextVar[str] = ContextVar("inner")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        inner.set("of the app")
        start_response("200 OK", [])
        yield outer.get().encode()

    token = outer.set("of the server")
    assert get(WSGIMetricsMiddleware(app, monitor)) == b"of the server"
    assert inner.get() == "of the app"
    outer.reset(token)


@bodies
def test_an_application_that_took_over_a_websocket(make: Body, monitor: MetricsMonitor) -> None:
    """As Flask-Sock does: no response, and minutes go by."""

    def stops(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        raise StopIteration

    def half(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from (b"one", b"two")

    def silent(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return make(chunk for chunk in ())

    upgrade = {"HTTP_UPGRADE": "WebSocket"}
    with pytest.raises(StopIteration):
        call(WSGIMetricsMiddleware(stops, monitor), **upgrade)
    assert get(WSGIMetricsMiddleware(silent, monitor), **upgrade) == b""
    assert_counted(monitor)
    # A handshake that is refused is an answer like any other.
    get(WSGIMetricsMiddleware(wsgi_hello, monitor), **upgrade)
    assert_counted(monitor, complete())
    # And so is one that somebody leaves half read.
    with pytest.raises(BrokenPipeError):
        end_early(call(WSGIMetricsMiddleware(half, monitor), **upgrade), BrokenPipeError)
    assert_counted(monitor, complete(), gone())


def test_an_environ_that_the_application_empties(monitor: MetricsMonitor) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.clear()
        start_response("200 OK", [])
        return [b"hello"]

    assert get(WSGIMetricsMiddleware(app, monitor)) == b"hello"
    assert monitor.get_current_snapshot().requests_in_flight == 0


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_an_environ_can_be_copied_and_counts_once(
    copied: Callable[[Any], Any], monitor: MetricsMonitor
) -> None:
    inner = WSGIMetricsMiddleware(wsgi_hello, monitor)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        streams = {key: environ.pop(key) for key in ("wsgi.errors", "wsgi.input")}
        return inner({**copied(environ), **streams}, start_response)

    environ = new_environ()
    environ["wsgi.file_wrapper"] = None
    assert call(WSGIMetricsMiddleware(app, monitor), environ).read() == b"hello"
    assert_counted(monitor, complete())


def test_a_sub_app_below_a_copied_environ_is_left_out(monitor: MetricsMonitor) -> None:
    sub_app = metrics_app(monitor, public())

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return sub_app(dict(environ), start_response)

    other = MetricsMonitor()
    measured = WSGIMetricsMiddleware(WSGIMetricsMiddleware(app, monitor), other)
    assert b"healthy" in get(measured, "/health")
    for each in (monitor, other):
        assert_counted(each)


# --- wrapped twice, and mounted -------------------------------------------------------------------


@bodies
def test_the_outermost_of_two_counts(make: Body, clock: ManualClock) -> None:
    monitor, other = MetricsMonitor(clock=clock), MetricsMonitor(clock=clock)
    app = WSGIMetricsMiddleware(streaming(make, two), monitor, route=lambda environ: "/inner")
    app = WSGIMetricsMiddleware(app, other, route=lambda environ: "/other")
    app = WSGIMetricsMiddleware(app, monitor, route=lambda environ: "/outer")
    assert get(app) == b"onetwo"
    assert_counted(monitor, complete())
    assert_counted(other, complete())
    assert rows(monitor) == {"GET /outer": 1}
    assert rows(other) == {"GET /other": 1}


def test_a_measured_app_mounted_in_a_measured_app(monitor: MetricsMonitor) -> None:
    def route(environ: WSGIEnvironment) -> str:
        seen: str = environ["SCRIPT_NAME"] + "{rest}"
        return seen

    mounted = WSGIMetricsMiddleware(streaming(BODIES["generator"], two), monitor)
    app = WSGIMetricsMiddleware(
        DispatcherMiddleware(wsgi_hello, {"/sub": mounted}), monitor, route=route
    )
    assert get(app, "/sub/x") == b"onetwo"
    assert get(app, "/other") == b"hello"
    assert_counted(monitor, complete(), complete())
    assert rows(monitor) == {"GET /sub{rest}": 1, "GET {rest}": 1}


def test_the_sub_app_below_a_mount(monitor: MetricsMonitor) -> None:
    measured = WSGIMetricsMiddleware(wsgi_hello, monitor, path="/metrics", auth=public())
    app = DispatcherMiddleware(wsgi_hello, {"/site": measured})
    assert b"healthy" in get(app, "/site/metrics/health")
    assert get(app, "/metrics/health") == b"hello"  # outside of what is measured
    assert_counted(monitor)
    assert get(app, "/site/page") == b"hello"
    assert_counted(monitor, complete())


def test_a_path_of_more_than_ascii(monitor: MetricsMonitor) -> None:
    """WSGI hands paths over as bytes in the guise of Latin-1."""
    app = WSGIMetricsMiddleware(
        wsgi_hello, monitor, path="/m\xe9triques", auth=public(), exclude=["/\xfcber"]
    )
    assert b"healthy" in get(app, "/m\xc3\xa9triques/health")
    assert get(app, "/\xc3\xbcber/uns") == b"hello"
    assert_counted(monitor)
    assert get(app, "/\xe9\xff") == b"hello"  # no UTF-8 at all
    assert_counted(monitor, complete())
