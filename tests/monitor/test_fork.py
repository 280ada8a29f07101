"""A forked child of a process with a monitor starts numbers of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from kits.reference import GLOBAL_BOUND

PRELUDE = """
import json, os, sys
from metricsmw import MetricsMonitor, get_metrics_monitor

def numbers(monitor):
    snapshot = monitor.get_current_snapshot()
    return {
        "requests": snapshot.total_requests,
        "errors": snapshot.total_errors,
        "rate": snapshot.request_rate_rpm,
        "max": snapshot.latency_max_ms,
        "users": monitor.get_active_user_ids(),
        "sockets": snapshot.websocket_connections,
        "in_flight": snapshot.requests_in_flight,
        "workers": snapshot.workers,
        "routes": {row["route"]: row["requests"] for row in monitor.get_routes()},
        "history": len(monitor.get_metrics_history()),
    }

def record(monitor, count, route):
    for _ in range(count):
        monitor.record_request(
            50.0, True, "user of " + route, method="GET", route=route, status=500
        )

def in_child(work):
    # What work() returns in a forked child.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)
"""

NOTHING = {
    "requests": 0,
    "errors": 0,
    "rate": 0.0,
    "max": 0.0,
    "users": [],
    "sockets": 0,
    "in_flight": 0,
    "workers": 1,
    "routes": {},
    "history": 0,
}


@pytest.fixture
def forks(run_python: Callable[..., str]) -> Callable[..., Any]:
    """Run a script that prints JSON, after the prelude; what it printed."""
    return lambda source, **environment: json.loads(run_python(PRELUDE + source, **environment))


def filled(count: int, route: str, **others: object) -> dict[str, object]:
    """The numbers after `count` errors on one route."""
    return {
        **NOTHING,
        "requests": count,
        "errors": count,
        "rate": float(count),
        "max": 50.0,
        "users": [f"user of {route}"],
        "routes": {route: count},
        **others,
    }


def test_a_private_monitor_starts_again_in_the_child(forks: Callable[..., Any]) -> None:
    parent_before, child_before, child_after, parent_after, parent_later = forks("""
monitor = MetricsMonitor()
record(monitor, 5, "/parent")
monitor.increment_websocket_connections()
monitor.recorder.begin()
monitor.save_snapshot_to_history()
parent_before = numbers(monitor)

def child():
    before = numbers(monitor)
    record(monitor, 3, "/child")
    return before, numbers(monitor)

child_before, child_after = in_child(child)
parent_after = numbers(monitor)
record(monitor, 2, "/parent")
print(json.dumps([parent_before, child_before, child_after, parent_after, numbers(monitor)]))
""")
    parent = filled(5, "/parent", sockets=1, in_flight=1, history=1)
    assert parent_before == parent_after == parent
    assert child_before == NOTHING
    assert child_after == filled(3, "/child")
    assert parent_later == filled(7, "/parent", sockets=1, in_flight=1, history=1)


def test_the_childs_age_is_its_own(forks: Callable[..., Any]) -> None:
    rates = forks("""
from metricsmw.clock import ManualClock
clock = ManualClock()
monitor = MetricsMonitor(300, clock=clock)
clock.advance(200)
record(monitor, 20, "/parent")
work = lambda: (record(monitor, 20, "/child"), numbers(monitor)["rate"])[1]
print(json.dumps([in_child(work), numbers(monitor)["rate"]]))
""")
    assert rates == [20.0, 6.0]


def test_a_grandchild_too(forks: Callable[..., Any]) -> None:
    child, grandchild = forks("""
monitor = MetricsMonitor()
record(monitor, 5, "/parent")

def work():
    record(monitor, 3, "/child")
    inner = in_child(lambda: (record(monitor, 2, "/grandchild"), numbers(monitor))[1])
    return numbers(monitor), inner

print(json.dumps(in_child(work)))
""")
    assert child == filled(3, "/child")
    assert grandchild == filled(2, "/grandchild")


def test_an_unused_monitor_may_be_forked(forks: Callable[..., Any]) -> None:
    results = forks("""
monitor = MetricsMonitor()
work = lambda: (record(monitor, 4, "/child"), numbers(monitor))[1]
print(json.dumps([in_child(work), in_child(work), numbers(monitor)]))
""")
    assert results == [filled(4, "/child"), filled(4, "/child"), NOTHING]


def test_the_recorder_of_before_the_fork_records_the_childs(forks: Callable[..., Any]) -> None:
    # A middleware keeps what it found when it was built, before the server forked.
    child, parent = forks("""
monitor = MetricsMonitor()
recorder = monitor.recorder
begin, end = recorder.begin, recorder.end
end(begin(), 200, "/parent", "GET")

def work():
    for _ in range(3):
        end(begin(), 200, "/child", "GET")
    return numbers(monitor)

child = in_child(work)
print(json.dumps([child, numbers(monitor)]))
""")
    assert (child["requests"], child["routes"], child["in_flight"]) == (3, {"/child": 3}, 0)
    assert (parent["requests"], parent["routes"], parent["in_flight"]) == (1, {"/parent": 1}, 0)


def test_a_user_known_before_the_fork_is_the_childs_too(forks: Callable[..., Any]) -> None:
    parent, child = forks("""
from metricsmw.clock import ManualClock
clock = ManualClock()
monitor = MetricsMonitor(clock=clock)
monitor.record_user_activity("ada")

def work():
    clock.advance(200)
    monitor.record_user_activity("ada")
    return monitor.get_active_user_ids()

child = in_child(work)
clock.advance(301)
print(json.dumps([monitor.get_active_user_ids(), child]))
""")
    assert child == ["ada"]
    assert parent == [], "the child's activity went into the parent's numbers"


def test_a_fork_while_threads_record(forks: Callable[..., Any]) -> None:
    # A lock that another thread held at the moment of the fork must not stay held in the child.
    results = forks("""
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
monitor = MetricsMonitor(10)
going = True

def busy(number):
    while going:
        record(monitor, 20, f"/{number}")
        monitor.get_current_snapshot()

threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
results = []
for _ in range(15):
    results.append(in_child(lambda: (record(monitor, 3, "/child"), numbers(monitor))[1]))
going = False
for thread in threads:
    thread.join()
print(json.dumps(results))
""")
    assert [result["requests"] for result in results] == [3] * 15
    assert [result["routes"] for result in results] == [{"/child": 3}] * 15


def test_a_fork_while_the_server_wide_monitor_is_being_made(forks: Callable[..., Any]) -> None:
    child, parent = forks("""
import metricsmw.monitor, signal
def work():
    signal.alarm(20)  # not to wait for ever
    record(get_metrics_monitor(), 3, "/child")
    return numbers(get_metrics_monitor())["requests"]

# As another thread may, which is not in the child.
with metricsmw.monitor._singleton_lock:
    child = in_child(work)
print(json.dumps([child, numbers(get_metrics_monitor())["requests"]]))
""")
    assert (child, parent) == (3, 3)


WORKERS = """
class Worker:
    # A forked child that evaluates, one after the other, what it is asked.
    def __init__(self):
        questions, self.ask_into = os.pipe()
        self.answers, answer_into = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                while length := int.from_bytes(os.read(questions, 4), "little"):
                    result = eval(os.read(questions, length))
                    os.write(answer_into, json.dumps(result).encode())
            finally:
                os._exit(0)
        os.close(questions)
        os.close(answer_into)

    def ask(self, question):
        os.write(self.ask_into, len(question).to_bytes(4, "little") + question.encode())
        return json.loads(os.read(self.answers, 2**16))

    def end(self):
        os.write(self.ask_into, bytes(4))
        os.waitpid(self.pid, 0)

monitor = get_metrics_monitor()
workers = [Worker() for _ in range(3)]
"""


def test_forked_workers_share_the_server_wide_monitor(forks: Callable[..., Any]) -> None:
    results, after_one_left = forks(
        WORKERS
        + """
for number, worker in enumerate(workers):
    worker.ask(f"record(monitor, {10 + number}, '/shared')")
    worker.ask("monitor.increment_websocket_connections()")
results = [worker.ask("numbers(monitor)") for worker in workers]
workers.pop().end()
print(json.dumps([results, workers[0].ask("numbers(monitor)")]))
for worker in workers:
    worker.end()
"""
    )
    assert results == [filled(33, "/shared", sockets=3, workers=3)] * 3
    # What it counted stays; what it held open is gone with it.
    assert after_one_left == filled(33, "/shared", sockets=2, workers=2)


def test_a_reset_is_for_all_workers(forks: Callable[..., Any]) -> None:
    after_reset, after_more = forks(
        WORKERS
        + """
first, second, third = workers
for worker in workers:
    worker.ask("record(monitor, 10, '/old')")
    worker.ask("monitor.save_snapshot_to_history()")
second.ask("monitor.reset_statistics()")
after_reset = [worker.ask("numbers(monitor)") for worker in workers]
first.ask("record(monitor, 4, '/new')")
print(json.dumps([after_reset, [worker.ask("numbers(monitor)") for worker in workers]]))
for worker in workers:
    worker.end()
"""
    )
    assert after_reset == [{**NOTHING, "workers": 3}] * 3
    # The worker that recorded did not reset: its exact maximum is back with the next step.
    for result in after_more:
        assert result.pop("max") == pytest.approx(50.0, rel=GLOBAL_BOUND)
    expected = filled(4, "/new", workers=3)
    del expected["max"]
    assert after_more == [expected] * 3
