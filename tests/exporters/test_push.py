"""`OTLPExport`: when, once, by whom, and what a receiver that is away or hangs costs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kits.crew import SharedClock, crew
from kits.otlp_receiver import OTLPReceiver, otlp_receiver
from kits.servers import wait_until
from werkzeug.test import Client

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.clock import ManualClock
from metricsmw.exporters.model import Exposition
from metricsmw.exporters.otlp import ExportError, OTLPSender
from metricsmw.exporting import OTLPExport

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Make = Callable[..., OTLPExport]
NOBODY = "http://127.0.0.1:9/v1/metrics"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[OTLPReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


@pytest.fixture
def export(monitor: MetricsMonitor, receiver: OTLPReceiver) -> Iterator[Make]:
    made: list[OTLPExport] = []

    def make(endpoint: str | None = receiver.url, **settings: Any) -> OTLPExport:
        made.append(OTLPExport(monitor, endpoint, **{"start": False} | settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_each_interval_is_exported_once(
    monitor: MetricsMonitor, receiver: OTLPReceiver, clock: ManualClock, export: Make
) -> None:
    pushed = export()
    monitor.record_request(10.0, method="GET", route="/")
    assert not pushed.check()  # the first interval is in progress
    clock.advance(60)
    assert pushed.check()
    assert not pushed.check()
    monitor.record_request(10.0, method="GET", route="/")
    clock.advance(60)
    assert pushed.check()
    assert [taken.requests for taken in receiver.exports] == [1, 2]
    assert receiver.exports[1].time - receiver.exports[0].time == pytest.approx(60)
    histogram = receiver.exports[1].metric("http.server.request.duration").exponential_histogram
    assert histogram.aggregation_temporality == 2
    (point,) = histogram.data_points
    assert (point.count, point.scale) == (2, 4)
    assert point.start_time_unix_nano > 0
    assert receiver.exports[0].resource["service.instance.id"]


def test_a_slow_request_is_an_exemplar_under_its_clients_trace(
    monitor: MetricsMonitor, receiver: OTLPReceiver, clock: ManualClock, export: Make
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        clock.advance(2)
        start_response("200 OK", [])
        return [b"late"]

    pushed = export()
    pushed.check()
    began = clock.time()
    Client(wrap(app, monitor)).get("/", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    clock.advance(60)
    assert pushed.check()
    for name in ("http.server.request.duration", "metricsmw.request.duration"):
        (point,) = receiver.exports[0].metric(name).exponential_histogram.data_points
        (exemplar,) = point.exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (b"\xab" * 16, b"\xcd" * 8)
        assert exemplar.as_double == 2.0
        assert exemplar.time_unix_nano / 1e9 == pytest.approx(began + 2)


def test_a_reset_moves_the_start(
    monitor: MetricsMonitor, receiver: OTLPReceiver, clock: ManualClock, export: Make
) -> None:
    pushed = export()
    pushed.check()
    for _ in range(2):
        monitor.record_request(10.0)
        clock.advance(60)
        assert pushed.check()
    monitor.reset_statistics()
    clock.advance(60)
    assert pushed.check()
    starts = [
        taken.metric("metricsmw.requests").sum.data_points[0].start_time_unix_nano
        for taken in receiver.exports
    ]
    assert starts[0] == starts[1] < starts[2]
    assert [taken.requests for taken in receiver.exports] == [1, 2, 0]


def test_the_environment_is_honoured(
    monitor: MetricsMonitor,
    receiver: OTLPReceiver,
    clock: ManualClock,
    export: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.removesuffix("/v1/metrics"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=general")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "5000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "process.pid=none,a=%C3%A9,b=\udce9")
    pushed = export(None)
    pushed.check()
    clock.advance(5)
    assert pushed.check()
    (taken,) = receiver.exports
    assert taken.path == "/v1/metrics"
    assert taken.headers["api-key"] == "secret"
    assert taken.headers["content-encoding"] == "gzip"
    told = {name: taken.resource[name] for name in ("service.name", "process.pid", "a", "b")}
    assert told == {"service.name": "shop", "process.pid": "none", "a": "é", "b": "\\udce9"}


def test_deltas_where_they_are_preferred(
    monitor: MetricsMonitor,
    receiver: OTLPReceiver,
    clock: ManualClock,
    export: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    pushed = export(timeout=0.2)
    pushed.check()
    for requests, status in [(3, 200), (2, 200), (4, 400), (1, 200)]:
        for _ in range(requests):
            monitor.record_request(10.0)
        clock.advance(60)
        receiver.status = status
        assert pushed.check() == (status == 200)
    # What was refused comes with the next one.
    assert [taken.requests for taken in receiver.exports] == [3, 2, 5]
    metric = receiver.exports[1].metric("metricsmw.request.duration").exponential_histogram
    assert metric.aggregation_temporality == 1
    first, second = (
        taken.metric("metricsmw.requests").sum.data_points[0] for taken in receiver.exports[:2]
    )
    assert second.start_time_unix_nano == first.time_unix_nano


def test_a_delta_of_a_leader_that_hung_is_not_sent_again_by_the_next(
    receiver: OTLPReceiver,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "lowmemory")
    with (
        MetricsMonitor(shared=True, clock=clock) as one,
        MetricsMonitor(shared=True, clock=clock) as two,
    ):
        first, second = (OTLPExport(m, receiver.url, start=False) for m in (one, two))

        def hang(self: OTLPSender, numbers: Exposition, at: float) -> None:
            monkeypatch.setattr(OTLPSender, "send", send)
            (promise,) = tmp_path.rglob("once-otlp_export.lock")
            promise.write_text("0")  # the deadline of the leader, which has passed
            clock.advance(60)
            assert second.check()
            raise ExportError("hung")

        first.check()
        one.record_request(10.0)
        send = OTLPSender.send
        monkeypatch.setattr(OTLPSender, "send", hang)
        clock.advance(60)
        assert not first.check()
        two.record_request(10.0)
        clock.advance(60)
        assert second.check()
        # The one that was being sent is lost, the other one is not sent twice.
        assert [taken.requests for taken in receiver.exports] == [0, 1]
        second.stop()


@pytest.mark.parametrize(("text", "seconds"), [("100", 115), ("1e9", 25), ("none", 25)])
def test_a_leader_is_not_late_while_an_export_may_take_its_time(
    receiver: OTLPReceiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, seconds: int
) -> None:
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", text)
    with MetricsMonitor(shared=True) as monitor:
        pushed = OTLPExport(monitor, receiver.url, interval=0.1, start=True)
        monitor.record_request(1.0)

        def promised() -> float:
            (file,) = list(tmp_path.rglob("once-otlp_export.lock")) or [tmp_path / "none"]
            return float(file.read_text() or 0) if file.is_file() else 0.0

        wait_until(promised, "the leader's deadline")
        assert seconds - 10 < promised() - time.monotonic() <= seconds + 1
        pushed.stop()


# --- what goes wrong ------------------------------------------------------------------------------


def test_failures_are_logged_once_counted_and_in_health(
    monitor: MetricsMonitor,
    receiver: OTLPReceiver,
    clock: ManualClock,
    export: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pushed = export(timeout=0.2)
    pushed.check()
    receiver.status = 400
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.advance(60)
            assert not pushed.check()
    assert pushed.failures == 3
    (record,) = caplog.records
    assert record.name == "metricsmw"
    health = monitor.get_health()
    assert health["status"] == "degraded"
    assert "otlp_export" in health["components"]
    assert "3 so far" in health["components"]["otlp_export"]
    assert "127.0.0.1" not in str(health)
    receiver.status = 200
    caplog.clear()
    clock.advance(60)
    assert pushed.check()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert monitor.get_health()["components"]["otlp_export"] == "operational"
    assert pushed.failures == 3


def test_a_receiver_that_is_away_costs_an_export(
    monitor: MetricsMonitor, clock: ManualClock, export: Make
) -> None:
    pushed = export(NOBODY, timeout=0.2)
    pushed.check()
    clock.advance(60)
    assert not pushed.check()
    assert pushed.failures == 1


def test_a_receiver_that_hangs_holds_nobody_up(
    monitor: MetricsMonitor, receiver: OTLPReceiver, clock: ManualClock, export: Make
) -> None:
    receiver.hang.set()
    monitor.record_request(10.0)
    pushed = export(interval=0.2, timeout=30.0, start=True)

    def moved_on() -> bool:
        clock.advance(0.2)
        return receiver.asked > 0

    wait_until(moved_on, "an export that hangs")
    # All this answers while the export is in progress.
    for _ in range(100):
        monitor.record_request(10.0)
    assert monitor.total_requests == 101
    assert monitor.get_health()["status"] == "healthy"
    receiver.hang.clear()
    receiver.go_on.set()
    pushed.stop()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"interval": 0}, ValueError, "interval must be a number from 0.1 to 86400, got 0"),
        ({"interval": "1"}, TypeError, "interval"),
        ({"timeout": 1e9}, ValueError, "timeout"),
        ({"name": "No!"}, ValueError, "name"),
    ],
)
def test_bad_settings_are_named(
    export: Make, settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        export(**settings)


def test_a_protocol_that_is_none_is_named(export: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ValueError, match="carrier-pigeon"):
        export()


@pytest.mark.parametrize("text", ["no", "0", "-5", "nan", "1e99"])
def test_a_broken_interval_of_the_environment_is_left_out(
    monitor: MetricsMonitor,
    clock: ManualClock,
    export: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)
    pushed = export()
    assert text in caplog.text
    monitor.record_request(10.0)
    assert not pushed.check()
    clock.advance(59 - clock.time() % 60)
    assert not pushed.check()
    clock.advance(1)
    assert pushed.check()  # an interval is a minute


# --- several workers ------------------------------------------------------------------------------


def begin(monitor: MetricsMonitor, url: str) -> bool:
    monitor.record_request(10.0)
    monitor.pushed = OTLPExport(monitor, url, timeout=30.0, start=False)  # type: ignore[attr-defined]
    return bool(monitor.pushed.check())  # type: ignore[attr-defined]


def check(monitor: MetricsMonitor) -> bool:
    return bool(monitor.pushed.check())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("preference", "sent"), [("cumulative", [3, 4, 4]), ("delta", [3, 1, 0])])
def test_an_interval_is_not_sent_again_when_its_leader_dies(
    receiver: OTLPReceiver, monkeypatch: pytest.MonkeyPatch, preference: str, sent: list[int]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    clock = SharedClock()
    with crew(3, clock) as workers:
        leader, *others = workers.workers
        assert not leader.do(begin, receiver.url)
        assert [worker.do(begin, receiver.url) for worker in others] == [False, False]
        clock.advance(60)
        assert [worker.do(check) for worker in workers.workers] == [True, False, False]
        others[0].do(MetricsMonitor.record_request, 10.0)
        clock.advance(60)
        receiver.hang.set()
        leader.begin(check)  # which never returns
        wait_until(lambda: len(receiver.exports) == 2, "an export that hangs")
        leader.kill()
        receiver.hang.clear()
        assert [worker.do(check) for worker in others] == [False, False]
        clock.advance(60)
        assert sorted(worker.do(check) for worker in others) == [False, True]
        assert [taken.time for taken in receiver.exports] == [
            clock.time() - 120,
            clock.time() - 60,
            clock.time(),
        ]
        # One export has the numbers of the whole server, the dead worker's included.
        assert [taken.requests for taken in receiver.exports] == sent
        assert len({taken.resource["service.instance.id"] for taken in receiver.exports}) == 1
