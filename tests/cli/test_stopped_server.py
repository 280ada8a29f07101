"""`metricsmw top` and `ls` of a real server, all of whose workers are stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from kits.servers import Server, serve, wait_until

pytest.importorskip("rich")

from metricsmw.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not in the folder of a single test, but where servers are found by themselves.
    environment = {"METRICSMW_DIR": "", "METRICSMW_TOKEN": "secret"}
    with serve("gunicorn", "apps.flask_app:app", workers=2, env=environment) as server:
        for _ in range(4):
            server.get("/hello")
        server.get("/raise")
        wait_until(lambda: health(server)["workers"] == 2, "both workers")
        yield server


def test_its_token(capsys: pytest.CaptureFixture[str]) -> None:
    with serve("gunicorn", "apps.flask_app:app", workers=2, env={"METRICSMW_DIR": ""}) as server:
        assert server.get("/api/metrics/current").status == 401
        assert main(["token", str(server.pid)]) == 0
        token = capsys.readouterr().out.strip()
        answer = server.get("/api/metrics/current", {"Authorization": f"Bearer {token}"})
        assert answer.status == 200


def test_no_token_of_its_own(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", str(server.pid)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "has made no token for itself: METRICSMW_TOKEN or auth= says" in said.err


def health(server: Server) -> Any:
    answer = server.get("/api/metrics/health", {"Authorization": "Bearer secret"}).json()
    del answer["timestamp"], answer["current_rpm"]
    return answer


def test_while_every_worker_is_stopped(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    before = health(server)
    pids = server.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            wait_until(
                lambda: (
                    said(capsys, "top", "--once", "--json", str(server.pid))["health"][
                        "components"
                    ]["workers"]
                    == "all 2 workers look stopped"
                ),
                "both are seen to be stopped",
            )
        answer = said(capsys, "top", "--once", "--json", str(server.pid))
        (row,) = [
            row for row in said(capsys, "ls", "--json")["servers"] if row["pid"] == server.pid
        ]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert answer["metrics"]["total_requests"] == 5
    assert [one["pid"] for one in answer["workers"]] == pids
    ((kind, where),) = [(one["type"], one["where"]["function"]) for one in answer["errors"]]
    assert (kind, where) == ("RuntimeError", "raise_")
    slowest = [(one["method"], one["route"]) for one in answer["slowest"]]
    assert {("GET", "/hello"), ("GET", "/raise")} == set(slowest)
    assert row["stopped_workers"] == row["workers"] == 2
    assert row["name"] == "gunicorn"
    assert row["command"].startswith("gunicorn apps.flask_app:app")
    assert health(server) == before
    assert said(capsys, "top", "--json", str(pids[0]))["metrics"]["total_requests"] == 5
