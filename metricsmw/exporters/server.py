"""What is exported of a server: its families, from one reading of all its workers.

Names and attributes are OpenTelemetry's semantic conventions 1.44 where these have any; all else is
named ``metricsmw.…``. Latencies by route are those of the per-route table, in its scale 4. Beside
them stands the server-wide histogram in scale 5, which also has the requests that were recorded
without a route.

Counters only grow: dead workers' counts stay, and no row is ever joined to another one. So rows
beyond `max_routes`, which several workers may have together, keep their names here, and a time to
first byte, which is a difference, is left to the query: streams' latencies and their first bytes
are histograms of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

import psutil

from metricsmw.engine.reading.instruments import InstrumentSeries
from metricsmw.engine.reading.server import ServerReading
from metricsmw.engine.storage.histogram import (
    BUCKETS,
    FIRST,
    ROUTE_BUCKETS,
    ROUTE_FIRST,
    ROUTE_SCALE,
    SCALE,
    representative,
)
from metricsmw.engine.storage.keys import OTHER, UNMATCHED, AnswerName, Name, Times
from metricsmw.engine.storage.lanes import in_use
from metricsmw.engine.storage.layout import Field, Kind
from metricsmw.engine.storage.routes import RouteTotal
from metricsmw.engine.workers.surroundings import HERE
from metricsmw.exporters.exemplars import Exemplars
from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    Family,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import metric_name
from metricsmw.exporters.resource import resource_attributes
from metricsmw.exporters.started import unix_time

if TYPE_CHECKING:
    from metricsmw.engine.reading.moment import Reading
    from metricsmw.engine.recording.instruments import Instruments
    from metricsmw.monitor import MetricsMonitor

OVERFLOW = "otel.metric.overflow"

# The value that stands for each bucket, for sums: no value of it is further away than 1.1 %, or
# 2.2 % at the routes' scale. A sum of these only grows, as the counts do.
VALUES = {
    SCALE: [representative(FIRST + lane, SCALE) for lane in range(BUCKETS)],
    ROUTE_SCALE: [representative(ROUTE_FIRST + lane, ROUTE_SCALE) for lane in range(ROUTE_BUCKETS)],
}


def exposition(monitor: MetricsMonitor, of: Reading | None = None) -> Exposition:
    """Return all that is exported of the monitor's server.

    Args:
        monitor: The server's.
        of: A reading of it; None: as it is now.
    """
    if of is None:
        monitor.instruments.show()
        of = monitor.read()
    reading = of.server
    directory = monitor.shared_directory
    wall = monitor.clock.time()
    started = unix_time(directory, reading.started, reading.period.now, wall)
    exemplars = Exemplars(reading.traced)
    return Exposition(
        resource_attributes(getattr(directory, "path", None), monitor.settings.name),
        [
            *_server(reading, exemplars, started),
            *_routes(reading.route_totals(), exemplars, started),
            *_gauges(reading, started, monitor.settings.user_timeout_seconds),
            *_processes(reading),
            *_unique(_instruments(reading.instruments(), monitor.instruments, started)),
        ],
    )


def _server(reading: ServerReading, exemplars: Exemplars, started: float) -> Iterator[Family]:
    """Yield what is counted of all requests, with a route or without one."""
    yield HistogramFamily(
        "metricsmw.request.duration",
        "s",
        "Duration of all requests of the server, at the highest resolution there is.",
        [_point({}, reading.total.histogram, SCALE, FIRST, started, exemplars.of_server)],
    )
    yield CounterFamily(
        "metricsmw.requests",
        "{request}",
        "Requests of the server, those included whose client went away.",
        [NumberPoint({}, reading.total.requests, started)],
    )
    yield CounterFamily(
        "metricsmw.request.errors",
        "{request}",
        "Requests that were answered with a status from 400 on, or failed.",
        [NumberPoint({}, reading.total.errors, started)],
    )
    yield CounterFamily(
        "metricsmw.request.server_errors",
        "{request}",
        "Requests that were answered with a status from 500 on, or failed.",
        [NumberPoint({}, reading.total.server_errors, started)],
    )


def _routes(totals: Iterable[RouteTotal], exemplars: Exemplars, started: float) -> Iterator[Family]:
    """Yield what is counted of the rows of the per-route table."""
    durations: list[HistogramPoint] = []
    errors: list[NumberPoint] = []
    abandoned: list[NumberPoint] = []
    streams: dict[Times, list[HistogramPoint]] = {Times.FIRST_BYTE: [], Times.LAST_BYTE: []}
    for name, group in groupby(totals, lambda total: total.name):
        parts = list(group)
        attributes = _attributes(name)
        points = durations if name.times is Times.ALL else streams[name.times]
        traced = exemplars.of(name, (part.answer for part in parts if part.histogram))
        for part in parts:
            if part.histogram:
                told = _answer(part.answer) if name.times is Times.ALL else {}
                all_ = {**attributes, **told}
                of_part = traced.get(part.answer, ())
                points.append(
                    _point(all_, part.histogram, ROUTE_SCALE, ROUTE_FIRST, started, of_part)
                )
        if name.times is Times.ALL:
            failed = sum(part.errors for part in parts)
            gone = sum(part.abandoned for part in parts)
            errors.append(NumberPoint(attributes, failed, started))
            abandoned.append(NumberPoint(attributes, gone, started))
    yield HistogramFamily(
        "http.server.request.duration",
        "s",
        "Duration of HTTP server requests.",
        durations,
    )
    yield CounterFamily(
        "metricsmw.route.errors",
        "{request}",
        "Requests of a route that were answered with a status from 400 on, or failed.",
        errors,
    )
    yield CounterFamily(
        "metricsmw.route.abandoned",
        "{request}",
        "Requests of a route whose client went away; they are in no duration.",
        abandoned,
    )
    yield HistogramFamily(
        "metricsmw.stream.duration",
        "s",
        "Duration of those requests whose answer was a stream.",
        streams[Times.LAST_BYTE],
    )
    yield HistogramFamily(
        "metricsmw.stream.first_byte.duration",
        "s",
        "Time to the first byte of those requests whose answer was a stream.",
        streams[Times.FIRST_BYTE],
    )


def _attributes(name: Name) -> dict[str, str]:
    """Return the attributes of a row: no route where none matched, the overflow where all share."""
    attributes = {"http.request.method": name.method} if name.method else {}
    if name.route == OTHER:
        attributes[OVERFLOW] = "true"
    elif name.route != UNMATCHED:
        attributes["http.route"] = name.route
    return attributes


def _answer(answer: AnswerName) -> dict[str, str]:
    """Return the attributes of answers; those that share a row have none."""
    attributes = {}
    if answer.status:
        attributes["http.response.status_code"] = str(answer.status)
    # By the conventions, what the client has caused is no error of the server.
    if answer.error or answer.status >= 500:
        attributes["error.type"] = answer.error or str(answer.status)
    if answer.scheme:
        attributes["url.scheme"] = answer.scheme
    return attributes


def _point(
    attributes: Mapping[str, str],
    histogram: int,
    scale: int,
    lowest: int,
    started: float,
    exemplars: Sequence[Exemplar] = (),
) -> HistogramPoint:
    """Return a histogram of the buckets' lanes, ``lowest`` being the index of the first of all."""
    skipped, counts = in_use(histogram)
    values = VALUES[scale]
    total = 0.0
    for lane, count in enumerate(counts, skipped):
        if count:
            total += count * values[lane]
    return HistogramPoint(attributes, scale, lowest + skipped, counts, total, started, exemplars)


def _gauges(reading: ServerReading, started: float, user_timeout: float) -> Iterator[Family]:
    users, _ = reading.active_users(user_timeout)
    for name, unit, help, value, is_sum in (
        (
            "http.server.active_requests",
            "{request}",
            "Requests in flight.",
            reading.gauge(Field.IN_FLIGHT),
            True,
        ),
        (
            "metricsmw.websocket.connections",
            "{connection}",
            "WebSocket connections that are open.",
            reading.gauge(Field.WEBSOCKETS),
            True,
        ),
        (
            "process.start_time",
            "s",
            "When the numbers of the server began: its start, or the last reset; Unix time.",
            started,
            False,
        ),
        ("metricsmw.users.active", "{user}", "Users that were active lately.", users, False),
        ("metricsmw.workers", "{worker}", "Workers that live.", reading.workers, True),
        (
            "metricsmw.segments.left_out",
            "{segment}",
            "Workers whose numbers are damaged and left out.",
            len(reading.damaged),
            True,
        ),
    ):
        yield GaugeFamily(name, unit, help, [NumberPoint({}, value)], is_sum)


def _processes(reading: ServerReading) -> Iterator[Family]:
    """Yield CPU and memory of each live worker.

    One that ends during the reading is left out, and so is one in another container, whose process
    is not shown here.
    """
    cpu: list[NumberPoint] = []
    memory: list[NumberPoint] = []
    here = HERE.pid_namespace
    pids = {w.pid for w in reading.live_workers() if w.pid_namespace == here}
    for pid in sorted(pids):
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                resident = process.memory_info().rss
                created = process.create_time()
            worker = {"process.pid": str(pid)}
            for mode in ("user", "system"):
                used = getattr(times, mode)
                cpu.append(NumberPoint({**worker, "cpu.mode": mode}, used, created))
            memory.append(NumberPoint(worker, resident))
    yield CounterFamily("process.cpu.time", "s", "CPU time that a worker has used.", cpu)
    yield GaugeFamily(
        "process.memory.usage", "By", "Resident memory of a worker.", memory, is_sum=True
    )
    yield CounterFamily(
        "metricsmw.faults",
        "{fault}",
        "Failures inside the metrics; none of them reached the app.",
        [NumberPoint({}, reading.faults())],
    )


def _instruments(
    series: Sequence[InstrumentSeries], made: Instruments, started: float
) -> Iterator[Family]:
    """Yield the app's own numbers; the help of those that this worker has not made is unknown.

    What workers of before a reload have made otherwise than this one is left out.
    """
    for (kind, name, unit), group in groupby(series, lambda one: (one.kind, one.name, one.unit)):
        if made.is_made_otherwise(kind, name, unit):
            continue
        help = made.help_of(name)
        if kind is Kind.HISTOGRAMS:
            points = [
                HistogramPoint(one.labels, one.scale, one.first, one.counts, one.value, started)
                for one in group
            ]
            yield HistogramFamily(name, unit, help, points)
        elif kind is Kind.COUNTERS:
            numbers = [NumberPoint(one.labels, one.value, started) for one in group]
            yield CounterFamily(name, unit, help, numbers)
        else:
            yield GaugeFamily(name, unit, help, [NumberPoint(g.labels, g.value) for g in group])


def _unique(families: Iterable[Family]) -> Iterator[Family]:
    """Yield the first family of each exported name: a scraper takes none of two."""
    seen: set[str] = set()
    for family in families:
        exported = metric_name(family).removesuffix("_total")
        if exported not in seen:
            seen.add(exported)
            yield family
