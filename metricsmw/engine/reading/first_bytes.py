"""The time to first byte over the window's tenths: latencies, with streams' first bytes for ends.

Only the rows of streams tell their first bytes, and their checkpoints are tenths of the window.
What a tenth counted is one integer with four parts side by side, so that tenths add up as integers:

    0          the buckets of all latencies, `ROUTE_BUCKETS` lanes of 64 bits
    SHIFT      those of streams from their start to their first byte
    2 * SHIFT  those of streams from their start to their end
    3 * SHIFT  one lane: streams whose first byte is in no row of this route

The latency of an event stream is that of its first byte already: it is in the first part only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from metricsmw.engine.reading.counts import Counts, pack_lanes
from metricsmw.engine.reading.routes import first_byte_buckets
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.histogram import ROUTE_BUCKETS, ROUTE_SCALE
from metricsmw.engine.storage.keys import Name, Times
from metricsmw.engine.storage.lanes import HISTOGRAM, ROUTE_HISTOGRAM, in_use, lane_of
from metricsmw.engine.storage.layout import STEP_RATIO, RouteLane

SHIFT = 64 * ROUTE_BUCKETS
PLACES = {Times.FIRST_BYTE: SHIFT, Times.LAST_BYTE: 2 * SHIFT}


class FirstByteFields(TypedDict):
    """The time to first byte of a tenth of the window: percentiles, and how many streamed.

    All are None where it is not known, the percentiles also where nothing was answered.
    """

    latency_ttfb_p50_ms: float | None
    latency_ttfb_p95_ms: float | None
    latency_ttfb_p99_ms: float | None
    streams: int | None


UNKNOWN: FirstByteFields = {
    "latency_ttfb_p50_ms": None,
    "latency_ttfb_p95_ms": None,
    "latency_ttfb_p99_ms": None,
    "streams": None,
}


def fields(lanes: int) -> FirstByteFields:
    """Return the fields of what was counted in one tenth or several."""
    if lanes >> 3 * SHIFT:
        return UNKNOWN
    counts = first_bytes(lanes)
    p50, p95, p99 = counts.percentiles_ms if counts.requests else (None, None, None)
    return {
        "latency_ttfb_p50_ms": p50,
        "latency_ttfb_p95_ms": p95,
        "latency_ttfb_p99_ms": p99,
        "streams": sum(in_use(lanes >> SHIFT & ROUTE_HISTOGRAM)[1]),
    }


def first_bytes(lanes: int) -> Counts:
    """Return the counts whose latencies are the times to first byte; no latencies: not known."""
    every, first, last = (lanes >> place & ROUTE_HISTOGRAM for place in (0, SHIFT, 2 * SHIFT))
    requests = sum(in_use(every)[1])
    if lanes >> 3 * SHIFT:
        return Counts(requests, scale=ROUTE_SCALE)
    if first:
        every = pack_lanes(first_byte_buckets(every, first, last))
    return Counts(requests, histogram=every, scale=ROUTE_SCALE)


def of_server(reading: ServerReading, steps: Mapping[int, int], tenths: range) -> dict[int, int]:
    """Return what each of the tenths counted.

    Args:
        reading: the reading.
        steps: the lanes of the steps that the tenths consist of; idle ones may be left out.
        tenths: their numbers.
    """
    streams = reading.stream_steps(tenths.start)
    found = {}
    for tenth in tenths:
        of_tenth = range((tenth - 1) * STEP_RATIO + 1, tenth * STEP_RATIO + 1)
        every = sum(steps.get(number, 0) & HISTOGRAM for number in of_tenth)
        found[tenth] = _coarser(every) | _stream_lanes(streams.get(tenth, {}))
    return found


def of_route(reading: ServerReading, name: Name, tenths: range) -> dict[int, int]:
    """Return what each of the tenths counted of one route."""
    streams = reading.stream_steps(tenths.start, name)
    found = {}
    for tenth, lanes in reading.route_steps(name, tenths.start).items():
        if tenth in tenths:
            told = (lanes & ROUTE_HISTOGRAM) | _stream_lanes(streams.get(tenth, {}))
            found[tenth] = told | lane_of(lanes, RouteLane.STREAMS) << 3 * SHIFT
    return found


def _stream_lanes(streams: Mapping[Times, int]) -> int:
    return sum((lanes & ROUTE_HISTOGRAM) << PLACES[times] for times, lanes in streams.items())


def _coarser(histogram: int) -> int:
    """Return a server-wide histogram in the buckets of a route's, each of which joins two."""
    first, counts = in_use(histogram)
    joined = [0] * ROUTE_BUCKETS
    for lane, count in enumerate(counts, first):
        joined[(lane + 1) >> 1] += count
    return pack_lanes(joined)
