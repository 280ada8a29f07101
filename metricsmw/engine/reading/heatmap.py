"""The shape of latency: how many requests took how long, over time and over the window.

Both are read from the histograms that are there: the steps' as a heat map of four buckets an
octave, the window's in its own buckets, with the percentiles that are found in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from metricsmw.config import Settings
from metricsmw.engine.reading.counts import Counts
from metricsmw.engine.reading.series import Steps, clamp_seconds
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.histogram import FIRST, ROUTE_FIRST, SCALE
from metricsmw.engine.storage.keys import Name
from metricsmw.engine.storage.lanes import in_use
from metricsmw.engine.storage.layout import STEP_RATIO

# Bucket i of a heat map holds what took more than 2**((i-1)/4) seconds, and 2**(i/4) at most.
HEAT_SCALE = 2


class HeatStep(TypedDict):
    """One step; each cell is a bucket and how many requests are in it, the fastest first."""

    step: int
    timestamp: str
    cells: list[tuple[int, int]]


class LatencyDistribution(TypedDict):
    """The latencies of the window: buckets of a scale, and how many requests are in each.

    Bucket i holds what took more than 2**((i-1)/2**scale) seconds, and 2**(i/2**scale) at most.
    Percentiles are None where nothing was answered.
    """

    scale: int
    buckets: list[tuple[int, int]]
    requests: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    latency_max_ms: float | None


class Heatmap(TypedDict):
    """What `MetricsMonitor.get_heatmap` returns; steps are oldest first.

    ``method`` and ``route`` are None where it is of all requests.
    """

    seconds: int
    step_seconds: float
    started: str
    reset: str | None
    method: str | None
    route: str | None
    scale: int
    steps: list[HeatStep]
    distribution: LatencyDistribution


def buckets(counts: Counts) -> list[tuple[int, int]]:
    """Return the buckets that have counted anything, the fastest first, in the counts' scale."""
    first, found = in_use(counts.histogram)
    first += FIRST if counts.scale == SCALE else ROUTE_FIRST
    return [(first + place, count) for place, count in enumerate(found) if count]


def joined(found: Iterable[tuple[int, int]], scale: int, to: int) -> list[tuple[int, int]]:
    """Return buckets of a scale, the fastest first, as those of a coarser one."""
    width = 1 << scale - to
    sums: dict[int, int] = {}
    for bucket, count in found:
        wide = -(-bucket // width)
        sums[wide] = sums.get(wide, 0) + count
    return list(sums.items())


def heat_steps(steps: Steps, counts: Mapping[int, Counts]) -> list[HeatStep]:
    """Return the steps of a heat map."""
    return [
        {
            "step": number,
            "timestamp": steps.timestamp(number),
            "cells": joined(buckets(counted), counted.scale, HEAT_SCALE),
        }
        for number, counted in counts.items()
    ]


def distribution_of(counts: Counts) -> LatencyDistribution:
    """Return the distribution of counts."""
    answered = counts.latency.count
    p50, p95, p99 = counts.percentiles_ms if answered else (None, None, None)
    return {
        "scale": counts.scale,
        "buckets": buckets(counts),
        "requests": answered,
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "latency_p99_ms": p99,
        "latency_max_ms": counts.max_ms if answered else None,
    }


def heatmap_of(
    server: ServerReading,
    settings: Settings,
    wall: float,
    method: str | None,
    route: str | None,
    seconds: int | None,
) -> Heatmap:
    """Return the heat map of a reading at Unix time ``wall``; see `Reading.heatmap`."""
    asked, step = clamp_seconds(seconds, settings.window_seconds), settings.step
    if method is None and route is None:
        window = server.window
        steps = Steps(server, asked, step, wall)
        counts = steps.counts(server.steps(steps.first), Counts.of_server)
    elif method is None or route is None:
        raise ValueError("a route's heat map needs both method and route")
    else:
        name, step = Name(method, route), step * STEP_RATIO
        window = server.route_window(name, settings.max_routes)
        steps = Steps(server, asked, step, wall)
        counts = steps.counts(server.route_steps(name, steps.first), Counts.of_route)
    return {
        "seconds": asked,
        "step_seconds": step,
        "started": steps.started,
        "reset": steps.reset,
        "method": method,
        "route": route,
        "scale": HEAT_SCALE,
        "steps": heat_steps(steps, counts),
        "distribution": distribution_of(window),
    }
