"""OpenTelemetry's own library sends the families, and reads them back the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from kits.expositions import expositions
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from metricsmw.exporters.deltas import Sent, since
from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import readable
from metricsmw.exporters.otlp import metrics_data

CUMULATIVE, DELTA = 2, 1


def sent(exposition: Exposition, at: float = 2e9, **options: Any) -> dict[str, Any]:
    """The metrics of a request by name, after the library's encoding and protobuf's parsing."""
    body = encode_metrics(metrics_data(exposition, at, **options)).SerializeToString()
    request = ExportMetricsServiceRequest.FromString(body)
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def attributes(point: Any) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in point.attributes
    }


@settings(max_examples=50)
@given(expositions())
def test_any_families_arrive_with_the_same_numbers(exposition: Exposition) -> None:
    found = sent(exposition)
    expected = [family for family in exposition.families if family.points]
    assert list(found) == [family.name for family in expected]
    for family, metric in zip(expected, found.values(), strict=True):
        assert metric.unit == family.unit
        if isinstance(family, HistogramFamily):
            assert metric.exponential_histogram.aggregation_temporality == CUMULATIVE
            points = metric.exponential_histogram.data_points
        elif isinstance(family, CounterFamily):
            assert metric.sum.is_monotonic
            assert metric.sum.aggregation_temporality == CUMULATIVE
            points = metric.sum.data_points
        else:
            points = metric.gauge.data_points
        for point, data in zip(family.points, points, strict=True):
            told = {readable(k): readable(v) for k, v in point.attributes.items()}
            assert attributes(data) == told
            if isinstance(point, HistogramPoint):
                _check_histogram(data, point)
            else:
                value = data.as_int if isinstance(point.value, int) else data.as_double
                assert value == point.value


def _check_histogram(data: Any, point: HistogramPoint) -> None:
    assert (data.count, data.sum, data.scale) == (point.count, point.sum, point.scale)
    assert data.zero_count == 0
    assert not data.HasField("min")
    assert not data.HasField("max")
    # The bucket that is numbered i there has the upper bound of ours that is numbered i + 1.
    written = {data.positive.offset + k + 1: n for k, n in enumerate(data.positive.bucket_counts)}
    assert written == {point.first + k: n for k, n in enumerate(point.counts)}
    assert [e.as_double for e in data.exemplars] == [e.value for e in point.exemplars]


def test_types_and_times_are_the_conventions() -> None:
    told = {
        "http.response.status_code": "503",
        "otel.metric.overflow": "true",
        "process.pid": "7",
        "http.route": "/",
    }
    exposition = Exposition(
        {"service.name": "shop"}, [CounterFamily("n", "", "", [NumberPoint(told, 1, 1.5e9)])]
    )
    (point,) = sent(exposition)["n"].sum.data_points
    assert attributes(point) == {
        "http.response.status_code": 503,
        "otel.metric.overflow": True,
        "process.pid": 7,
        "http.route": "/",
    }
    assert point.start_time_unix_nano == 1_500_000_000 * 10**9
    assert point.time_unix_nano == 2_000_000_000 * 10**9


def test_gauges_that_add_up_are_sums() -> None:
    gauges = [
        GaugeFamily(name, "", "", [NumberPoint({}, 3)], is_sum=name == "sum") for name in "ab"
    ]
    gauges.append(GaugeFamily("sum", "", "", [NumberPoint({}, 3)], is_sum=True))
    found = sent(Exposition({}, gauges))
    assert found["a"].WhichOneof("data") == "gauge"
    assert not found["sum"].sum.is_monotonic


def test_an_exemplar_names_its_span() -> None:
    exemplar = Exemplar(0.5, {"trace_id": "ab" * 16, "span_id": "cd" * 8, "a": "b"}, 1e9)
    point = HistogramPoint({}, 5, 0, [1], 0.5, exemplars=[exemplar])
    (data,) = sent(Exposition({}, [HistogramFamily("h", "s", "", [point])]))[
        "h"
    ].exponential_histogram.data_points
    (written,) = data.exemplars
    assert written.trace_id.hex() == "ab" * 16
    assert written.span_id.hex() == "cd" * 8
    assert [pair.key for pair in written.filtered_attributes] == ["a"]


# --- deltas ---------------------------------------------------------------------------------------


def exported(value: float, counts: list[int], first: int = 3, started: float = 1.0) -> Exposition:
    return Exposition(
        {},
        [
            CounterFamily("c", "", "", [NumberPoint({"a": "b"}, value, started)]),
            HistogramFamily(
                "h", "s", "", [HistogramPoint({}, 5, first, counts, sum(counts), started)]
            ),
            GaugeFamily("g", "", "", [NumberPoint({}, value)]),
        ],
    )


def gained(now: Exposition, sent: Sent | None) -> tuple[Any, Any]:
    assert sent is not None
    counter, histogram, gauge = since(now, sent).families
    assert gauge == now.families[2]
    return counter.points[0], histogram.points[0]


def kept(exposition: Exposition, at: float = 10.0) -> Sent | None:
    return Sent.from_json(Sent.of(exposition, at).to_json())


def test_deltas_are_what_came_since() -> None:
    before = kept(exported(5, [1, 0, 2]))
    number, histogram = gained(exported(9, [4, 1, 1, 2, 7], first=2), before)
    assert (number.value, number.started) == (4, 10.0)
    # Bucket 2 is new, and so is 6.
    assert (histogram.first, histogram.counts) == (2, [4, 0, 1, 0, 7])
    assert (histogram.sum, histogram.started) == (15 - 3, 10.0)


def test_deltas_after_a_reset_are_all_there_is() -> None:
    before = kept(exported(5, [1, 0, 2]))
    number, histogram = gained(exported(7, [2, 0, 3], started=11.0), before)
    assert (number.value, number.started) == (7, 11.0)
    assert (histogram.counts, histogram.started) == ([2, 0, 3], 11.0)
    # Also where the start is not told: less than before is a new beginning.
    number, histogram = gained(exported(4, [0, 0, 1]), before)
    assert (number.value, histogram.counts) == (4, [0, 0, 1])


BROKEN = ["", "{}", "[1]", "[1, {}, []]", '[1, {}, {"a": 1}]', "\ud800", "null"]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_export_is_none(text: str) -> None:
    assert Sent.from_json(text) is None


@settings(max_examples=50)
@given(expositions())
def test_nothing_came_since_now(exposition: Exposition) -> None:
    before = Sent.from_json(Sent.of(exposition, 4e9).to_json())
    assert before is not None
    for family in since(exposition, before).families:
        for point in family.points:
            if isinstance(family, CounterFamily):
                assert point.value == 0
            elif isinstance(point, HistogramPoint):
                assert not any(point.counts)
                assert math.isclose(point.sum, 0)
