"""The rows of `GET /slowest`: captured requests of all workers, with what may be told of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from typing import TypedDict

from metricsmw.engine.reading.counts import milliseconds
from metricsmw.engine.storage.captures import NO_SPAN, NO_TRACE, Capture
from metricsmw.snapshot import iso_timestamp
from metricsmw.validation import whole

USUAL_SLOWEST, MAX_SLOWEST = 50, 1000


class SlowRequest(TypedDict):
    """One captured request; what is not known, or not to be told, is None.

    ``timestamp``: when it began. ``ended``: when it was counted, as it ended: of a stream of events
    long after what its latency says. ``requests_in_flight``: in its worker, as it began, itself
    included. ``error``: the type of the exception that escaped. ``span_id``: of the request itself
    where OpenTelemetry traces it in this process, else of its caller.
    """

    timestamp: str
    ended: str
    method: str
    route: str
    status: int | None
    latency_ms: float
    latency_ttfb_ms: float
    pid: int
    requests_in_flight: int | None
    trace_id: str | None
    span_id: str | None
    request_id: str | None
    error: str | None
    path: str | None
    query: str | None
    user: str | None


def slowest(
    captures: Iterable[Capture],
    told: Collection[str],
    now: float,
    wall: float,
    route: str | None = None,
    method: str | None = None,
    limit: int = USUAL_SLOWEST,
    least_ms: float = 0.0,
    most_ms: float = inf,
) -> list[SlowRequest]:
    """Return captured requests, slowest first.

    Args:
        captures: Those of all workers.
        told: What may be told of "path", "query" and "user".
        now: Monotonic time of the reading.
        wall: Unix time of it.
        route: Only those of this route, as the per-route table names it; None: of any.
        method: Only those with this method, likewise.
        limit: At most so many, 1 to 1000.
        least_ms: Only those that took as long, in milliseconds.
        most_ms: Only those that took no longer.

    Raises:
        TypeError: ``limit`` is no whole number.
        ValueError: ``limit`` is out of its range.
    """
    whole("limit", limit, 1, MAX_SLOWEST)
    found = [
        one
        for one in captures
        if route in (None, one.name.route)
        and method in (None, one.name.method)
        and least_ms <= 1000 * one.seconds <= most_ms
    ]
    found.sort(key=lambda one: (-one.seconds, -one.ended))
    return [_row(one, told, wall - max(now - one.ended, 0.0)) for one in found[:limit]]


def _row(one: Capture, told: Collection[str], ended: float) -> SlowRequest:
    return {
        "timestamp": iso_timestamp(one.time),
        "ended": iso_timestamp(max(ended, 0.0)),
        "method": one.name.method,
        "route": one.name.route,
        "status": one.status or None,
        "latency_ms": milliseconds(one.seconds),
        "latency_ttfb_ms": milliseconds(one.first_byte),
        "pid": one.pid,
        "requests_in_flight": one.in_flight if one.in_flight > 0 else None,
        "trace_id": None if one.trace_id == NO_TRACE else one.trace_id.hex(),
        "span_id": None if one.span_id == NO_SPAN else one.span_id.hex(),
        "request_id": one.request_id,
        "error": one.error,
        "path": one.path if "path" in told else None,
        "query": one.query if "query" in told else None,
        "user": one.user if "user" in told else None,
    }
