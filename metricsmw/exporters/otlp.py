"""Families as OpenTelemetry's exporter library takes them, and its sending of them.

Only this file imports OpenTelemetry (extra ``metricsmw[otlp]``), and only those import it who
export there. Connections, compression, retries and the settings in OTEL_EXPORTER_OTLP_… are the
library's.

A bucket of ours has one number less in OpenTelemetry: its bucket ``i`` holds the values in
``(2**(i/2**n), 2**((i+1)/2**n)]``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.metrics import Counter as CounterInstrument
from opentelemetry.sdk.metrics import Exemplar as OtelExemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from metricsmw.exporters.model import (
    Attributes,
    CounterFamily,
    Exemplar,
    Exposition,
    Family,
    GaugeFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import readable

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "metricsmw"
# Attributes that are no text there.
TYPES: Final[Mapping[str, Callable[[str], str | int | bool]]] = {
    "http.response.status_code": int,
    "otel.metric.overflow": lambda text: text == "true",
    "process.pid": int,
}
# For each protocol, the library's module; the second one is a package of its own.
EXPORTERS: Final = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
}
LIBRARY_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)


class ExportError(Exception):
    """The receiver did not take an export; the message is the library's."""


def nanoseconds(seconds: float | None) -> int:
    """Return a Unix time as OpenTelemetry has it; 0 where it is not known."""
    return 0 if seconds is None else int(seconds * 1e9)


def _attributes(attributes: Attributes) -> dict[str, str | int | bool]:
    return {
        readable(name): TYPES[name](value) if name in TYPES else readable(value)
        for name, value in attributes.items()
    }


def _exemplars(exemplars: Sequence[Exemplar]) -> list[OtelExemplar]:
    found = []
    for exemplar in exemplars:
        rest = dict(exemplar.attributes)
        trace, span = (rest.pop(name, None) for name in ("trace_id", "span_id"))
        known = trace is not None and span is not None
        found.append(
            OtelExemplar(
                filtered_attributes=_attributes(rest if known else exemplar.attributes),
                value=exemplar.value,
                time_unix_nano=nanoseconds(exemplar.time),
                span_id=int(span, 16) if known and span else None,
                trace_id=int(trace, 16) if known and trace else None,
            )
        )
    return found


def _number(point: NumberPoint, at: int) -> sdk.NumberDataPoint:
    return sdk.NumberDataPoint(
        attributes=_attributes(point.attributes),
        start_time_unix_nano=nanoseconds(point.started),
        time_unix_nano=at,
        value=point.value,
        exemplars=_exemplars([] if point.exemplar is None else [point.exemplar]),
    )


def _histogram(point: HistogramPoint, at: int) -> sdk.ExponentialHistogramDataPoint:
    unknown: Any = None  # the field stays unset; the library's type does not say so
    return sdk.ExponentialHistogramDataPoint(
        attributes=_attributes(point.attributes),
        start_time_unix_nano=nanoseconds(point.started),
        time_unix_nano=at,
        count=point.count,
        sum=point.sum,
        scale=point.scale,
        zero_count=0,
        positive=sdk.Buckets(offset=point.first - 1, bucket_counts=point.counts),
        negative=sdk.Buckets(offset=0, bucket_counts=[]),
        flags=0,
        min=unknown,
        max=unknown,
        exemplars=_exemplars(point.exemplars),
    )


def _metric(family: Family, at: int, temporality: sdk.AggregationTemporality) -> sdk.Metric:
    data: sdk.DataT
    if isinstance(family, CounterFamily):
        numbers = [_number(point, at) for point in family.points]
        data = sdk.Sum(numbers, temporality, is_monotonic=True)
    elif isinstance(family, GaugeFamily):
        numbers = [_number(point, at) for point in family.points]
        cumulative = sdk.AggregationTemporality.CUMULATIVE
        data = sdk.Sum(numbers, cumulative, False) if family.is_sum else sdk.Gauge(numbers)
    else:
        points = [_histogram(point, at) for point in family.points]
        data = sdk.ExponentialHistogram(points, temporality)
    return sdk.Metric(family.name, readable(family.help), family.unit, data)


def metrics_data(exposition: Exposition, at: float, *, deltas: bool = False) -> sdk.MetricsData:
    """Return an exposition as the library's exporters take it.

    Args:
        exposition: What is exported.
        at: The Unix time of its numbers.
        deltas: True says that counters and histograms are what came since the last export.
    """
    kinds = sdk.AggregationTemporality
    temporality = kinds.DELTA if deltas else kinds.CUMULATIVE
    now = nanoseconds(at)
    metrics = [_metric(family, now, temporality) for family in exposition.families if family.points]
    scope = sdk.ScopeMetrics(InstrumentationScope(SCOPE), metrics, SCHEMA_URL)
    # Of the environment: text, whatever it is called.
    named = {readable(name): readable(value) for name, value in exposition.resource.items()}
    resource = Resource(named, SCHEMA_URL)
    return sdk.MetricsData([sdk.ResourceMetrics(resource, [scope], SCHEMA_URL)])


class OTLPSender:
    """A connection of this process to a receiver.

    Args:
        endpoint: The receiver's full URL; None: that of OTEL_EXPORTER_OTLP_METRICS_ENDPOINT or
            OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318/v1/metrics.
        headers: Further headers; None: those of the environment.
        timeout: Seconds for one export, retries included; None: that of the environment, else 10.

    Raises:
        ValueError: A setting of the environment cannot be understood.
    """

    def __init__(
        self,
        endpoint: str | None,
        headers: Mapping[str, str] | None,
        timeout: float | None,
    ) -> None:
        exporter: Any = _exporter_class()
        found = {"endpoint": endpoint, "headers": headers, "timeout": timeout}
        self._exporter: sdk.MetricExporter = exporter(
            **{name: value for name, value in found.items() if value is not None}
        )
        preferred = self._exporter._preferred_temporality or {}
        self.deltas = preferred.get(CounterInstrument) is sdk.AggregationTemporality.DELTA

    def send(self, exposition: Exposition, at: float) -> None:
        """Export, and wait for the receiver's answer.

        Raises:
            ExportError: The receiver did not take it, retries included.
        """
        data = metrics_data(exposition, at, deltas=self.deltas)
        # As the library's own readers do it: an export is no request to be traced.
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            with _library_log() as said:
                if self._exporter.export(data) is not sdk.MetricExportResult.SUCCESS:
                    raise ExportError(said[-1] if said else "no reason is known")
        finally:
            detach(token)

    def close(self) -> None:
        """Close the connection; an export in progress gives up its retries."""
        self._exporter.shutdown()


def _exporter_class() -> type[sdk.MetricExporter]:
    """Return the library's exporter for the protocol that the environment names."""
    name = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"
    if not os.environ.get(name):
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = os.environ.get(name) or "http/protobuf"
    if protocol not in EXPORTERS:
        raise ValueError(f"{name} must be one of {', '.join(EXPORTERS)}, got {protocol!r}")
    found: type[sdk.MetricExporter] = import_module(EXPORTERS[protocol]).OTLPMetricExporter
    return found


@contextmanager
def _library_log() -> Iterator[list[str]]:
    """Collect what the library logs in this thread, which would be each time and not once."""
    thread = threading.get_ident()
    said: list[str] = []

    def keep_out(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        said.append(record.getMessage())
        return False

    loggers = [logging.getLogger(name) for name in LIBRARY_LOGGERS]
    for logger in loggers:
        logger.addFilter(keep_out)
    try:
        yield said
    finally:
        for logger in loggers:
            logger.removeFilter(keep_out)
