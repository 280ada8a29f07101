"""Jobs of a server in real processes: leaders that hang or are gone, and no threads to be had."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kits.crew import Crew, Worker, crew, wait_until

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public
from metricsmw.alerts import Alert, MetricsAlerter, get_alerts
from metricsmw.exporting import ScheduledExport

JOBS: list[Any] = []  # of a worker, in its own process


def watch(monitor: MetricsMonitor, letters: Path, start: bool | None) -> None:
    def post(alert: Alert) -> None:
        with letters.open("a") as file:
            file.write(f"{alert.state}\n")

    JOBS[:] = [
        MetricsAlerter(
            monitor, 0.1, {"total_errors": 0}, post, patience=1.0, start=start, name="watch"
        )
    ]


def start(monitor: MetricsMonitor) -> None:
    JOBS[0].start()


def leads(monitor: MetricsMonitor) -> bool:
    return bool(JOBS[0].is_leader)


def flush(monitor: MetricsMonitor) -> bool:
    return bool(JOBS[0].flush())


def look(monitor: MetricsMonitor) -> int:
    return len(JOBS[0].check())


def serve(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0)


def fail(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, is_error=True)


def components(monitor: MetricsMonitor) -> dict[str, str]:
    return monitor.get_health()["components"]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters"
    path.touch()
    return path


@pytest.fixture
def workers() -> Iterator[Crew]:
    with crew(2) as workers:
        yield workers


def test_a_leader_that_hangs_is_replaced_and_tells_nothing_twice(
    workers: Crew, letters: Path
) -> None:
    first, second = workers.workers
    workers.all(serve)
    first.do(watch, letters, None)
    wait_until(lambda: first.do(leads), "the first one leads")
    second.do(watch, letters, False)
    first.do(fail)
    wait_until(lambda: letters.read_text() == "firing\n" and first.do(flush), "it has told")
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: second.do(components)["watch"].startswith("late by "), "it is late")
    assert not second.do(leads)
    second.do(start)
    wait_until(lambda: second.do(leads), "the second one leads")
    wait_until(lambda: second.do(components)["watch"] == "operational", "all is well")
    second.do(MetricsMonitor.reset_statistics)
    wait_until(lambda: letters.read_text() == "firing\nresolved\n", "the second one has told")
    os.kill(first.pid, signal.SIGCONT)
    assert not first.do(leads)
    second.do(fail)
    wait_until(lambda: letters.read_text().count("firing") == 2, "the third message")
    assert first.do(look) == 0
    assert second.do(flush)
    assert letters.read_text() == "firing\nresolved\nfiring\n"
    assert first.do(components) == second.do(components)


def test_a_process_that_only_reads_leaves_it_to_the_one_that_serves(
    workers: Crew, letters: Path
) -> None:
    reader, server = workers.workers
    reader.do(watch, letters, None)
    reader.do(components)
    server.do(serve)
    server.do(watch, letters, None)
    wait_until(lambda: server.do(leads), "the server's worker leads")
    server.kill()
    # It looks ten times a second, and was the only one for as long as the other one takes.
    third = workers.start()
    third.do(serve)
    third.do(watch, letters, None)
    wait_until(lambda: third.do(leads), "the next worker leads")
    assert not reader.do(leads)
    third.kill()
    assert "watch" not in reader.do(components)
    reader.do(start)  # asked for by name
    wait_until(lambda: reader.do(leads), "it leads")


def ask(monitor: MetricsMonitor) -> None:
    Handlers(monitor, public()).handle(Request("GET", "/health", "", {}))


def begin_lifespan(monitor: MetricsMonitor) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    asyncio.run(ASGIMetricsMiddleware(app, monitor)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]


SERVING: list[Callable[[MetricsMonitor], object]] = [
    serve,
    fail,
    lambda monitor: monitor.record_user_activity("ada"),
    MetricsMonitor.increment_websocket_connections,
    ask,
    begin_lifespan,
]
READING: list[Callable[[MetricsMonitor], object]] = [
    MetricsMonitor.get_current_snapshot,
    MetricsMonitor.get_metrics_history,
    MetricsMonitor.get_health,
    MetricsMonitor.save_snapshot_to_history,
    MetricsMonitor.reset_statistics,
    lambda monitor: wrap(bare, monitor),
]


def bare(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b""]


def test_who_serves() -> None:
    for serving in SERVING:
        with MetricsMonitor(shared=True) as monitor:
            for reading in READING:
                reading(monitor)
                assert not monitor.is_serving
            serving(monitor)
            assert monitor.is_serving
            reads, writes = os.pipe()
            if os.fork() == 0:
                os.write(writes, bytes([monitor.is_serving]))
                os._exit(0)
            assert os.read(reads, 1) == bytes([False])
            os.wait()
        assert not monitor.is_serving


def export(monitor: MetricsMonitor, folder: Path) -> None:
    JOBS[:] = [ScheduledExport(monitor, folder, start=False)]
    folder.rmdir()
    JOBS[0].check()


@pytest.mark.parametrize("end", [Worker.kill, Worker.leave], ids=["killed", "closed"])
def test_what_failed_and_was_taken_out_is_no_problem_any_more(
    workers: Crew, tmp_path: Path, end: Any
) -> None:
    first, second = workers.workers
    workers.all(serve)
    first.do(export, tmp_path / "exports")
    assert second.do(components)["scheduled_export"].startswith("failing: ")
    end(first)
    assert "scheduled_export" not in second.do(components)


def test_what_nobody_can_lead_is_late() -> None:
    with MetricsMonitor(shared=True) as monitor:
        assert monitor.directory is not None
        os.mkfifo(monitor.directory / "once-alerts.lock")
        monitor.record_request(1.0)
        with MetricsAlerter(monitor, 0.1, patience=0.2):
            wait_until(
                lambda: monitor.get_health()["components"].get("alerts", "").startswith("late by "),
                "it is late",
            )
        assert "alerts" not in monitor.get_health()["components"]


# --- no threads ----------------------------------------------------------------------------------


class NoThreads:
    """While it is on, no thread can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = True
        really_start = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if self.on:
                raise RuntimeError("can't start new thread")
            really_start(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def test_where_no_thread_can_be_started_the_app_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    threads = NoThreads(monkeypatch)
    with MetricsMonitor(history=tmp_path / "history.db") as monitor:
        monitor.record_request(1.0, is_error=True)
        alerter = MetricsAlerter(monitor, 0.1, {"total_errors": 0}, print)
        for _ in range(3):
            health = monitor.get_health()
            assert health["status"] == "degraded"
            for job in ("alerts", "lasting_history"):
                assert health["components"][job] == "failing: no thread can be started"
        errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 2
        assert all("can't start new thread" in message for message in errors)
        assert [alert.state for alert in alerter.check()] == ["firing"]  # and nobody can be told
        assert not alerter.flush(0)
        threads.on = False
        assert alerter.flush()
        monitor.get_health()
        wait_until(
            lambda: set(monitor.get_health()["components"].values()) == {"operational"},
            "the threads work",
        )
        alerter.stop()


# --- notes of anybody ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[MetricsMonitor, MetricsAlerter]]:
    with MetricsMonitor(shared=True) as monitor:
        alerter = MetricsAlerter(monitor, thresholds={"total_errors": 0}, notify=str, start=False)
        monitor.record_request(1.0, is_error=True)
        yield monitor, alerter


def note_of(monitor: MetricsMonitor) -> Path:
    assert monitor.directory is not None
    return monitor.directory / "once-alerts.json"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["firing", "critical", ">", "\ud800", "x"]),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3)
    ),
    max_leaves=5,
)


# Which parts of a note are replaced (the way down to each), and by what.
ways = st.lists(st.integers(0, 9), min_size=1, max_size=4)
mutations = st.lists(st.tuples(ways, anything), max_size=3)


def replaced(value: Any, way: list[int], by: Any) -> Any:
    if not way or not isinstance(value, (dict, list)) or not value:
        return by
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[way[0] % len(keys)]
    value[key] = replaced(value[key], way[1:], by)
    return value


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations)
def test_a_note_that_was_changed_breaks_no_answer_and_no_check(
    server: tuple[MetricsMonitor, MetricsAlerter], changes: list[tuple[list[int], Any]]
) -> None:
    monitor, alerter = server
    alerter.stop(0)
    note_of(monitor).unlink(missing_ok=True)
    alerter.check()
    assert [row["state"] for row in get_alerts(monitor)[0]] == ["firing"]
    note: Any = json.loads(note_of(monitor).read_text())
    for way, by in changes:
        note = replaced(note, list(way), by)
    note_of(monitor).write_text(json.dumps(note))
    handlers = Handlers(monitor, public())
    for path in ("/alerts", "/health", "/current"):
        assert handlers.handle(Request("GET", path, "", {})).status in (200, 503)
    get_alerts(monitor)
    alerter.stop(0)  # another leader begins with it
    alerter.check()
    assert handlers.handle(Request("GET", "/alerts", "", {})).status == 200
    assert monitor.get_health()["components"]["alerts"] == "operational"
    assert monitor.get_health()["faults"] == 0
