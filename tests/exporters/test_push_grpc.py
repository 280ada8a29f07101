"""`OTLPExport` by gRPC: what is pushed arrives whole."""

from __future__ import annotations

import os

import pytest
from kits.grpc_receiver import grpc_receiver

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.exporters.server import exposition
from metricsmw.exporting import OTLPExport


def test_a_push_arrives_whole(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-shop=north")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with MetricsMonitor(clock=clock) as monitor, grpc_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        for _ in range(2):
            monitor.record_request(10.0, method="GET", route="/", status=200)
        monitor.counter("orders", labels=["shop"]).labels("north").inc(3)
        pushed = OTLPExport(monitor, start=False)
        assert not pushed.check()  # the first interval is in progress
        clock.advance(60)
        assert pushed.check()
        pushed.stop()
        sent = exposition(monitor)
    (taken,) = receiver.exports
    assert taken.headers["x-shop"] == "north"
    assert taken.resource["service.instance.id"]
    (resource,) = taken.request.resource_metrics
    (scope,) = resource.scope_metrics
    assert [metric.name for metric in scope.metrics] == [f.name for f in sent.families if f.points]
    assert taken.requests == 2
    (orders,) = taken.metric("orders").sum.data_points
    assert orders.as_int == 3
    (duration,) = taken.metric("http.server.request.duration").exponential_histogram.data_points
    assert (duration.count, duration.scale) == (2, 4)
