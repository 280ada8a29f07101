"""Any families, written in each format and parsed back, give the same numbers."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from kits.expositions import expositions
from kits.metric_families import buckets, exemplars, parse
from prometheus_client.openmetrics.parser import (
    text_fd_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from metricsmw.exporters import openmetrics, protobuf, text
from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import Escaping, labels, metric_name

Series = tuple[str, frozenset[tuple[str, str]]]


def series(name: str, described: Mapping[str, str], **further: str) -> Series:
    return name, frozenset({**labels(described), **further}.items())


def samples(found: Iterable[Any]) -> dict[Series, float]:
    """All samples of parsed families by name and labels; each is there once."""
    values: dict[Series, float] = {}
    for family in found:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in values
            values[key] = sample.value
    return values


def expected_samples(exposition: Exposition, *, created: bool) -> dict[Series, float]:
    """The samples of the text formats: classic buckets for histograms."""
    values: dict[Series, float] = {}
    for family in exposition.all_families():
        name = metric_name(family)
        for point in family.points:
            told = point.attributes
            if isinstance(point, HistogramPoint):
                for bound, count in point.classic():
                    le = "+Inf" if math.isinf(bound) else repr(bound)
                    values[series(f"{name}_bucket", told, le=le)] = count
                values[series(f"{name}_sum", told)] = point.sum
                values[series(f"{name}_count", told)] = point.count
            else:
                values[series(name, told)] = point.value
            if created and point.started is not None:
                stem = name.removesuffix("_total") if isinstance(family, CounterFamily) else name
                at = series(f"{stem}_created", told)
                values[at] = pytest.approx(point.started, abs=1e-3)
    return values


@settings(max_examples=50)
@given(expositions())
def test_text_parsed_back_has_the_same_numbers(exposition: Exposition) -> None:
    body = text.write(exposition)
    assert samples(parse_text(body.decode())) == expected_samples(exposition, created=False)
    assert b"NaN" not in re.sub(rb'"[^"]*"', b"", body)


@settings(max_examples=50)
@given(expositions())
def test_openmetrics_parsed_back_has_the_same_numbers(exposition: Exposition) -> None:
    body = openmetrics.write(exposition).decode()
    assert samples(_openmetrics(body)) == expected_samples(exposition, created=True)


def _openmetrics(body: str) -> Iterable[Any]:
    return parse_openmetrics(io.StringIO(body))


@pytest.mark.parametrize("classic", [False, True])
@settings(max_examples=50)
@given(exposition=expositions())
def test_protobuf_parsed_back_has_the_same_numbers(exposition: Exposition, classic: bool) -> None:
    found = parse(protobuf.write(exposition, classic=classic))
    written = exposition.all_families()
    assert [family.name for family in found] == [metric_name(family) for family in written]
    for family, expected in zip(found, written, strict=True):
        assert len(family.metric) == len(expected.points)
        for metric, point in zip(family.metric, expected.points, strict=True):
            assert {pair.name: pair.value for pair in metric.label} == labels(point.attributes)
            if isinstance(point, HistogramPoint):
                assert family.type == 4
                _check_histogram(metric.histogram, point, classic)
            elif isinstance(expected, CounterFamily):
                assert family.type == 0
                assert metric.counter.value == point.value
                assert metric.counter.HasField("created_timestamp") == (point.started is not None)
                assert metric.counter.HasField("exemplar") == (point.exemplar is not None)
            else:
                assert family.type == 1
                assert metric.gauge.value == point.value


def _check_histogram(written: Any, point: HistogramPoint, classic: bool) -> None:
    expected = {point.first + k: count for k, count in enumerate(point.counts) if count}
    assert buckets(written) == expected
    assert written.positive_span, "without a span it would be a classic histogram"
    assert written.sample_count == point.count
    assert written.sample_sum == point.sum
    assert written.schema == point.scale
    assert written.zero_count == 0
    found = [(bucket.upper_bound, bucket.cumulative_count) for bucket in written.bucket]
    assert found == (list(point.classic()) if classic else [])
    if point.started is not None:
        created = written.created_timestamp
        assert created.seconds + created.nanos / 1e9 == pytest.approx(point.started, abs=1e-6)
    assert [e.value for e in exemplars(written)] == [e.value for e in point.exemplars]


NATIVE = re.compile(
    r"\{count:(\d+),sum:([^,]+),schema:(-?\d+),zero_threshold:0\.0,zero_count:0"
    r"(?:,positive_spans:\[([^]]+)\],positive_buckets:\[([^]]+)\])?(?:,bucket:\[([^]]+)\])?\}"
    r"(?: st@([\d.]+))?((?: # \{.*?\} \S+ \S+)*)\Z"
)


@pytest.mark.parametrize("classic", [False, True])
@settings(max_examples=50)
@given(exposition=expositions())
def test_openmetrics_2_has_the_same_buckets(exposition: Exposition, classic: bool) -> None:
    lines = openmetrics.write_2(exposition, classic=classic).decode().split("\n")
    assert lines[-2:] == ["# EOF", ""]
    found = [line for line in lines if line and not line.startswith("#")]
    points = [(family, point) for family in exposition.all_families() for point in family.points]
    assert len(found) == len(points)
    for line, (family, point) in zip(found, points, strict=True):
        assert line.startswith(metric_name(family))
        if not isinstance(point, HistogramPoint):
            continue
        match = NATIVE.search(line)
        assert match, line
        count, total, schema, spans, counts, bounds, started, exemplars = match.groups()
        assert (int(count), float(total), int(schema)) == (point.count, point.sum, point.scale)
        populated = {point.first + k: n for k, n in enumerate(point.counts) if n}
        assert _absolute(spans or "", counts or "") == populated
        assert (bounds is not None) == classic
        assert (started is not None) == (point.started is not None)
        assert (exemplars or "").count(" # {") == len(point.exemplars)


def _absolute(spans: str, counts: str) -> dict[int, int]:
    numbers = [int(count) for count in counts.split(",") if count]
    found: dict[int, int] = {}
    index = 0
    for span in filter(None, spans.split(",")):
        offset, length = map(int, span.split(":"))
        index += offset
        for count in numbers[:length]:
            found[index] = count
            index += 1
        del numbers[:length]
    assert not numbers
    return {index: count for index, count in found.items() if count}


# --- what each format says, by example ------------------------------------------------------------

STARTED = 1_700_000_000.25
TRACE = Exemplar(0.3, {"trace_id": "ab" * 16}, 1_700_000_001.5)
EXAMPLE = Exposition(
    {"service.name": "shop"},
    [
        HistogramFamily(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            [HistogramPoint({"http.route": "/a"}, 5, -64, [3, 0, 1], 1.5, STARTED, [TRACE])],
        ),
        CounterFamily("orders", "{order}", "Orders.", [NumberPoint({"shop": "x"}, 7, STARTED)]),
        GaugeFamily("process.memory.usage", "By", "Memory.", [NumberPoint({}, 1024)]),
    ],
)


def test_names_end_in_unit_and_total() -> None:
    assert [metric_name(family) for family in EXAMPLE.all_families()] == [
        "target_info",
        "http_server_request_duration_seconds",
        "orders_total",
        "process_memory_usage_bytes",
    ]


def test_openmetrics_2_by_example() -> None:
    assert openmetrics.write_2(EXAMPLE).decode().splitlines() == [
        "# TYPE target_info info",
        "# HELP target_info Attributes of the server that all other families are of.",
        'target_info{service_name="shop"} 1',
        "# TYPE http_server_request_duration_seconds histogram",
        "# UNIT http_server_request_duration_seconds seconds",
        "# HELP http_server_request_duration_seconds Duration of HTTP server requests.",
        (
            'http_server_request_duration_seconds{http_route="/a"} {count:4,sum:1.5,schema:5,'
            "zero_threshold:0.0,zero_count:0,positive_spans:[-64:3],positive_buckets:[3,0,1]}"
            f' st@1700000000.250 # {{trace_id="{"ab" * 16}"}} 0.3 1700000001.500'
        ),
        "# TYPE orders_total counter",
        "# HELP orders_total Orders.",
        'orders_total{shop="x"} 7 st@1700000000.250',
        "# TYPE process_memory_usage_bytes gauge",
        "# UNIT process_memory_usage_bytes bytes",
        "# HELP process_memory_usage_bytes Memory.",
        "process_memory_usage_bytes 1024",
        "# EOF",
    ]


@pytest.mark.parametrize(("series", "of_each"), [(1, 10), (3, 10), (30, 2), (200, 1)])
def test_each_version_of_prometheus_reads_the_same_exemplars(series: int, of_each: int) -> None:
    points = [
        HistogramPoint(
            {"a": str(number)}, 4, 0, [1], 1.0,
            exemplars=[Exemplar(number + k / 10, {"trace_id": "a"}, 1e9 + k) for k in range(10)],
        )
        for number in range(series)
    ]  # fmt: skip
    families = [HistogramFamily(name, "s", "", points[k::2]) for k, name in enumerate("ab")]
    place = 0
    found = []
    for family in parse(protobuf.write(Exposition({}, families))):
        for metric in family.metric:
            written, read = metric.histogram.exemplars, exemplars(metric.histogram)
            if read:
                assert list(written[place:]) == read  # version 2.53 goes on where it has ended
                place = len(written)
            found += [one.value for one in read]
    slowest = range(series)[-protobuf.MOST_EXEMPLARS :]
    assert sorted(found) == [n + k / 10 for n in slowest for k in range(10)[-of_each:]]


def test_openmetrics_1_carries_the_exemplar_in_its_bucket() -> None:
    found = list(_openmetrics(openmetrics.write(EXAMPLE).decode()))
    (histogram,) = [family for family in found if family.type == "histogram"]
    carrying = [sample for sample in histogram.samples if sample.exemplar]
    assert [(s.labels["le"], s.exemplar.value) for s in carrying] == [("0.5", 0.3)]
    assert histogram.unit == "seconds"


def test_dots_are_written_as_asked() -> None:
    assert "http__server__request__duration__seconds" in text.write(EXAMPLE, "dots").decode()
    for body in (text.write(EXAMPLE, "dots"), openmetrics.write(EXAMPLE, "dots")):
        assert 'orders__total{shop="x"} 7' in body.decode()


def test_a_unit_is_told_where_the_name_ends_in_it() -> None:
    # Prometheus refuses the whole scrape otherwise.
    own = [
        GaugeFamily("bytes", "By", "", [NumberPoint({}, 1)]),
        CounterFamily("seconds", "s", "", [NumberPoint({}, 1)]),
        CounterFamily("cpu", "s", "", [NumberPoint({}, 1)]),
    ]
    for escaping, told in (("underscores", 3), ("dots", 2)):
        exposition = Exposition({}, [*EXAMPLE.families, *own])
        units = [
            (family.name.removesuffix("_total"), family.unit)
            for family in parse(protobuf.write(exposition, cast("Escaping", escaping)))
            if family.unit
        ]
        assert len(units) == told
        assert all(name.endswith(f"_{unit}") for name, unit in units)


def test_a_family_without_points_is_left_out() -> None:
    nothing = Exposition({}, [GaugeFamily("a", "", "", []), HistogramFamily("b", "", "", [])])
    for body in (text.write(nothing), openmetrics.write(nothing), openmetrics.write_2(nothing)):
        kinds = [line for line in body.decode().splitlines() if line.startswith("# TYPE")]
        assert len(kinds) == 1, "that of the target"
    assert [family.name for family in parse(protobuf.write(nothing))] == ["target_info"]


def test_an_unused_histogram_stays_native() -> None:
    empty = Exposition({}, [HistogramFamily("b", "", "", [HistogramPoint({}, 5, 0, [], 0.0)])])
    (written,) = parse(protobuf.write(empty))[1].metric
    (span,) = written.histogram.positive_span
    assert (span.offset, span.length) == (0, 0)


def test_attributes_of_one_label_are_joined() -> None:
    assert labels({"a.b": "2", "a-b": "1", "c": ""}) == {"a_b": "1;2"}


LONG = {"a": "x" * 10_000, "b": '"\n\\' * 3_000}


def test_long_values_stay_whole() -> None:
    exposition = Exposition({}, [CounterFamily("n", "", "", [NumberPoint(LONG, 1)])])
    expected = expected_samples(exposition, created=False)
    assert samples(parse_text(text.write(exposition).decode())) == expected
    assert samples(_openmetrics(openmetrics.write(exposition).decode())) == expected
    (metric,) = parse(protobuf.write(exposition))[1].metric
    assert {pair.name: pair.value for pair in metric.label} == LONG


def test_text_without_utf8_is_written_readably() -> None:
    assert labels({"a": "\0\udc80"}) == {"a": "\\x00\\udc80"}
