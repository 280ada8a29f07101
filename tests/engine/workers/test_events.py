"""The server's events: who came and went and why, resets with who, through kills and damage."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.crew import crew
from kits.damage import segment_path, set_field
from kits.handlers import ask, body_of

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public, token
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.layout import Field
from metricsmw.engine.workers.events import (
    MAX_EVENTS,
    CorruptNoteError,
    EventState,
    as_events,
)


def texts(monitor: MetricsMonitor) -> list[str]:
    """In a worker: what happened, as it finds it now."""
    monitor.get_health()
    state = monitor.events.read(monitor.opened())
    return [] if state is None else [event["text"] for event in state["events"]]


def folder(monitor: MetricsMonitor) -> str:
    """In a worker: the server's directory."""
    return str(monitor.directory)


def reset(monitor: MetricsMonitor) -> None:
    """In a worker: a reset that nobody has asked for over HTTP."""
    monitor.reset_statistics()


def test_workers_come_and_go() -> None:
    with crew(2) as workers:
        first, second = workers.workers
        second.do(folder)
        assert first.do(texts) == ["Server started"]
        second.kill()
        gone = f"Worker {second.pid} is gone: it was killed or crashed, as far as is known"
        assert first.do(texts)[1:] == [gone]
        workers.start()
        third = workers.workers[-1]
        # Whoever reads notes it, and it is noted once.
        assert third.do(texts)[2:] == [f"New worker {third.pid}"]
        assert first.do(texts) == third.do(texts)
        third.leave()
        assert first.do(texts)[3:] == [f"Worker {third.pid} is gone: it ended in order"]
        first.do(reset)
        assert first.do(texts)[4:] == ["Counts were reset"]
        path = Path(first.do(folder), "events")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # What is no file of events is as good as none; it begins anew with the next change.
        path.write_bytes(b'{"events": [1]}')
        assert first.do(texts) == []
        first.do(reset)
        assert first.do(texts) == ["Server started", "Counts were reset"]


def test_a_process_of_another_namespace_is_not_looked_for_in_this_one() -> None:
    with crew(2) as workers:
        first, second = workers.workers
        second.do(folder)
        path = Path(second.do(segment_path))
        set_field(Field.PID, float(os.getpid()))(path)  # one that runs here
        set_field(Field.PID_NAMESPACE, 1.0)(path)
        first.do(texts)
        second.kill()
        gone = f"Worker {os.getpid()} is gone: it was killed or crashed, as far as is known"
        assert first.do(texts)[1:] == [gone]


def test_a_reload() -> None:
    with crew(2) as workers:
        old = list(workers.workers)
        for worker in old:
            worker.do(folder)
        old[0].do(texts)
        for worker in old:
            workers.start()
            new = workers.workers[-1]
            new.do(folder)
            worker.leave()
            found = new.do(texts)
        assert found[-1] == "Reload: all workers were replaced"
        assert sum("Reload" in text for text in found) == 1


def test_the_last_two_hundred_stay() -> None:
    clock = ManualClock()
    monitor = MetricsMonitor(clock=clock)
    for _ in range(MAX_EVENTS + 5):
        clock.advance(1)
        monitor.reset_statistics()
        found = texts(monitor)
    assert len(found) == MAX_EVENTS
    state = monitor.events.read(monitor.opened())
    assert state is not None
    assert as_events(json.dumps(state).encode()) == state
    assert [event["number"] for event in state["events"]][-1] == MAX_EVENTS + 6


def a_state() -> EventState:
    monitor = MetricsMonitor()
    texts(monitor)
    state = monitor.events.read(monitor.opened())
    assert state is not None
    return state


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


@given(st.sampled_from(sorted(EventState.__annotations__)), VALUES)
def test_what_no_worker_writes_is_refused_or_harmless(name: str, value: object) -> None:
    state = a_state() | {name: value}
    try:
        found = as_events(json.dumps(state).encode())
    except CorruptNoteError:
        return
    assert found["events"]
    assert all(isinstance(pid, int) for pid in found["workers"])
    assert len(found["epoch"]) <= 16


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"events": []}', b"x" * (300 << 10)]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptNoteError):
        as_events(data)


def test_over_http() -> None:
    monitor = MetricsMonitor()
    handlers = Handlers(monitor, token("a token"))
    assert ask(handlers, "/events").status == 401
    credentials = "Bearer a token"
    assert ask(handlers, "/reset", "POST", authorization=credentials).status == 200
    body = body_of(ask(handlers, "/events", authorization=credentials))
    assert list(body) == ["success", "events", "count", "timestamp"]
    assert body["count"] == 2
    started, was_reset = body["events"]
    assert list(started) == ["id", "timestamp", "type", "text", "pid", "by"]
    assert started["type"] == "start"
    assert was_reset["text"] == "Counts were reset by whoever has the token"
    assert was_reset["by"] == "whoever has the token"
    short = body_of(ask(handlers, "/events", query="limit=1", authorization=credentials))
    assert short["events"] == [was_reset]
    assert ask(handlers, "/events", query="limit=x", authorization=credentials).status == 400


def test_a_reset_that_a_reader_noted_first_gets_its_name() -> None:
    monitor = MetricsMonitor()
    texts(monitor)
    monitor.reset_statistics()
    assert texts(monitor)[1:] == ["Counts were reset"]
    monitor.events.note_reset(monitor.opened(), "user 'ann'")
    assert texts(monitor)[1:] == ["Counts were reset by user 'ann'"]


def test_public_resets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = MetricsMonitor()
    assert ask(Handlers(monitor, public()), "/reset", "POST").status == 200
    assert texts(monitor)[1:] == ["Counts were reset by somebody, as all are let in"]
