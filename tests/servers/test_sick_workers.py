"""A worker that is stopped, spins or waits is marked by its sibling, and from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from kits.servers import Server, serve, wait_until

from metricsmw.cli.main import main

ARGS = ["--timeout", "300"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # METRICSMW_DIR: where servers are found by themselves.
    with serve(
        "gunicorn", "apps.sick:app", workers=2, args=ARGS, env={"METRICSMW_DIR": ""}
    ) as server:
        wait_until(lambda: len(workers(server)) == 2, "both workers")
        yield server


def workers(server: Server) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.get("/api/metrics/workers").json()["workers"]
    return rows


def states(server: Server) -> list[str]:
    return sorted(row["state"] for row in workers(server))


def test_a_stopped_one(server: Server) -> None:
    first, second = server.worker_pids()
    for stopped, runs in ((first, second), (second, first)):
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_until(lambda: states(server) == ["running", "stopped"], "the mark")
            assert {row["pid"]: row["state"] for row in workers(server)}[runs] == "running"
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: states(server) == ["running"] * 2, "it goes on")


@pytest.mark.parametrize(("path", "state"), [("/spin", "spins"), ("/sleep", "waits")])
def test_one_that_answers_nothing(
    server: Server, path: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_connection((server.host, server.port))) as client:
        client.sendall(f"GET {path}?seconds=300 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_until(lambda: states(server) == ["running", state], "the mark")
        (sick,) = [row for row in workers(server) if row["state"] == state]
        assert sick["requests_in_flight"] == 1
        # The same from outside, of the other one too.
        assert main(["top", "--once", "--json", str(server.pid)]) == 0
        seen = json.loads(capsys.readouterr().out)["workers"]
        assert [row["pid"] for row in seen] == server.worker_pids()
        os.kill(sick["pid"], signal.SIGKILL)
    wait_until(lambda: states(server) == ["running"] * 2, "a new worker")
    assert sick["pid"] not in server.worker_pids()
