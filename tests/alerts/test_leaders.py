"""Several workers, of which one checks: whoever dies, nothing is told twice or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kits.crew import Crew, SharedClock, Worker, crew

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter, Retry, get_alerts
from metricsmw.snapshot import iso_timestamp

RULE = "requests > 0 on /x for 60s"
ALERTERS: list[MetricsAlerter] = []  # of a worker, in its own process


def post(letters: Path, alert: Alert) -> None:
    """A receiver that fails as long as its file is not there."""
    descriptor = os.open(letters, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{json.dumps(alert.to_dict())}\n".encode())
    os.close(descriptor)


def equip(monitor: MetricsMonitor, letters: Path) -> None:
    ALERTERS[:] = [
        MetricsAlerter(
            monitor,
            rules=[RULE],
            notify=partial(post, letters),
            retry=Retry(first_delay=0.01),
            start=False,
        )
    ]


def look(monitor: MetricsMonitor) -> list[str]:
    return [alert.state for alert in ALERTERS[0].check()]


def tell(monitor: MetricsMonitor) -> bool:
    return ALERTERS[0].flush()


def leads(monitor: MetricsMonitor) -> bool:
    return ALERTERS[0].is_leader


def stop(monitor: MetricsMonitor) -> None:
    ALERTERS[0].stop()


def fail(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, method="GET", route="/x", status=500)


def read(letters: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in letters.read_text().splitlines()]


def told(letters: Path) -> list[str]:
    return [alert["state"] for alert in read(letters)]


def state(monitor: MetricsMonitor) -> str:
    return get_alerts(monitor)[0][0]["state"]


@contextmanager
def server(clock: SharedClock, letters: Path) -> Iterator[Crew]:
    with crew(4, clock) as workers:
        workers.all(equip, letters)
        yield workers


def leader(workers: Crew) -> Worker:
    (one,) = [worker for worker in alive(workers) if worker.do(leads)]
    return one


def alive(workers: Crew) -> list[Worker]:
    return [worker for worker in workers.workers if worker.process.is_alive()]


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters"
    path.touch()
    return path


Deadly = Callable[[Path, Alert], None]
STATES = ["inactive", "pending", "firing", "resolved"]


@pytest.mark.parametrize("end", [Worker.kill, Worker.leave], ids=["killed", "closed"])
@pytest.mark.parametrize("dies_in", STATES)
def test_the_leader_dies_in_each_state(
    clock: SharedClock, letters: Path, dies_in: str, end: Callable[[Worker], None]
) -> None:
    with server(clock, letters) as workers:
        reached = []

        def check_all() -> None:
            changes = [change for found in workers.all(look) for change in found]
            assert len(changes) <= 1
            workers.all(tell)
            reached.append(alive(workers)[0].do(state))
            if reached[-1] == dies_in and len(alive(workers)) == 4:
                end(leader(workers))

        for _ in range(2):
            check_all()
        workers.all(fail)
        for _ in range(4):
            clock.advance(30)
            check_all()
        clock.advance(400)
        for _ in range(2):
            check_all()
        assert len(alive(workers)) == 3
        # Each state as long as without a death: what is pending does not begin again.
        assert reached == [state for state in STATES for _ in range(2)]
        assert told(letters) == ["firing", "resolved"]
        since = {alert["since"] for alert in read(letters)}
        assert since == {iso_timestamp(1_700_000_000.0 + 30)}


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_goes_and_checks_each_change_is_told_once(
    clock: SharedClock, letters: Path, seed: int
) -> None:
    drawn = random.Random(seed)
    with server(clock, letters) as workers:
        for _ in range(50):
            one = drawn.choice(alive(workers))
            if drawn.random() < 0.3:
                one.do(fail)
            clock.advance(drawn.choice([30, 30, 30, 200]))
            workers.all(look)
            if drawn.random() < 0.4:
                one.do(tell)
                one.kill()
                workers.start().do(equip, letters)
        workers.all(look)
        workers.all(tell)
        now = alive(workers)[0].do(state)
    found = told(letters)
    assert len(found) > 2
    assert found == ["firing", "resolved"] * (len(found) // 2) + ["firing"] * (len(found) % 2)
    assert (now == "firing") is (len(found) % 2 == 1)


def test_what_the_dead_leader_could_not_tell_the_next_one_tells(
    clock: SharedClock, letters: Path
) -> None:
    letters.unlink()
    with server(clock, letters) as workers:
        first, second, *_ = workers.workers
        first.do(fail)
        first.do(look)
        clock.advance(60)
        assert first.do(look) == ["firing"]
        clock.advance(600)
        assert first.do(look) == ["resolved"]
        assert second.do(look) == []
        first.kill()
        letters.touch()
        assert second.do(look) == []
        assert second.do(tell)
        assert told(letters) == ["firing", "resolved"]


def post_and_die(letters: Path, alert: Alert) -> None:
    post(letters, alert)
    os.kill(os.getpid(), signal.SIGKILL)


def die(letters: Path, alert: Alert) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def equip_to_die(monitor: MetricsMonitor, letters: Path, receive: Deadly) -> None:
    ALERTERS[:] = [
        MetricsAlerter(monitor, rules=[RULE], notify=partial(receive, letters), start=False)
    ]


@pytest.mark.parametrize(("receive", "times"), [(die, 1), (post_and_die, 2)])
def test_killed_while_it_tells_it_is_told_again_with_the_same_id(
    clock: SharedClock, letters: Path, receive: Deadly, times: int
) -> None:
    with server(clock, letters) as workers:
        first, second, *_ = workers.workers
        first.do(equip_to_die, letters, receive)
        first.do(fail)
        first.do(look)
        clock.advance(60)
        first.begin(look)
        first.wait()
        assert second.do(look) == []
        assert second.do(tell)
        found = read(letters)
    # Once where the receiver had not taken it; twice where that could not be noted any more.
    assert [alert["state"] for alert in found] == ["firing"] * times
    assert len({alert["id"] for alert in found}) == 1


def test_who_stops_leaves_it_to_another(clock: SharedClock, letters: Path) -> None:
    with server(clock, letters) as workers:
        first, second, *_ = workers.workers
        first.do(look)
        workers.all(look)
        assert leader(workers) is first
        first.do(stop)
        second.do(look)
        assert leader(workers) is second


def test_a_child_of_the_leader_does_not_keep_its_place(clock: SharedClock, letters: Path) -> None:
    with server(clock, letters) as workers:
        first, second, *_ = workers.workers
        first.do(look)
        child = first.do(fork_a_sleeper)
        try:
            first.kill()
            second.do(look)
            assert leader(workers) is second
        finally:
            os.kill(child, signal.SIGKILL)


def fork_a_sleeper(monitor: MetricsMonitor) -> int:
    """Fork a child that outlives its parent; its process id."""
    child = os.fork()
    if child == 0:
        # Not the files: among them is the lock, if it was left open.
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):
                if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("/"):
                    os.close(descriptor)
        while True:
            signal.pause()
    return child
