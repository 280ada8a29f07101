"""Event streams: their latency is the time to the first byte; all else is measured to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.alerts import MetricsAlerter
from metricsmw.clock import ManualClock

EVENTS = "text/event-stream; charset=utf-8"
Serve = Callable[[MetricsMonitor, ManualClock, Sequence[tuple[str, str]], bool], None]


def wsgi(
    monitor: MetricsMonitor,
    clock: ManualClock,
    headers: Sequence[tuple[str, str]],
    is_broken: bool = False,
) -> None:
    """Serve a stream: first byte after 0.1 s, the end 10 s later."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def body() -> Iterator[bytes]:
            clock.advance(0.1)
            yield b"data: 1\n\n"
            clock.advance(10)
            if is_broken:
                raise RuntimeError
            yield b"data: 2\n\n"

        start_response("200 OK", list(headers))
        return body()

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    body = WSGIMetricsMiddleware(app, monitor)(environ, lambda *_: bytes.join)  # type: ignore[arg-type]
    try:
        assert len(list(body)) == 2
    finally:
        body.close()  # type: ignore[attr-defined]


def asgi(
    monitor: MetricsMonitor,
    clock: ManualClock,
    headers: Sequence[tuple[str, str]],
    is_broken: bool = False,
) -> None:
    """The same by ASGI."""
    raw = [(name.encode(), value.encode()) for name, value in headers]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        clock.advance(0.1)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        clock.advance(10)
        if is_broken:
            raise RuntimeError
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async def nothing(*_: object) -> Any:
        return None

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(scope, nothing, nothing))


both = pytest.mark.parametrize("serve", [wsgi, asgi])


@both
@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Type", EVENTS)],
        [("content-type", "Text/Event-Stream")],
        [("X-Other", "1"), ("CONTENT-TYPE", " text/event-stream"), ("Cache-Control", "no-store")],
    ],
)
def test_an_event_stream_takes_as_long_as_its_first_byte(
    monitor: MetricsMonitor, clock: ManualClock, serve: Serve, headers: Sequence[tuple[str, str]]
) -> None:
    for _ in range(60):
        serve(monitor, clock, headers, False)
    snapshot = monitor.get_current_snapshot()
    assert snapshot.total_requests == 60
    for value in (snapshot.latency_p50_ms, snapshot.latency_p99_ms, snapshot.latency_max_ms):
        assert value == pytest.approx(100, rel=0.011)
    (row,) = monitor.get_routes()
    assert row["latency_p99_ms"] == pytest.approx(100, rel=0.022)
    assert row["latency_ttfb_p99_ms"] == row["latency_p99_ms"]
    assert snapshot.requests_in_flight == 0


@both
@pytest.mark.parametrize(
    "headers",
    [[], [("Content-Type", "text/event")], [("Content-Type", "text/html")], [("X", EVENTS)]],
)
def test_any_other_stream_is_measured_to_its_end(
    monitor: MetricsMonitor, clock: ManualClock, serve: Serve, headers: Sequence[tuple[str, str]]
) -> None:
    serve(monitor, clock, headers, False)
    assert monitor.get_current_snapshot().latency_p99_ms == pytest.approx(10_100, rel=0.011)
    (row,) = monitor.get_routes()
    assert row["latency_ttfb_p99_ms"] == pytest.approx(100, rel=0.022)


@both
def test_one_that_breaks_off_is_an_error_of_the_same_latency(
    monitor: MetricsMonitor, clock: ManualClock, serve: Serve
) -> None:
    with pytest.raises(RuntimeError):
        serve(monitor, clock, [("Content-Type", EVENTS)], True)
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_errors, snapshot.requests_in_flight) == (1, 0)
    assert snapshot.latency_max_ms == pytest.approx(100, rel=0.011)


@both
def test_default_alerts_do_not_take_streams_for_slow_requests(
    monitor: MetricsMonitor, clock: ManualClock, serve: Serve
) -> None:
    alerter = MetricsAlerter(monitor, notify=str, start=False)
    for _ in range(60):
        serve(monitor, clock, [("Content-Type", EVENTS)], False)
    assert not [alert for alert in alerter.check() if alert.type == "HIGH_LATENCY"]
    for _ in range(25):
        serve(monitor, clock, [], False)
    assert [alert.type for alert in alerter.check() if "LATENCY" in alert.type] == ["HIGH_LATENCY"]
    alerter.stop()


def test_rules_may_be_on_the_first_byte(monitor: MetricsMonitor, clock: ManualClock) -> None:
    alerter = MetricsAlerter(
        monitor,
        rules=[
            "slow: ttfb_p95 > 90",
            "quick: latency_ttfb_p95_ms > 110",
            "few: latency_ttfb_p50_ms > 90 at least 31 requests",
            "route: latency_ttfb_p99_ms > 90 on GET <unmatched>",
        ],
        notify=str,
        start=False,
    )
    assert alerter.check() == []
    for _ in range(30):
        asgi(monitor, clock, [])
    assert [alert.type for alert in alerter.check()] == ["slow", "route"]
    alerter.stop()
    with pytest.raises(ValueError, match="counted"):
        MetricsAlerter(monitor, rules=["ttfb_p95 > 1 over 1m"], notify=str, start=False)
