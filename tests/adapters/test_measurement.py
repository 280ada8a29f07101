"""One request has one outcome: its states, as the table of transitions has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.measurement import (
    Measurement,
    exclude_request,
)
from metricsmw.engine.recording.exchange import (
    COMPLETE,
    DISCONNECTED,
    EXCLUDED,
    FAILED,
    OPEN,
    TRANSITIONS,
    WATCHED,
    State,
)

ENDS = (COMPLETE, FAILED, DISCONNECTED, EXCLUDED)


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


def begun(monitor: MetricsMonitor) -> tuple[Measurement, dict[str, Any]]:
    """Return an open measurement, and the environ that it stands in."""

    class Own(Measurement):
        __slots__ = ()
        recorder = monitor.recorder
        route_of = staticmethod(lambda environ: "/x")
        user_of = staticmethod(lambda environ: "ann")
        method_key = "REQUEST_METHOD"

    environ: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    measurement = environ[monitor.recorder.key] = Own()
    measurement.carrier = environ
    measurement.state, measurement.status = OPEN, 200
    measurement.start = monitor.recorder.begin()
    return measurement, environ


def end(measurement: Measurement, state: State) -> None:
    if state is EXCLUDED:
        measurement.exclude()
    else:
        measurement.report(state)


@pytest.mark.parametrize(("first", "second"), list(product(ENDS, ENDS)))
def test_the_first_outcome_counts(first: State, second: State, monitor: MetricsMonitor) -> None:
    measurement, _ = begun(monitor)
    end(measurement, first)
    end(measurement, second)
    assert measurement.state is first
    snapshot = monitor.get_current_snapshot()
    assert snapshot.requests_in_flight == 0
    assert snapshot.total_requests == (first is not EXCLUDED)
    assert snapshot.total_errors == (first is FAILED)


@pytest.mark.parametrize("state", ENDS)
def test_no_end_is_left(state: State) -> None:
    assert TRANSITIONS[OPEN] == {*ENDS, WATCHED}
    assert TRANSITIONS[WATCHED] == set(ENDS)
    assert not TRANSITIONS[state]


@pytest.mark.parametrize("state", [COMPLETE, FAILED, DISCONNECTED])
def test_it_is_taken_out_as_it_is_reported(state: State, monitor: MetricsMonitor) -> None:
    measurement, environ = begun(monitor)
    measurement.report(state)
    assert environ == {"REQUEST_METHOD": "GET"}
    assert measurement.carrier == {}


def test_an_excluded_request_stays_so_until_it_ends(monitor: MetricsMonitor) -> None:
    """So that no middleware further in counts it."""
    measurement, environ = begun(monitor)
    exclude_request(environ)
    assert environ[monitor.recorder.key] is measurement
    measurement.report(COMPLETE)
    assert monitor.recorder.key not in environ
    assert monitor.total_requests == 0


def test_a_stream_that_is_excluded_goes_on(monitor: MetricsMonitor) -> None:
    """As that of the sub-app does, which is inside of the app that is measured."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exclude_request(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body"})

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(ASGIMetricsMiddleware(app, monitor)(scope, receive, send))
    assert len(sent) == 5
    assert monitor.total_requests == 0
    assert monitor.get_health()["faults"] == 0
