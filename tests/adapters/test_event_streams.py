"""Event streams: their latency is the time to the first byte; all else is measured to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.alerts import MetricsAlerter, check_now
from metricsmw.clock import ManualClock

EVENTS = "text/event-stream; charset=utf-8"
Serve = Callable[[MetricsMonitor, ManualClock, Sequence[tuple[str, str]], bool], None]


def _route(monitor: MetricsMonitor) -> Callable[[Any], str | None] | None:
    """Return a resolver of /feed where the monitor's streams are named by option."""
    return (lambda _: "/feed") if len(monitor.recorder.event_streams) > 1 else None


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
    body = WSGIMetricsMiddleware(app, monitor, route=_route(monitor))(
        environ, lambda *_: bytes.join
    )  # type: ignore[arg-type]
    try:
        assert len(list(body)) == 2
    finally:
        body.close()  # type: ignore[attr-defined]


def asgi(
    monitor: MetricsMonitor,
    clock: ManualClock,
    headers: Sequence[tuple[str, str]],
    is_broken: bool = False,
    seconds: float = 10,
) -> None:
    """The same by ASGI."""
    raw = [(name.encode(), value.encode()) for name, value in headers]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        clock.advance(0.1)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        clock.advance(seconds)
        if is_broken:
            raise RuntimeError
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async def nothing(*_: object) -> Any:
        return None

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(ASGIMetricsMiddleware(app, monitor, route=_route(monitor))(scope, nothing, nothing))


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
@pytest.mark.parametrize("headers", [[("Content-Type", EVENTS)], []])
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_captured_one_is_found_in_the_cell_that_counts_it(
    monitor: MetricsMonitor,
    clock: ManualClock,
    serve: Serve,
    headers: Sequence[tuple[str, str]],
    is_broken: bool,
) -> None:
    with suppress(RuntimeError):
        serve(monitor, clock, headers, is_broken)
    clock.advance(60)
    (one,) = monitor.get_slowest()
    heatmap = monitor.get_heatmap()
    ((step, (bucket, count)),) = [
        (step, cell) for step in heatmap["steps"] for cell in step["cells"]
    ]
    end, ended = (
        datetime.fromisoformat(text).timestamp() for text in (step["timestamp"], one["ended"])
    )
    assert end - heatmap["step_seconds"] < ended <= end
    assert count == 1
    assert 2 ** ((bucket - 1) / 4) < one["latency_ms"] / 1000 <= 2 ** (bucket / 4)


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


def test_rules_may_be_on_the_first_byte_over_a_span(
    monitor: MetricsMonitor, clock: ManualClock
) -> None:
    rules = [
        "S: ttfb_p95 > 90 over 30s",
        "R: ttfb_p95 > 90 on <unmatched> over 1m",
        "F: ttfb_p95 > 90 for 1m",
    ]
    with MetricsAlerter(monitor, rules=rules, notify=str, start=False) as alerter:
        changes = []
        for is_slow in (False, True, True, True, False, False, False, False):
            clock.advance(-clock.now % 30)
            for _ in range(25):
                if is_slow:
                    asgi(monitor, clock, [("Content-Type", "text/plain")], seconds=0.5)
                else:
                    monitor.record_request(1.0, method="GET", route="<unmatched>", status=200)
            clock.advance(30 - clock.now % 30)
            changes.append([f"{alert.type} {alert.state}" for alert in alerter.check()])
        assert changes == [
            [],
            ["S firing", "R firing"],
            [],
            ["F firing"],
            ["S resolved", "F resolved"],
            ["R resolved"],
            [],
            [],
        ]
    assert check_now(monitor, ["ttfb_p95 < 90 over 30s"])[0]["verdict"] == "ok"


@both
@pytest.mark.parametrize(
    ("named", "headers"),
    [
        ("application/x-ndjson", [("Content-Type", "Application/X-NDJSON; charset=utf-8")]),
        (["/feed", "Application/X-NDJSON"], [("Content-Type", "application/x-ndjson")]),
        (["/feed"], []),
        (["/other"], [("Content-Type", EVENTS)]),
    ],
)
def test_streams_by_option_take_as_long_as_their_first_byte(
    clock: ManualClock, serve: Serve, named: Any, headers: Sequence[tuple[str, str]]
) -> None:
    with MetricsMonitor(clock=clock, event_streams=named) as monitor:
        serve(monitor, clock, headers, False)
        snapshot = monitor.get_current_snapshot()
        assert snapshot.latency_max_ms == pytest.approx(100, rel=0.011)
        (row,) = monitor.get_routes()
        assert row["latency_ttfb_p99_ms"] == row["latency_p99_ms"]
        serve(monitor, clock, [("Content-Type", "text/html")], False)
        is_by_route = "/feed" in named
        assert (monitor.get_current_snapshot().latency_max_ms < 10_000) == is_by_route


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("feed", "event_streams must hold content types, .* got 'feed'"),
        (["text/plain; charset=utf-8"], "begin with a slash, got 'text/plain; charset"),
        ([""], "got ''"),
        (1, r"event_streams must hold content types and templates of routes \(str\), got 1"),
        ([b"/x"], "got b'/x'"),
    ],
)
def test_what_names_no_streams_is_refused(given: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MetricsMonitor(event_streams=given)
