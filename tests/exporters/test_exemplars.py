"""Exemplars: captured requests with a trace id, in the series that count them, in each format."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kits.metric_families import exemplars, parse
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording.captures import Evidence
from metricsmw.engine.recording.tracing import Trace
from metricsmw.engine.storage.keys import AnswerName
from metricsmw.exporters import openmetrics, otlp, protobuf, text
from metricsmw.exporters.deltas import Sent, since
from metricsmw.exporters.server import exposition

NAME = "http_server_request_duration_seconds"
REQUESTS = st.lists(
    st.tuples(
        st.floats(0.001, 3000),
        st.sampled_from(["GET", "BREW"]),
        st.sampled_from(["/a", None, '/"\n\\', "/" + "x" * 10_000]),
        st.one_of(
            st.sampled_from([200, 301, 404, *range(500, 520)]),
            st.builds(AnswerName, st.just(500), st.just(""), st.sampled_from(["KeyError", "a.B"])),
        ),
        st.booleans(),  # whether it has a trace
    ),
    max_size=25,
)


class Traced:
    """A request that belongs to a trace."""

    def __init__(self, number: int, start: float = 0.0) -> None:
        self.start = start
        self.trace = Trace(number.to_bytes(16, "big"), number.to_bytes(8, "big"))

    def evidence(self, carrier: object, wanted: tuple[str, ...]) -> Evidence:
        return Evidence(self.start, trace=self.trace)


def recorded(monitor: MetricsMonitor, done: Any) -> dict[str, dict[str, str]]:
    """Record requests; for each trace the labels of the series that it may be in, and its value."""
    clock = monitor.clock
    assert isinstance(clock, ManualClock)
    labels: dict[str, dict[str, str]] = {}
    for number, (seconds, method, route, key, traced) in enumerate(done, 1):
        clock.advance(0.5)
        status = key.status if isinstance(key, AnswerName) else key
        monitor.recorder.observe_route(
            seconds, status >= 500, route, method, key, None, Traced(number) if traced else None
        )
        if traced:
            found = {"http_request_method": "GET" if method == "GET" else "_OTHER"}
            found["http_response_status_code"] = str(status)
            if status >= 500:
                found["error_type"] = key.error if isinstance(key, AnswerName) else str(status)
            labels[f"{number:032x}"] = {**found, "value": repr(seconds)}
    return labels


def check(told: dict[str, str], series: dict[str, str], value: float) -> None:
    """Fail unless the exemplar's request is one of those that the series counts."""
    assert value == float(told["value"])
    # Statuses past the first twelve of a route share a series that names none.
    for name, label in series.items():
        assert name == "http_route" or told[name] == label


@settings(max_examples=25)
@given(REQUESTS)
def test_each_is_in_the_series_that_counts_it(done: Any) -> None:
    with MetricsMonitor(60, clock=ManualClock()) as monitor:
        labels = recorded(monitor, done)
        told = exposition(monitor)
    found: set[str] = set()
    for family in parse(protobuf.write(told)):
        for metric in family.metric:
            series = {pair.name: pair.value for pair in metric.label}
            for exemplar in exemplars(metric.histogram):
                (trace, span) = sorted(pair.value for pair in exemplar.label)[::-1]
                trace = max(trace, span, key=len)
                if family.name == NAME:
                    check(labels[trace], series, exemplar.value)
                    found.add(trace)
                assert exemplar.timestamp.seconds > 0
    for one in text_string_to_metric_families(openmetrics.write(told).decode()):
        for sample in one.samples:
            if sample.exemplar:
                trace = sample.exemplar.labels["trace_id"]
                assert trace in labels
                if one.name == NAME:
                    series = {k: v for k, v in sample.labels.items() if k != "le"}
                    check(labels[trace], series, sample.exemplar.value)
                    assert sample.exemplar.value <= float(sample.labels["le"])
    (metrics,) = otlp.metrics_data(told, 2e9).resource_metrics[0].scope_metrics
    for metric in metrics.metrics:
        for point in metric.data.data_points:
            for exemplar in point.exemplars:
                assert f"{exemplar.trace_id:032x}" in labels
                assert exemplar.span_id == exemplar.trace_id
    assert b"trace_id" not in text.write(told)
    # The slowest request of each series that has a trace and is the slowest of its row is there.
    if labels and len(labels) == len(done):
        assert max(labels, key=lambda trace: float(labels[trace]["value"])) in found


def test_a_delta_has_those_that_are_new() -> None:
    clock = ManualClock()
    with MetricsMonitor(60, clock=clock) as monitor:
        recorded(monitor, [(1.0, "GET", "/a", 200, True)])
        first = exposition(monitor)
        sent = Sent.of(first, clock.time())
        clock.advance(30)
        recorder = monitor.recorder
        recorder.observe_route(2.0, False, "/a", "GET", 200, None, Traced(7, clock.now - 2))
        (family,) = [f for f in since(exposition(monitor), sent).families if "http" in f.name][:1]
        (point,) = family.points
        assert [one.attributes["trace_id"] for one in point.exemplars] == [f"{7:032x}"]


def test_of_many_the_slowest() -> None:
    with MetricsMonitor(60, clock=ManualClock()) as monitor:
        recorded(monitor, [(float(n), "GET", "/a", 200, True) for n in range(1, 100)])
        overall = exposition(monitor).families[0]
        (point,) = overall.points
        assert [one.value for one in point.exemplars] == [float(n) for n in range(90, 100)]
        assert [one.time for one in point.exemplars] == sorted(one.time for one in point.exemplars)
