"""Who measures an app, for the score: this package and its peers, each with its own way to be read.

A peer is used as its documentation says, in its default settings but for these: Flask's exporter
groups by rule, for it would take raw paths; Starlette's exporter on a raw app takes unknown paths,
for it would take none. Each app gets a registry of its own, or is read by the difference.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

Make = Callable[[], Any]


class BrokenStoreError(Exception):
    """What the store of a peer raises while it is broken."""


def broken(*_: object, **__: object) -> Any:
    raise BrokenStoreError


@dataclass
class Reading:
    """What a peer says: requests by method, route and status; how many latencies, their sum in s.

    websockets: how many are open; None: it has no such number.
    """

    rows: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    timed: float = 0
    seconds: float = 0
    errors: float = 0
    websockets: float | None = None

    @property
    def requests(self) -> float:
        return sum(self.rows.values())

    def __sub__(self, before: Reading) -> Reading:
        rows = Counter(self.rows)
        rows.subtract(before.rows)
        return Reading(
            Counter({row: number for row, number in rows.items() if number}),
            self.timed - before.timed,
            self.seconds - before.seconds,
            self.errors - before.errors,
            self.websockets,
        )


@dataclass
class Measured:
    """A measured app, and its numbers."""

    app: Any
    read: Callable[[], Reading]


@dataclass(frozen=True)
class Peer:
    """One that measures. hosts: how it is put on the app of each host; `times`: that often.

    breaks: while its block runs, whatever it stores raises `BrokenStoreError`.
    """

    name: str
    packages: tuple[str, ...]
    hosts: dict[str, Callable[[Make, int], Measured]]
    breaks: Callable[[], Any]


# --- this package ---------------------------------------------------------------------------------


def _ours(make: Make, times: int) -> Measured:
    monitor = MetricsMonitor(max_routes=400)
    if _broken_ours:
        begins, ends = ("begin", "begin_exchange"), ("end", "fail", "abandon", "cancel")
        for name in (*begins, *ends, "user", "websocket_opened"):
            setattr(monitor.recorder, name, broken)
    app = make()
    for _ in range(times):
        app = wrap(app, monitor)

    def read() -> Reading:
        rows: Counter[tuple[str, str, str]] = Counter()
        seconds = 0.0
        for row in monitor.get_routes():
            for status, number in row["statuses"].items():
                rows[row["method"], row["route"], status] += number
            timed = sum(row["statuses"].values())
            if row["requests"] - timed:
                rows[row["method"], row["route"], "gone"] += row["requests"] - timed
            seconds += row["latency_max_ms"] / 1000 if timed else 0.0
        timed = sum(number for (_, _, status), number in rows.items() if status != "gone")
        return Reading(
            rows, timed, seconds, monitor.total_errors, monitor.get_websocket_connections()
        )

    return Measured(app, read)


_broken_ours: list[bool] = []


@contextmanager
def _break_ours() -> Iterator[None]:
    _broken_ours.append(True)
    try:
        yield
    finally:
        _broken_ours.pop()


# --- Prometheus -----------------------------------------------------------------------------------


@contextmanager
def _break_prometheus() -> Iterator[None]:
    import prometheus_client

    kinds = [
        (prometheus_client.Counter, "inc"),
        (prometheus_client.Gauge, "inc"),
        (prometheus_client.Gauge, "dec"),
        (prometheus_client.Histogram, "observe"),
        (prometheus_client.Summary, "observe"),
    ]
    with ExitStack() as stack:
        for kind, name in kinds:
            stack.enter_context(mock.patch.object(kind, name, broken))
        yield


def _prometheus(
    registry: Any, total: str, labels: tuple[str, str, str], duration: str
) -> Callable[[], Reading]:
    """Read a counter by its labels for method, route and status, and a histogram or summary."""

    def once() -> Reading:
        reading = Reading()
        for family in registry.collect():
            for sample in family.samples:
                if sample.name == total:
                    method, route, status = (sample.labels.get(name, "") for name in labels)
                    reading.rows[method, route, status] += int(sample.value)
                    if status[:1] in ("4", "5"):
                        reading.errors += sample.value
                if sample.name == f"{duration}_count":
                    reading.timed += sample.value
                elif sample.name == f"{duration}_sum":
                    reading.seconds += sample.value
        return reading

    before = once()
    return lambda: once() - before


_prefixes = (f"score{number}" for number in itertools.count())


def _starlette_exporter(make: Make, times: int) -> Measured:
    import prometheus_client
    from starlette.applications import Starlette
    from starlette_exporter import PrometheusMiddleware

    prefix = next(_prefixes)
    app = make()
    for _ in range(times):
        if isinstance(app, Starlette):
            app.add_middleware(PrometheusMiddleware, prefix=prefix)
        else:
            app = PrometheusMiddleware(app, prefix=prefix, filter_unhandled_paths=False)
    labels = ("method", "path", "status_code")
    read = _prometheus(
        prometheus_client.REGISTRY,
        f"{prefix}_requests_total",
        labels,
        f"{prefix}_request_duration_seconds",
    )
    return Measured(app, read)


def _instrumentator(make: Make, times: int) -> Measured:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app, registry = make(), CollectorRegistry()
    for _ in range(times):
        Instrumentator(registry=registry).instrument(app)
    labels = ("method", "handler", "status")
    duration = "http_request_duration_highr_seconds"
    return Measured(app, _prometheus(registry, "http_requests_total", labels, duration))


def _flask_exporter(make: Make, times: int) -> Measured:
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app, registry = make(), CollectorRegistry()
    for _ in range(times):
        PrometheusMetrics(app, group_by="url_rule", registry=registry)
    duration = "flask_http_request_duration_seconds"
    # Its counter knows no routes, so its latencies are counted.
    labels = ("method", "url_rule", "status")
    return Measured(app, _prometheus(registry, f"{duration}_count", labels, duration))


def _django_prometheus(make: Make, times: int) -> Measured:
    import prometheus_client
    from django.conf import settings
    from django.test.utils import override_settings

    module = "django_prometheus.middleware"
    middleware = [f"{module}.PrometheusBeforeMiddleware"] * times
    middleware += settings.MIDDLEWARE
    middleware += [f"{module}.PrometheusAfterMiddleware"] * times
    with override_settings(MIDDLEWARE=middleware):
        app = make()
    read = _prometheus(
        prometheus_client.REGISTRY,
        "django_http_responses_total_by_status_view_method_total",
        ("method", "view", "status"),
        "django_http_requests_latency_including_middlewares_seconds",
    )
    return Measured(app, read)


# --- OpenTelemetry --------------------------------------------------------------------------------


@contextmanager
def _break_opentelemetry() -> Iterator[None]:
    from opentelemetry.sdk.metrics import Counter as Sum
    from opentelemetry.sdk.metrics import Histogram, UpDownCounter

    with ExitStack() as stack:
        for kind, name in ((Sum, "add"), (UpDownCounter, "add"), (Histogram, "record")):
            stack.enter_context(mock.patch.object(kind, name, broken))
        yield


def _opentelemetry(build: Callable[[Any], Any]) -> Measured:
    """What `build` makes of a meter provider, read from memory."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    app = build(MeterProvider([reader]))

    def read() -> Reading:
        reading = Reading()
        data: Any = reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        metrics = [m for r in resources for s in r.scope_metrics for m in s.metrics]
        for metric in metrics:
            if metric.name not in ("http.server.duration", "http.server.request.duration"):
                continue
            unit = 1000 if metric.unit == "ms" else 1
            for point in metric.data.data_points:
                seen = point.attributes
                status = seen.get("http.status_code", seen.get("http.response.status_code", ""))
                route = seen.get("http.route", seen.get("http.target", ""))
                method = seen.get("http.method", seen.get("http.request.method", ""))
                reading.rows[str(method), str(route), str(status)] += point.count
                if str(status)[:1] in ("4", "5"):
                    reading.errors += point.count
                reading.timed += point.count
                reading.seconds += point.sum / unit
        return reading

    return Measured(app, read)


def _opentelemetry_wsgi(make: Make, times: int) -> Measured:
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    def build(provider: Any) -> Any:
        app = make()
        for _ in range(times):
            app = OpenTelemetryMiddleware(app, meter_provider=provider)
        return app

    return _opentelemetry(build)


def _opentelemetry_asgi(make: Make, times: int) -> Measured:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    def build(provider: Any) -> Any:
        app = make()
        for _ in range(times):
            app = OpenTelemetryMiddleware(app, meter_provider=provider)
        return app

    return _opentelemetry(build)


def _opentelemetry_flask(make: Make, times: int) -> Measured:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    def build(provider: Any) -> Any:
        app = make()
        for _ in range(times):
            FlaskInstrumentor().instrument_app(app, meter_provider=provider)  # type: ignore[no-untyped-call]
        return app

    return _opentelemetry(build)


def _opentelemetry_fastapi(make: Make, times: int) -> Measured:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    def build(provider: Any) -> Any:
        app = make()
        for _ in range(times):
            FastAPIInstrumentor.instrument_app(app, meter_provider=provider)
        return app

    return _opentelemetry(build)


WSGI_PEERS = [
    Peer(
        "metricsmw",
        ("metricsmw",),
        dict.fromkeys(
            [
                "raw_wsgi",
                "flask_site",
                "django_site",
                "falcon_site",
                "bottle_site",
                "pyramid_site",
            ],
            _ours,
        ),
        _break_ours,
    ),
    Peer(
        "OpenTelemetry",
        (
            "opentelemetry-instrumentation-wsgi",
            "opentelemetry-instrumentation-flask",
            "opentelemetry-sdk",
        ),
        {"raw_wsgi": _opentelemetry_wsgi, "flask_site": _opentelemetry_flask},
        _break_opentelemetry,
    ),
    Peer(
        "prometheus-flask-exporter",
        ("prometheus_flask_exporter",),
        {"flask_site": _flask_exporter},
        _break_prometheus,
    ),
    Peer(
        "django-prometheus",
        ("django-prometheus",),
        {"django_site": _django_prometheus},
        _break_prometheus,
    ),
]
ASGI_PEERS = [
    Peer(
        "metricsmw",
        ("metricsmw",),
        dict.fromkeys(
            [
                "raw_asgi",
                "starlette_site",
                "fastapi_site",
                "quart_site",
                "litestar_site",
                "falcon_asgi_site",
                "django_asgi_site",
            ],
            _ours,
        ),
        _break_ours,
    ),
    Peer(
        "OpenTelemetry",
        (
            "opentelemetry-instrumentation-asgi",
            "opentelemetry-instrumentation-fastapi",
            "opentelemetry-sdk",
        ),
        {"raw_asgi": _opentelemetry_asgi, "fastapi_site": _opentelemetry_fastapi},
        _break_opentelemetry,
    ),
    Peer(
        "starlette-exporter",
        ("starlette_exporter",),
        {
            "raw_asgi": _starlette_exporter,
            "starlette_site": _starlette_exporter,
            "fastapi_site": _starlette_exporter,
        },
        _break_prometheus,
    ),
    Peer(
        "prometheus-fastapi-instrumentator",
        ("prometheus-fastapi-instrumentator",),
        {"starlette_site": _instrumentator, "fastapi_site": _instrumentator},
        _break_prometheus,
    ),
]
