"""A worker that is stopped, spins or waits is marked by its sibling, and from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from kits.servers import Server, serve, wait_until

from metricsmw.cli.main import main

ARGS = ["--timeout", "300"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # METRICSMW_DIR: where servers are found by themselves.
    with serve(
        "gunicorn", "apps.sick:app", workers=3, args=ARGS, env={"METRICSMW_DIR": ""}
    ) as server:
        wait_until(lambda: len(workers(server)) == 3, "all workers")
        yield server


def workers(server: Server) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.get("/api/metrics/workers").json()["workers"]
    return rows


def states(server: Server) -> list[str]:
    return sorted(row["state"] for row in workers(server))


def test_a_stopped_one(server: Server) -> None:
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: states(server) == ["running", "running", "stopped"], "the mark")
            stopped = [row["pid"] for row in workers(server) if row["state"] == "stopped"]
            assert stopped == [pid]
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: states(server) == ["running"] * 3, "it goes on")


def test_those_that_answer_nothing(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    address = server.host, server.port
    with ExitStack() as stack:
        for path in ("/spin", "/sleep"):
            client = stack.enter_context(closing(socket.create_connection(address)))
            client.sendall(f"GET {path}?seconds=300 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        # The third one answers, and marks both.
        wait_until(lambda: states(server) == ["running", "spins", "waits"], "the marks")
        rows = workers(server)
        sick = [row["pid"] for row in rows if row["state"] != "running"]
        assert [row["requests_in_flight"] for row in rows if row["pid"] in sick] == [1, 1]
        # From outside they are seen as well, with the first look.
        assert main(["top", "--once", "--json", str(server.pid)]) == 0
        seen = json.loads(capsys.readouterr().out)["workers"]
        assert [row["pid"] for row in seen] == server.worker_pids()
        assert [row["pid"] for row in seen if row["state"] != "running"] == sick
        for pid in sick:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: states(server) == ["running"] * 3, "new workers")
    assert not set(sick) & set(server.worker_pids())
