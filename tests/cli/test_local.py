"""`metricsmw ls`, and `top` without a URL: servers of this machine, read from their memory."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kits.crew import FORK, Crew, crew

pytest.importorskip("rich")

from metricsmw import MetricsMonitor
from metricsmw.cli import attach, servers
from metricsmw.cli.client import MetricsClient, TopError
from metricsmw.cli.main import main
from metricsmw.engine.workers import catalog
from metricsmw.engine.workers.catalog import FoundServer


def work(monitor: MetricsMonitor) -> None:
    for _ in range(3):
        monitor.record_request(5, method="GET", route="/\x1b[31mred")
    monitor.gauge("depth", "Depth", unit="m").set(4)
    try:
        raise KeyError("secret")
    except KeyError as error:
        monitor.recorder.errors.raised(error, 500, "/\x1b[31mred", "GET")


@pytest.fixture
def workers() -> Iterator[Crew]:
    with crew(2) as workers:
        workers.all(work)
        yield workers


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def row_of(workers: Crew, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    rows = said(capsys, "ls", "--json", *arguments)["servers"]
    pids = sorted(worker.pid for worker in workers.workers)
    (row,) = [row for row in rows if sorted(row["worker_pids"]) == pids]
    return row


def test_ls(workers: Crew, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(workers, capsys)
    assert row["workers"] == 2
    assert row["stopped_workers"] == 0
    assert row["request_rate_rpm"] == 6.0
    assert row["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert row["problem"] is None
    assert row["directory"].startswith(os.environ["METRICSMW_DIR"])
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PID", "WORKERS", "SINCE", "RATE/MIN", "COMMAND"]
    assert any(line.split()[:2] == [str(row["pid"]), "2"] for line in lines)


def test_ls_of_a_folder(
    workers: Crew, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.environ["METRICSMW_DIR"]
    monkeypatch.delenv("METRICSMW_DIR")
    assert row_of(workers, capsys, "--dir", folder)["workers"] == 2
    directories = [row["directory"] for row in said(capsys, "ls", "--json")["servers"]]
    assert not [one for one in directories if one.startswith(folder)]


def test_top_by_the_process_of_a_worker(workers: Crew, capsys: pytest.CaptureFixture[str]) -> None:
    pid = str(workers.workers[1].pid)
    answer = said(capsys, "top", "--json", pid)
    assert set(answer) == {
        "metrics",
        "routes",
        "alerts",
        "workers",
        "custom",
        "errors",
        "slowest",
        "health",
    }
    assert answer["metrics"]["total_requests"] == 6
    assert answer["routes"][0]["requests"] == 6
    assert answer["metrics"]["latency_ttfb_p95_ms"] > 0
    assert [row["value"] for row in answer["custom"]] == [8]
    ((kind, count, pids),) = [
        (row["type"], row["count"], row["workers"]) for row in answer["errors"]
    ]
    assert (kind, count) == ("KeyError", 2)
    assert pids == sorted(worker.pid for worker in workers.workers)
    assert answer["health"]["components"]["workers"] == "operational"
    assert main(["top", "--once", pid]) == 0
    shown = capsys.readouterr().out
    for text in (pid, "running", "depth", "�[31mred", "KeyError", "work:"):
        assert text in shown
    assert "\x1b" not in shown


def found(command: str, pid: int = 0, workers: tuple[int, ...] = (), uid: int = 0) -> FoundServer:
    return FoundServer(Path(f"/x/{pid}-1"), uid, pid, workers, command, True, False)


SHOP = found("gunicorn shop:app -w 2", 100, (101, 102))
BLOG = found("uvicorn blog:app", 200, (201,))
RESTING = found("gunicorn rest:app", 300)


@pytest.mark.parametrize(
    ("target", "known", "chosen"),
    [
        (None, [SHOP], SHOP),
        (None, [SHOP, RESTING], SHOP),
        (None, [RESTING], RESTING),
        ("gunicorn", [SHOP, RESTING], SHOP),
        ("300", [SHOP, RESTING], RESTING),
        ("100", [SHOP, BLOG], SHOP),
        ("201", [SHOP, BLOG], BLOG),
        ("Shop", [SHOP, BLOG], SHOP),
        ("uvicorn", [SHOP, BLOG], BLOG),
        (None, [], "no server of this user shares its numbers on this machine; for one elsewhere"),
        (None, [SHOP, BLOG], "which of these? 100 gunicorn shop:app -w 2; 200 uvicorn blog:app"),
        ("app", [SHOP, BLOG], "which of these? 100 gunicorn"),
        ("forum", [SHOP], "no server here is 'forum'; there are: 100 gunicorn shop:app -w 2"),
        ("0", [SHOP], "no server here is '0'; there are: 100"),
    ],
)
def test_which_server_is_meant(
    target: str | None,
    known: list[FoundServer],
    chosen: FoundServer | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "find_servers", lambda uid, folders: known)
    monkeypatch.setattr(servers, "users_with_servers", list)
    if isinstance(chosen, FoundServer):
        assert servers.choose(target, None, None) == chosen
        return
    with pytest.raises(TopError) as raised:
        servers.choose(target, None, None)
    assert str(raised.value).startswith(chosen)


@pytest.mark.parametrize(
    ("target", "base"),
    [
        ("http://host", "http://host/api/metrics"),
        ("localhost", "http://localhost/api/metrics"),
        ("localhost:8000", "http://localhost:8000/api/metrics"),
        ("host:80", "http://host:80/api/metrics"),
        ("[::1]:8000/", "http://[::1]:8000/api/metrics"),
        ("shop.example", "http://shop.example/api/metrics"),
    ],
)
def test_what_is_an_address(target: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "find_servers", lambda uid, folders: [SHOP])
    options = Namespace(target=target, user=None, dir=None, token=None, token_file=None)
    source = attach.source_of(options)
    assert isinstance(source, MetricsClient)
    assert source.base == base


def test_other_users_servers_are_refused(workers: Crew) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    pid = workers.workers[0].pid
    os.chmod(os.environ["METRICSMW_DIR"], 0o755)

    def as_nobody(connection: Any) -> None:
        os.setresuid(65534, 65534, 65534)
        texts = []
        for arguments in (("ls", None), ("top", str(pid))):
            try:
                if arguments[0] == "ls":
                    servers.servers("root")
                else:
                    servers.choose(arguments[1], None, None)
            except TopError as error:
                texts.append((str(error), error.code))
        connection.send(texts)

    mine, its = FORK.Pipe()
    process = FORK.Process(target=as_nobody, args=(its,))
    process.start()
    refused = "the servers of root can be read by that user and root only", 3
    assert mine.poll(30)
    assert mine.recv() == [refused, refused]
    process.join()


def test_a_name_that_somebody_else_has_taken_hides_no_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "metricsmw-4711"  # ours: in a folder for all anybody may make it
    taken.mkdir(mode=0o700)
    monkeypatch.setattr(catalog, "folders_of", lambda uid: [taken])
    assert servers.servers("4711") == []


def test_root_is_told_whose_servers_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("metricsmw-0", "metricsmw-4711", "metricsmw-4712", "metricsmw-demo"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(catalog, "places", lambda: [tmp_path])
    monkeypatch.setattr(catalog, "find_servers", lambda uid: [SHOP] if uid == 4711 else [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    text = "no server of this user shares its numbers on this machine"
    assert servers.nothing(None) == f"{text}, but servers of 4711 do (--user)"
    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    assert servers.nothing(None) == text


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--dir", "/nowhere"]) == 2
    assert "--dir must be a folder that is there, got '/nowhere'" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is always full")
def test_an_output_without_room_is_said() -> None:
    command = [sys.executable, "-m", "metricsmw", "ls", "--json"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == ("metricsmw ls: the output cannot be written: No space left on device\n")


def test_a_user_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--user", "nobody-here"]) == 2
    assert capsys.readouterr().err == "metricsmw ls: there is no user 'nobody-here'\n"


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metricsmw", "--version"], capture_output=True, text=True
    )
    assert done.stdout.startswith("metricsmw ")
