"""The described system's own usage and tests, with only their import lines changed.

What its documentation shows stands here as it shows it, style included; around it is only what
makes it a test. It is the proof that code written for that system runs on this one.
"""
# ruff: noqa: E712

from __future__ import annotations

import csv
import json
import logging
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, jsonify
from flask.testing import FlaskClient
from flask_socketio import SocketIO

from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters.flask import MetricsMiddleware, metrics_bp

logger = logging.getLogger(__name__)

DESCRIBED_FIELDS = [
    "timestamp",
    "request_rate_rpm",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "active_users",
    "memory_usage_pct",
    "memory_usage_mb",
    "cpu_usage_pct",
    "websocket_connections",
    "total_requests",
    "total_errors",
]


# Usage guide


def test_singleton() -> None:
    # Get singleton instance (5 minute rolling window)
    monitor = get_metrics_monitor(window_seconds=300)

    assert monitor is get_metrics_monitor()
    assert monitor.window_seconds == 300


def test_manual_request_tracking() -> None:
    monitor = get_metrics_monitor()

    # Track a successful request
    start_time = time.time()
    # ... do work ...
    latency_ms = (time.time() - start_time) * 1000

    monitor.record_request(
        latency_ms=latency_ms,
        is_error=False,
        user_id="user123"
    )  # fmt: skip

    # Track an error
    monitor.record_request(
        latency_ms=500.0,
        is_error=True,
        user_id="user123"
    )  # fmt: skip

    assert monitor._total_requests == 2
    assert monitor._total_errors == 1
    assert monitor.get_active_user_ids() == ["user123"]


def test_manual_tracking_of_a_background_task() -> None:
    monitor = get_metrics_monitor()

    def process_data(works: bool) -> None:
        if not works:
            raise LookupError("no data")

    def background_task(works: bool) -> None:
        start = time.time()
        try:
            process_data(works)
            latency_ms = (time.time() - start) * 1000
            monitor.record_request(latency_ms, is_error=False)
        except Exception:
            latency_ms = (time.time() - start) * 1000
            monitor.record_request(latency_ms, is_error=True)
            raise

    background_task(works=True)
    with pytest.raises(LookupError):
        background_task(works=False)
    assert (monitor.total_requests, monitor.total_errors) == (2, 1)


def test_current_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = get_metrics_monitor()
    monitor.record_request(100.0, user_id="user123")

    # Get snapshot
    snapshot = monitor.get_current_snapshot()

    print(f"Request Rate: {snapshot.request_rate_rpm} RPM")
    print(f"Error Rate: {snapshot.error_rate_pct}%")
    print(f"P95 Latency: {snapshot.latency_p95_ms} ms")
    print(f"Active Users: {snapshot.active_users}")
    print(f"Memory Usage: {snapshot.memory_usage_mb} MB")
    print(f"CPU Usage: {snapshot.cpu_usage_pct}%")

    printed = capsys.readouterr().out
    assert "Active Users: 1\n" in printed
    assert "Error Rate: 0.0%\n" in printed
    assert list(snapshot.to_dict())[:13] == DESCRIBED_FIELDS


def test_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = get_metrics_monitor()
    monitor.record_request(100.0)

    stats = monitor.get_statistics()

    print("Current Metrics:")
    for key, value in stats['current'].items():  # fmt: skip
        print(f"  {key}: {value}")

    print("\nTotals:")
    for key, value in stats['totals'].items():  # fmt: skip
        print(f"  {key}: {value}")

    current, totals = capsys.readouterr().out.split("\n\n")
    assert "  total_requests: 1\n" in current
    assert "  total_requests: 1\n" in totals
    assert "  total_errors: 0\n" in totals
    assert "  total_error_rate_pct: 0.0\n" in totals
    assert stats["configuration"]["window_seconds"] == 300
    assert stats["configuration"]["user_timeout_seconds"] == 300
    assert stats["configuration"]["max_history_minutes"] == 60


def test_user_activity() -> None:
    monitor = get_metrics_monitor()

    # Record user activity
    monitor.record_user_activity("user123")

    # Get active user count
    active_count = monitor.get_active_users()

    # Get active user IDs
    active_ids = monitor.get_active_user_ids()

    assert active_count == 1
    assert active_ids == ["user123"]


def production_app() -> tuple[Flask, SocketIO, MetricsMonitor]:
    """The described system's production app, its WebSocket handlers included."""
    app = Flask(__name__)
    socketio = SocketIO(app)

    # Initialize metrics
    monitor = get_metrics_monitor(window_seconds=300)

    # Register middleware (automatic tracking)
    MetricsMiddleware(app, monitor)

    # Register API routes
    app.register_blueprint(metrics_bp)

    # WebSocket tracking
    @socketio.on('connect')  # fmt: skip
    def handle_connect():  # type: ignore[no-untyped-def]
        monitor.increment_websocket_connections()

    @socketio.on('disconnect')  # fmt: skip
    def handle_disconnect():  # type: ignore[no-untyped-def]
        monitor.decrement_websocket_connections()

    return app, socketio, monitor


def test_websocket_tracking() -> None:
    app, socketio, monitor = production_app()
    before = monitor.get_websocket_connections()
    first = socketio.test_client(app)
    second = socketio.test_client(app)
    assert monitor.get_websocket_connections() == before + 2
    first.disconnect()
    assert monitor.get_websocket_connections() == before + 1
    second.disconnect()
    assert monitor.get_websocket_connections() == before


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = get_metrics_monitor()
    monitor.record_request(100.0)
    monitor.save_snapshot_to_history()

    # Export to JSON
    monitor.export_to_json('metrics_export.json')  # fmt: skip

    # Export to CSV
    monitor.export_to_csv('metrics_history.csv')  # fmt: skip

    document = json.loads(Path("metrics_export.json").read_text())
    assert document["totals"]["total_requests"] == 1
    assert len(document["history"]) == 1
    with open("metrics_history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row)[:13] == DESCRIBED_FIELDS
    assert row["total_requests"] == "1"


def test_daily_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/metrics").mkdir(parents=True)

    def export_daily_metrics() -> None:
        monitor = get_metrics_monitor()
        filename = f"metrics_{datetime.now().strftime('%Y%m%d')}.json"
        monitor.export_to_json(f"data/metrics/{filename}")
        logger.info(f"✅ Daily metrics exported: {filename}")

    export_daily_metrics()
    (file,) = Path("data/metrics").iterdir()
    assert json.loads(file.read_text())["configuration"]["window_seconds"] == 300


# Flask app


def test_requests_of_a_flask_app_are_tracked() -> None:
    app, _, monitor = production_app()
    some_error = True

    @app.route('/api/test')  # fmt: skip
    def test_endpoint() -> Any:
        if some_error:
            return jsonify({'error': 'Something went wrong'}), 500  # fmt: skip
            # Automatically tracked as error with latency
        return jsonify({})

    client = app.test_client()
    assert client.get("/api/test").status_code == 500
    some_error = False
    assert client.get("/api/test").status_code == 200
    assert client.get("/nowhere").status_code == 404
    assert (monitor.total_requests, monitor.total_errors) == (3, 2)
    assert monitor.get_current_snapshot().latency_p99_ms > 0.0
    routes = {row["route"]: row["requests"] for row in monitor.get_routes()}
    assert routes == {"/api/test": 2, "<unmatched>": 1}


def test_custom_health_endpoint() -> None:
    app, _, monitor = production_app()
    custom_bp = Blueprint('custom_metrics', __name__)  # fmt: skip

    @custom_bp.route('/api/custom/health')  # fmt: skip
    def custom_health() -> Any:
        monitor = get_metrics_monitor()
        snapshot = monitor.get_current_snapshot()

        # Custom health logic
        is_healthy = (
            snapshot.error_rate_pct < 5.0 and
            snapshot.latency_p99_ms < 1000 and
            snapshot.memory_usage_pct < 80 and
            snapshot.cpu_usage_pct < 80
        )  # fmt: skip

        return jsonify({
            'status': 'healthy' if is_healthy else 'degraded',
            'checks': {
                'error_rate': snapshot.error_rate_pct < 5.0,
                'latency': snapshot.latency_p99_ms < 1000,
                'memory': snapshot.memory_usage_pct < 80,
                'cpu': snapshot.cpu_usage_pct < 80
            },
            'metrics': snapshot.to_dict()
        })  # fmt: skip

    app.register_blueprint(custom_bp)
    client = app.test_client()
    answer = client.get("/api/custom/health").get_json()
    assert answer["checks"]["error_rate"] is answer["checks"]["latency"] is True
    assert list(answer["metrics"])  # the order is Flask's: it sorts keys
    monitor.record_request(2000.0, is_error=True)
    answer = client.get("/api/custom/health").get_json()
    assert answer["status"] == "degraded"
    assert answer["checks"]["error_rate"] is answer["checks"]["latency"] is False
    assert answer["metrics"]["total_errors"] == 1
    assert set(DESCRIBED_FIELDS) <= set(answer["metrics"])


# Monitoring strategies


def test_historical_analysis_with_pandas() -> None:
    monitor = get_metrics_monitor()
    for latency in (10.0, 20.0, 30.0):
        monitor.record_request(latency)
        monitor.save_snapshot_to_history()

    history = monitor.get_metrics_history(minutes=60)

    import pandas as pd

    # Convert to DataFrame
    df = pd.DataFrame(history)
    df['timestamp'] = pd.to_datetime(df['timestamp'])  # fmt: skip

    assert list(df.columns)[:13] == DESCRIBED_FIELDS
    assert list(df["total_requests"]) == [1, 2, 3]
    assert list(df["latency_max_ms"]) == [10.0, 20.0, 30.0]
    assert df["timestamp"].is_monotonic_increasing
    assert str(df["timestamp"].dt.tz) == "UTC"
    assert (df["latency_p50_ms"] <= df["latency_p99_ms"]).all()
    assert pd.DataFrame(monitor.get_metrics_history()).shape == (3, 19)


class MetricsAlerter:
    def __init__(self, monitor, check_interval=30):  # type: ignore[no-untyped-def]
        self.monitor = monitor
        self.check_interval = check_interval
        self.thresholds = {
            'error_rate_pct': 5.0,
            'latency_p99_ms': 1000.0,
            'memory_usage_pct': 80.0,
            'cpu_usage_pct': 80.0
        }  # fmt: skip

        # Start monitoring thread
        self.thread = threading.Thread(target=self._monitor_loop, daemon=True)
        self.thread.start()

    def _monitor_loop(self):  # type: ignore[no-untyped-def]
        while True:
            try:
                snapshot = self.monitor.get_current_snapshot()

                # Check thresholds
                if snapshot.error_rate_pct > self.thresholds['error_rate_pct']:  # fmt: skip
                    self._send_alert('ERROR_RATE', snapshot.error_rate_pct)  # fmt: skip

                if snapshot.latency_p99_ms > self.thresholds['latency_p99_ms']:  # fmt: skip
                    self._send_alert('HIGH_LATENCY', snapshot.latency_p99_ms)  # fmt: skip

                if snapshot.memory_usage_pct > self.thresholds['memory_usage_pct']:  # fmt: skip
                    self._send_alert('HIGH_MEMORY', snapshot.memory_usage_pct)  # fmt: skip

                if snapshot.cpu_usage_pct > self.thresholds['cpu_usage_pct']:  # fmt: skip
                    self._send_alert('HIGH_CPU', snapshot.cpu_usage_pct)  # fmt: skip

            except Exception as e:
                logger.error(f"Error in alerter: {e}")

            time.sleep(self.check_interval)

    def _send_alert(self, alert_type, value):  # type: ignore[no-untyped-def]
        logger.warning(f"⚠️ ALERT: {alert_type} = {value}")
        # Send email, Slack, etc.


def test_alerting_loop(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monitor = get_metrics_monitor()
    for _ in range(20):
        monitor.record_request(1500.0, is_error=True)

    class Enough(BaseException):
        """Ends the endless loop at its first sleep."""

    def wake(seconds: float) -> None:
        raise Enough(seconds)

    class OneRound(MetricsAlerter):
        def _monitor_loop(self) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(time, "sleep", wake)
                with pytest.raises(Enough, match="30"):
                    super()._monitor_loop()

    alerter = OneRound(monitor, check_interval=30)
    alerter.thread.join()
    messages = [record.getMessage() for record in caplog.records if record.name == __name__]
    assert "⚠️ ALERT: ERROR_RATE = 100.0" in messages
    (latency,) = [message for message in messages if "HIGH_LATENCY" in message]
    assert float(latency.rpartition(" ")[2]) == pytest.approx(1500.0, rel=0.011)
    assert not [message for message in messages if "Error in alerter" in message]


def test_key_thresholds(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[str] = []
    send_alert = sent.append
    monitor = get_metrics_monitor()
    monitor.record_request(3000.0, is_error=True)
    snapshot = monitor.get_current_snapshot()

    # Alert on high error rate
    if snapshot.error_rate_pct > 5.0:
        logger.warning(f"⚠️ High error rate: {snapshot.error_rate_pct}%")
        send_alert("High error rate detected")

    # Alert on high P99 latency
    if snapshot.latency_p99_ms > 1000:
        logger.warning(f"⚠️ High P99 latency: {snapshot.latency_p99_ms}ms")
        send_alert("Slow response times detected")

    assert sent == ["High error rate detected", "Slow response times detected"]
    assert "High error rate: 100.0%" in caplog.text


# Its unit tests


def test_request_tracking():  # type: ignore[no-untyped-def]
    monitor = MetricsMonitor(window_seconds=60)

    # Record some requests
    monitor.record_request(10.0, is_error=False)
    monitor.record_request(20.0, is_error=False)
    monitor.record_request(30.0, is_error=True)

    # Check totals
    assert monitor._total_requests == 3
    assert monitor._total_errors == 1

    # Check error rate
    error_rate = monitor.get_error_rate_pct()
    assert error_rate == 33.33  # 1/3 = 33.33%


def test_latency_percentiles():  # type: ignore[no-untyped-def]
    monitor = MetricsMonitor(window_seconds=60)

    # Record 100 requests with known latencies
    for i in range(100):
        monitor.record_request(float(i), is_error=False)

    p50, p95, p99 = monitor.get_latency_percentiles()

    assert 45 <= p50 <= 55  # P50 should be around 50
    assert 90 <= p95 <= 96  # P95 should be around 95
    assert 97 <= p99 <= 100  # P99 should be around 99


def test_user_tracking():  # type: ignore[no-untyped-def]
    monitor = MetricsMonitor(window_seconds=60)

    # Record user activity
    monitor.record_user_activity('user1')  # fmt: skip
    monitor.record_user_activity('user2')  # fmt: skip
    monitor.record_user_activity('user3')  # fmt: skip

    # Check active users
    assert monitor.get_active_users() == 3

    # Check user IDs
    user_ids = monitor.get_active_user_ids()
    assert 'user1' in user_ids  # fmt: skip
    assert 'user2' in user_ids  # fmt: skip
    assert 'user3' in user_ids  # fmt: skip


# Its API tests


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.config['SECRET_KEY'] = 'test'  # fmt: skip
    app.register_blueprint(metrics_bp)

    monitor = get_metrics_monitor()
    MetricsMiddleware(app, monitor)

    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_current_metrics_endpoint(client):  # type: ignore[no-untyped-def]
    # Login first
    with client.session_transaction() as sess:
        sess['user'] = 'test_user'  # fmt: skip

    # Get current metrics
    response = client.get('/api/metrics/current')  # fmt: skip
    assert response.status_code == 200

    data = response.get_json()
    assert data['success'] == True  # fmt: skip
    assert 'metrics' in data  # fmt: skip
    assert 'timestamp' in data['metrics']  # fmt: skip


def test_health_endpoint(client):  # type: ignore[no-untyped-def]
    response = client.get('/api/metrics/health')  # fmt: skip
    assert response.status_code == 200

    data = response.get_json()
    assert data['success'] == True  # fmt: skip
    assert data['status'] == 'healthy'  # fmt: skip
    assert data['version'] == '1.0.0'  # fmt: skip
