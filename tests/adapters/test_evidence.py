"""What a captured request tells of itself under each adapter, and what none ever tells."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.carriers import path_of, query_of, request_id_of, trace_of
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.tracing import Trace, trace_of_header
from metricsmw.exporters import openmetrics, protobuf
from metricsmw.exporters.server import exposition
from metricsmw.exporting import write_prometheus

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "s3cr3t"
HEADERS = {
    "authorization": f"Bearer {SECRET}-authorization",
    "cookie": f"session={SECRET}-cookie",
    "x-api-key": f"{SECRET}-key",
    "referer": f"http://h/?{SECRET}-referer",
    "user-agent": f"{SECRET}-agent",
    "tracestate": f"v={SECRET}-state",
    "baggage": f"b={SECRET}-baggage",
    "traceparent": TRACEPARENT,
    "x-request-id": "request-7",
}
Ask = Callable[..., None]


class SoldOutError(Exception):
    """What the app raises."""


def wsgi(
    monitor: MetricsMonitor, headers: Mapping[str, str], query: str = "", fails: bool = False
) -> None:
    """Ask for a path whose app takes 2 s."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"] = f"{SECRET}-body"
        monitor.clock.advance(2)  # type: ignore[attr-defined]
        if fails:
            raise SoldOutError(f"{SECRET}-message")
        start_response("200 OK", [("Set-Cookie", f"a={SECRET}-set")])
        return [f"{SECRET}-answer".encode()]

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/mount",
        "PATH_INFO": f"/{SECRET}-path",
        "QUERY_STRING": query,
        "REMOTE_USER": f"{SECRET}-user",
        **{f"HTTP_{name.upper().replace('-', '_')}": text for name, text in headers.items()},
    }
    measured = WSGIMetricsMiddleware(app, monitor, route=lambda _: "/items/{id}")
    measured(environ, lambda *_: bytes.join)  # type: ignore[arg-type]


def asgi(
    monitor: MetricsMonitor, headers: Mapping[str, str], query: str = "", fails: bool = False
) -> None:
    """Ask the same of an ASGI app."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        monitor.clock.advance(2)  # type: ignore[attr-defined]
        if fails:
            raise SoldOutError(f"{SECRET}-message")
        started = {"type": "http.response.start", "status": 200, "headers": []}
        await send(started)
        await send({"type": "http.response.body", "body": f"{SECRET}-answer".encode()})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": f"{SECRET}-body".encode()}

    async def send(message: Any) -> None: ...

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/mount/{SECRET}-path",
        "root_path": "/mount",
        "query_string": query.encode(),
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
        "session": {"user_id": f"{SECRET}-user"},
    }
    middleware = ASGIMetricsMiddleware(
        app, monitor, route=lambda _: "/items/{id}", user=lambda scope: scope["session"]["user_id"]
    )
    asyncio.run(middleware(scope, receive, send))


@pytest.fixture(params=[wsgi, asgi])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


def monitored(clock: ManualClock, **settings: Any) -> MetricsMonitor:
    return MetricsMonitor(60, clock=clock, **settings)


def test_it_tells_what_leads_to_it(ask: Ask, clock: ManualClock) -> None:
    with monitored(clock) as monitor:
        ask(monitor, HEADERS)
        with pytest.raises(SoldOutError):
            ask(monitor, {}, fails=True)
        answered, failed = sorted(monitor.get_slowest(), key=lambda row: row["status"] or 0)
    assert answered["timestamp"] == "2023-11-14T22:13:20.000000+00:00"
    assert (answered["method"], answered["route"]) == ("GET", "/items/{id}")
    assert (answered["status"], answered["latency_ms"]) == (200, 2000.0)
    assert answered["requests_in_flight"] == 1
    assert (answered["trace_id"], answered["span_id"]) == (TRACE, SPAN)
    assert (answered["request_id"], answered["error"]) == ("request-7", None)
    assert (failed["status"], failed["trace_id"], failed["request_id"]) == (500, None, None)
    assert failed["error"] == f"{__name__}.SoldOutError"


def test_requests_in_flight_are_those_of_its_start(clock: ManualClock) -> None:
    with monitored(clock) as monitor:
        for _ in range(4):
            monitor.recorder.begin()
        wsgi(monitor, {})
        for _ in range(3):
            monitor.recorder.cancel()
        (row,) = monitor.get_slowest()
        assert row["requests_in_flight"] == 5


def test_the_time_to_first_byte_of_a_stream(clock: ManualClock) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def body() -> Iterator[bytes]:
            clock.advance(0.5)
            yield b"1"
            clock.advance(1)
            yield b"2"

        start_response("200 OK", [])
        return body()

    with monitored(clock) as monitor:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        body = WSGIMetricsMiddleware(app, monitor)(environ, lambda *_: bytes.join)  # type: ignore[arg-type]
        assert list(body) == [b"1", b"2"]
        body.close()  # type: ignore[attr-defined]
        (row,) = monitor.get_slowest()
        assert (row["latency_ms"], row["latency_ttfb_ms"]) == (1500.0, 500.0)


@pytest.mark.parametrize("is_shared", [False, True])
def test_by_default_no_secret_is_anywhere(
    ask: Ask, clock: ManualClock, is_shared: bool, tmp_path: Path
) -> None:
    from kits.handlers import ask as ask_api

    from metricsmw.adapters.api.answers import ROUTES
    from metricsmw.adapters.api.handlers import Handlers
    from metricsmw.adapters.auth import public

    user = f"{SECRET}-user"
    with monitored(clock, shared=is_shared) as monitor:
        ask(monitor, HEADERS, f"q={SECRET}-query")
        with pytest.raises(SoldOutError):
            ask(monitor, HEADERS, f"q={SECRET}-query", fails=True)
        assert len(monitor.get_slowest()) == 2
        # Active users are counted by their ids, but no route tells them.
        handlers = Handlers(monitor, public())
        said = [ask_api(handlers, "/slowest").body]
        said += [ask_api(handlers, path).body for path in ROUTES if "GET" in ROUTES[path]]
        said += [protobuf.write(exposition(monitor)), openmetrics.write(exposition(monitor))]
        write_prometheus(monitor, tmp_path / "metrics")
        said.append((tmp_path / "metrics").read_bytes())
        if is_shared:
            assert monitor.directory is not None
            said += [path.read_bytes() for path in monitor.directory.iterdir() if path.is_file()]
            said = [one.replace(user.encode(), b"") for one in said]
        assert TRACE in said[0].decode()
    assert not [one for one in said if SECRET.encode() in one]


def test_what_was_asked_for_is_told(ask: Ask, clock: ManualClock) -> None:
    expected = {"path": f"/mount/{SECRET}-path", "query": "a=1&b", "user": f"{SECRET}-user"}
    for names in (("path",), ("query", "user"), ["user", "path", "query"]):
        with monitored(clock, capture=names) as monitor:
            ask(monitor, HEADERS, "a=1&b")
            with pytest.raises(SoldOutError):
                ask(monitor, HEADERS, "a=1&b", fails=True)
            for row in monitor.get_slowest():
                for name, text in expected.items():
                    assert row[name] == (text if name in names else None)  # type: ignore[literal-required]


@pytest.mark.parametrize("user", ["ada", None])
@pytest.mark.parametrize("status", [200, 503, None])
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_user_is_asked_for_once(
    clock: ManualClock, user: str | None, status: int | None, is_stream: bool
) -> None:
    asked = []

    def user_of(carrier: Mapping[str, Any]) -> str | None:
        asked.append(carrier)
        clock.advance(5)
        return user

    def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        clock.advance(2)
        if status is None:
            raise SoldOutError
        start_response(f"{status} X", [])
        return iter([b"a", b"b"]) if is_stream else [b"ab"]

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(2)
        if status is None:
            raise SoldOutError
        await send({"type": "http.response.start", "status": status, "headers": []})
        if is_stream:
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    async def nothing(*_: object) -> dict[str, Any]:
        return {}

    with monitored(clock, capture=("user",)) as monitor:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        with suppress(SoldOutError):
            body = WSGIMetricsMiddleware(wsgi_app, monitor, user=user_of)(
                environ,
                lambda *_: bytes.join,  # type: ignore[arg-type]
            )
            list(body)
            getattr(body, "close", list)()
        scope = {"type": "http", "method": "PUT", "path": "/", "headers": []}
        with suppress(SoldOutError):
            asyncio.run(
                ASGIMetricsMiddleware(asgi_app, monitor, user=user_of)(scope, nothing, nothing)
            )
        assert len(asked) == 2
        rows = monitor.get_slowest()
        assert [row["user"] for row in rows] == [user] * 2
        assert {row["latency_ms"] for row in rows} == {2000.0}
        assert monitor.get_active_users() == (1 if user else 0)


def test_a_worker_tells_only_what_it_may(tmp_path: Path, clock: ManualClock) -> None:
    with (
        monitored(clock, capture=("path", "user"), shared=True) as one,
        monitored(clock, capture=("query",), shared=True) as other,
    ):
        wsgi(one, {}, "a=1")
        (row,) = other.get_slowest()
        assert (row["path"], row["query"], row["user"]) == (None, None, None)
        assert one.get_slowest()[0]["path"] == f"/mount/{SECRET}-path"


HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;title\x07",
    "\u202eright to left",
    "x" * 10_000,
    "\udcff\ud800",
    "a\0b",
    "é\xff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str, clock: ManualClock) -> None:
    name = text.replace("\0", "").encode("utf-8", "ignore").decode()  # as Python has it
    error = type(f"Error{name}", (Exception,), {})

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        clock.advance(1)
        raise error(text)

    with monitored(clock, capture=("path", "query", "user")) as monitor:
        middleware = WSGIMetricsMiddleware(
            app, monitor, user=lambda _: text, route=lambda _: f"/{text}"
        )
        environ = {"REQUEST_METHOD": text, "PATH_INFO": text, "QUERY_STRING": text}
        environ |= {"HTTP_X_REQUEST_ID": text, "HTTP_TRACEPARENT": text}
        with pytest.raises(error):
            middleware(environ, lambda *_: bytes.join)  # type: ignore[arg-type]
        (row,) = monitor.get_slowest()
        assert len(json.dumps(row, ensure_ascii=False).encode()) < 4000
        assert row["trace_id"] is None
        assert row["request_id"] is None or row["request_id"].isascii()
        assert row["user"] is not None
        if text.isascii() and len(text) < 100:
            assert (row["path"], row["query"], row["user"]) == (text, text, text)
        assert monitor.get_health()["faults"] == 0


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}x-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01extra",
    ],
)
def test_a_traceparent_that_is_none(header: str) -> None:
    assert trace_of_header(header) is None


def test_a_traceparent_of_a_later_version() -> None:
    trace = Trace(bytes.fromhex(TRACE), bytes.fromhex(SPAN))
    assert trace_of_header(f" 7f-{TRACE}-{SPAN}-01-more ") == trace


class Span:
    """A span as OpenTelemetry has it."""

    def __init__(self, trace: int, span: int) -> None:
        self.context = SimpleNamespace(trace_id=trace, span_id=span)

    def get_span_context(self) -> SimpleNamespace:
        return self.context


def test_opentelemetrys_span_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HTTP_TRACEPARENT": TRACEPARENT}
    none = SimpleNamespace(get_current_span=lambda: Span(0, 0))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", none)
    assert trace_of(environ) == Trace(bytes.fromhex(TRACE), bytes.fromhex(SPAN))
    current = SimpleNamespace(get_current_span=lambda: Span(7, 8))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", current)
    assert trace_of(environ) == Trace((7).to_bytes(16, "big"), (8).to_bytes(8, "big"))
    environ |= {"opentelemetry-flask.span_key": Span(5, 6)}  # type: ignore[dict-item]
    assert trace_of(environ) == Trace((5).to_bytes(16, "big"), (6).to_bytes(8, "big"))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace())  # half imported
    assert trace_of({"opentelemetry-flask.span_key": object()}) is None


def test_a_span_of_opentelemetry_itself(clock: ManualClock) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(7, 8, is_remote=False)
    with monitored(clock) as monitor, trace.use_span(trace.NonRecordingSpan(context)):
        monitor.record_request(5, method="GET", route="/", status=200)
        (row,) = monitor.get_slowest()
    assert (row["trace_id"], row["span_id"]) == (f"{7:032x}", f"{8:016x}")


def test_opentelemetry_is_not_imported(run_python: Callable[..., str]) -> None:
    source = (
        "import sys; from metricsmw import MetricsMonitor; from metricsmw.adapters import wrap\n"
        "m = MetricsMonitor()\n"
        "app = wrap(lambda e, s: s('200 OK', []) and [b''], m, kind='wsgi')\n"
        "app({'REQUEST_METHOD': 'GET', 'PATH_INFO': '/'}, lambda *_: True)\n"
        "assert m.get_slowest()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert run_python(source) == "[]\n"


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50) | st.integers() | st.none()))
def test_any_environ_is_read(environ: dict[str, Any]) -> None:
    for key in ("HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT", "PATH_INFO", "QUERY_STRING"):
        if environ:
            environ.setdefault(key, next(iter(environ.values())))
    found = request_id_of(environ)
    assert found is None or (found.isascii() and found.isprintable() and 0 < len(found) <= 100)
    trace_of(environ)
    query_of(environ)
    if isinstance(environ.get("PATH_INFO"), str):
        assert isinstance(path_of({"PATH_INFO": "/"}), str)
