"""Time to first byte through the middlewares: of streams told apart, of all else the latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.clock import ManualClock

from .drivers import call, fetch, get, part, start
from .outcomes import PRECISION

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import ASGIApp, Scope

Timing = tuple[float, float]


def timing(monitor: MetricsMonitor) -> Timing:
    """The one request's time to first byte and latency, in seconds."""
    (row,) = monitor.get_routes()
    first = row["latency_ttfb_p50_ms"]
    assert first is not None
    overall = monitor.get_statistics()["current"]["latency_ttfb_p50_ms"]
    assert overall == first
    return first / 1000, row["latency_p50_ms"] / 1000


def seconds(first: float, last: float) -> Timing:
    return pytest.approx((first, last), rel=PRECISION)  # type: ignore[return-value]


class Body:
    """An iterable that is no generator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


BODIES: dict[str, Callable[[Iterator[bytes]], Any]] = {
    "generator": lambda chunks: chunks,
    "iterable": Body,
    "list": list,
}


@pytest.mark.parametrize(
    ("body", "chunks", "expected"),
    [
        ("generator", [b"one", b"two", b"three"], (1.0, 3.0)),
        ("iterable", [b"one", b"two", b"three"], (1.0, 3.0)),
        ("generator", [b"", b"", b"one", b"two"], (3.0, 4.0)),
        ("iterable", [b"", b"one", b"two"], (2.0, 3.0)),
        ("generator", [b"one"], (1.0, 1.0)),
        ("generator", [b"", b""], (2.0, 2.0)),
        ("list", [b"one", b"two"], (2.0, 2.0)),
    ],
)
def test_wsgi(
    monitor: MetricsMonitor,
    clock: ManualClock,
    body: str,
    chunks: list[bytes],
    expected: Timing,
) -> None:
    """A second passes before each chunk."""

    def paced() -> Iterator[bytes]:
        for chunk in chunks:
            clock.advance(1)
            yield chunk

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return BODIES[body](paced())  # type: ignore[no-any-return]

    assert get(WSGIMetricsMiddleware(app, monitor)) == b"".join(chunks)
    assert timing(monitor) == seconds(*expected)


def test_wsgi_stream_that_fails(monitor: MetricsMonitor, clock: ManualClock) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        clock.advance(1)
        yield b"one"
        clock.advance(1)
        yield b"two"
        clock.advance(1)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        get(WSGIMetricsMiddleware(app, monitor))
    assert timing(monitor) == seconds(1.0, 3.0)


def test_wsgi_stream_that_is_cut_short(monitor: MetricsMonitor, clock: ManualClock) -> None:
    """It has no latency, and so no first byte either."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(5):
            clock.advance(1)
            yield b"chunk"

    answer = call(WSGIMetricsMiddleware(app, monitor))
    chunks = iter(answer.body)
    assert [next(chunks) for _ in range(3)] == [b"chunk"] * 3
    answer.close()
    (row,) = monitor.get_routes()
    assert (row["requests"], row["latency_ttfb_p50_ms"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"one", b"two", b"three"], (1.0, 3.0)),
        ([b"", b"one", b"two"], (2.0, 3.0)),
        ([b"one"], (1.0, 1.0)),
        ([b"one", b""], (1.0, 2.0)),  # as Starlette's streams end
    ],
)
@pytest.mark.parametrize("trailers", [False, True])
def test_asgi(
    monitor: MetricsMonitor,
    clock: ManualClock,
    chunks: list[bytes],
    expected: Timing,
    trailers: bool,
) -> None:
    """A second passes before each chunk."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await start(send, trailers=trailers)
        for number, chunk in enumerate(chunks, 1):
            clock.advance(1)
            await part(send, chunk, more=number < len(chunks))
        if trailers:
            await send({"type": "http.response.trailers", "headers": []})

    measured: ASGIApp = ASGIMetricsMiddleware(app, monitor)
    assert fetch(measured) == b"".join(chunks)
    assert timing(monitor) == seconds(*expected)


def test_asgi_stream_that_fails(monitor: MetricsMonitor, clock: ManualClock) -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await start(send)
        for _ in range(2):
            clock.advance(1)
            await part(send, b"chunk", more=True)
        clock.advance(1)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fetch(ASGIMetricsMiddleware(app, monitor))
    assert timing(monitor) == seconds(1.0, 3.0)
