"""SIGKILL: what was counted stays, what was open is gone, and a dead server leaves nothing."""

from __future__ import annotations

import http.client
import os
import random
import signal
import stat
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from kits.crew import crew
from kits.routes_kit import Api
from kits.servers import Server, serve, wait_until
from kits.workers import (
    ENV,
    Load,
    announced,
    ask,
    current,
    directory_of,
    held,
    kill,
    live_pids,
    run_script,
    segment_files,
)
from websockets.sync.client import connect

import metricsmw.engine.workers.shared
from metricsmw import MetricsMonitor
from metricsmw.engine.storage.segment import Segment

WSGI, ASGI = "apps.raw_wsgi:app", "apps.raw_asgi:app"


GTHREAD = ["--worker-class", "gthread", "--threads", "4", "--preload"]
# Those that go on: granian takes a few kills for a crash loop, hypercorn one, and ends.
KILLED = {
    "gunicorn-sync-preload": ("gunicorn", WSGI, ["--preload"]),
    "gunicorn-gthread-preload": ("gunicorn", WSGI, GTHREAD),
    "uvicorn": ("uvicorn", ASGI, []),
    "uwsgi": ("uwsgi", WSGI, []),
}


@pytest.mark.parametrize(("name", "app", "args"), KILLED.values(), ids=KILLED)
def test_no_count_is_lost_or_goes_back(name: str, app: str, args: Sequence[str]) -> None:
    workers, kills, clients = 4, 10, 3
    chance = random.Random(20)
    with (
        serve(name, app, workers=workers, args=args, env=ENV) as server,
        ExitStack() as sockets,
    ):
        announced(server)
        directory = directory_of(server)
        load = Load(server)
        lived = set(server.worker_pids())
        ports: set[int] = set()
        with load.running(clients):
            for _ in range(kills):
                load.read_on(2)
                if app == ASGI:
                    ports.add(open_socket(server, sockets))
                kill(chance.choice(server.worker_pids()))
                # What it held open is gone at the next read, however many were killed before.
                now = current(server)
                left = sum(held(pid, ports) for pid in server.worker_pids())
                assert now["websocket_connections"] == left
                assert 0 <= now["requests_in_flight"] <= clients
                wait_until(lambda: len(server.worker_pids()) == workers, "a new worker")
                announced(server)
                lived.update(server.worker_pids())
        assert len(lived) == workers + kills
        settled = Api(server)
        settled.until(lambda: settled.current()["requests_in_flight"] == 0, "the end of requests")
        last = settled.current()
        # One that broke was counted or not: its worker was killed before or after the count. ASGI
        # counts once the server has taken the last byte: of a worker that is killed right then, its
        # client may have the answer that it was about to count.
        due = kills if app == ASGI else 0
        assert load.completed - due <= last["total_requests"] <= load.completed + load.broken
        assert load.errors - due <= last["total_errors"] <= load.errors + load.broken
        assert load.broken <= kills * clients
        load.readings.append(last)
        load.assert_nothing_went_back()
        assert sum(row["requests"] for row in settled.routes()) == last["total_requests"]
        assert last["workers"] == workers
        assert live_pids(directory) == server.worker_pids()
        assert len(segment_files(directory)) == workers


def open_socket(server: Server, sockets: ExitStack) -> int:
    """Open a WebSocket that has been answered; its local port."""
    socket = sockets.enter_context(connect(f"ws://{server.host}:{server.port}/ws", close_timeout=1))
    socket.send("hello")
    assert socket.recv() == "hello"
    port: int = socket.local_address[1]
    return port


def kill_the_busiest(server: Server, ports: Collection[int]) -> int:
    """Kill the worker that has most of these connections; how many it had."""
    killed = max(server.worker_pids(), key=lambda pid: held(pid, ports))
    lost = held(killed, ports)
    assert lost >= len(ports) / 2
    kill(killed)
    return lost


def test_the_websockets_of_the_dead_are_gone_at_the_next_read() -> None:
    with serve("uvicorn", ASGI, workers=2, env=ENV) as server, ExitStack() as sockets:
        announced(server)
        ports = set()
        for _ in range(6):
            ports.add(open_socket(server, sockets))
        assert current(server)["websocket_connections"] == 6
        lost = kill_the_busiest(server, ports)
        assert current(server)["websocket_connections"] == 6 - lost


def test_the_requests_in_flight_of_the_dead_are_gone_at_the_next_read() -> None:
    args = ["--worker-class", "gthread", "--threads", "8"]
    with serve("gunicorn", WSGI, workers=2, args=args, env=ENV) as server, ExitStack() as clients:
        announced(server)
        ports = set()
        for _ in range(4):
            client = http.client.HTTPConnection(server.host, server.port)
            clients.callback(client.close)
            client.request("GET", "/slow?ms=20000")
            ports.add(client.sock.getsockname()[1])
        wait_until(lambda: current(server)["requests_in_flight"] == 4, "four requests")
        lost = kill_the_busiest(server, ports)
        assert current(server)["requests_in_flight"] == 4 - lost
        assert current(server)["total_requests"] == 0
        os.killpg(server.pid, signal.SIGKILL)  # no need to wait for the rest


def test_a_new_server_begins_at_nothing_and_clears_away_the_dead() -> None:
    with serve("gunicorn", WSGI, workers=2, env=ENV) as server:
        announced(server)
        directory = directory_of(server)
        ask(server, 5)
        Api(server).settled(5)
        os.killpg(server.pid, signal.SIGKILL)
        wait_until(server.ended, "the end of the server")
        assert len(segment_files(directory)) == 2
    with serve("gunicorn", WSGI, workers=2, env=ENV) as server:
        announced(server)
        assert not directory.exists()
        ask(server, 3)
        assert Api(server).settled(3)["workers"] == 2
        assert len(Api(server).routes()) == 1


def test_in_a_directory_by_hand_a_new_server_begins_at_nothing_too(tmp_path: Path) -> None:
    env = {**ENV, "METRICSMW_DIR": str(tmp_path)}
    directory = tmp_path / f"metricsmw-{os.geteuid()}"
    for requests in (5, 3):
        with serve("gunicorn", WSGI, workers=2, env=env) as server:
            announced(server, directory)
            ask(server, requests)
            assert Api(server).settled(requests)["workers"] == 2
            os.killpg(server.pid, signal.SIGKILL)
            wait_until(server.ended, "the end of the server")
    assert len(segment_files(directory)) == 2


def test_a_child_of_a_dead_worker_does_not_keep_it_alive() -> None:
    """A worker's threads are in the middle of everything when it forks children that outlive it."""
    before, after = run_script("orphans.py")
    assert before == {"workers": 2, "requests_in_flight": 1}
    assert after == {"workers": 1, "requests_in_flight": 0}


def open_and_fork(monitor: MetricsMonitor) -> int:
    """In a worker: open its segment, and fork a child in the middle of it, as another thread may.

    The child's process id.
    """
    children: list[int] = []
    real = metricsmw.engine.workers.shared.Segment

    def segment(*args: Any, **kwargs: Any) -> Segment:
        made = real(*args, **kwargs)
        if (child := os.fork()) == 0:
            for fd in map(int, os.listdir("/proc/self/fd")):
                with suppress(OSError):
                    if stat.S_ISFIFO(os.fstat(fd).st_mode):  # by which the test sees the end
                        os.close(fd)
            signal.pause()
        children.append(child)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metricsmw.engine.workers.shared, "Segment", segment)
        monitor.record_request(1.0)
    return children[0]


def test_a_child_that_is_forked_while_a_segment_is_opened_does_not_keep_it_alive() -> None:
    with crew(2) as workers:
        first, second = workers.workers
        child = first.do(open_and_fork)
        try:
            assert second.do(MetricsMonitor.get_current_snapshot).workers == 2
            first.kill()
            assert second.do(MetricsMonitor.get_current_snapshot).workers == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_worker_that_outlives_its_master_keeps_its_directory() -> None:
    """Another server's start clears away what is dead, and only that."""
    assert run_script("survivor.py") == {"worker lives": True, "worker is dead": False}
