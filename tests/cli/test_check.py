"""`metricsmw check`, `alerts silence` and `alerts send-test` against a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import token
from metricsmw.alerts import Alert, MetricsAlerter, read_silences
from metricsmw.cli import check
from metricsmw.cli.main import main
from metricsmw.clock import ManualClock

Run = Callable[..., tuple[int, str, str]]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def nothing(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Be an app that has nothing."""
    start_response("404 Not Found", [])
    return []


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor(60, clock=ManualClock()) as monitor:
        yield monitor


@pytest.fixture
def url(monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("METRICSMW_TOKEN", "secret")
    app = wrap(nothing, monitor, auth=token("secret"))
    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("rules", "code", "verdicts"),
    [
        (["p95 < 300"], 0, ["ok"]),
        (["p95 < 300 at least 100 requests", "workers > 0"], 0, ["ok", "ok"]),
        (["p95 < 5"], 1, ["violated"]),
        (["p95 < 300 at least 101 requests"], 2, ["unknown"]),
        (["p95 < 300 at least 101", "error_rate < 1"], 1, ["unknown", "violated"]),
        (["error_rate < 30 on GET /x over 30s"], 0, ["ok"]),
        (["burn_rate(99, 60m, 5m) > 1"], 2, ["unknown"]),
    ],
)
def test_the_exit_code_says_whether_rules_hold(
    url: str,
    run: Run,
    monitor: MetricsMonitor,
    tmp_path: Path,
    rules: list[str],
    code: int,
    verdicts: list[str],
) -> None:
    for number in range(100):
        status = 200 if number % 4 else 500
        monitor.record_request(20.0, method="GET", route="/x", status=status)
    assert isinstance(monitor.clock, ManualClock)
    monitor.clock.advance(6)
    asked = [part for rule in rules for part in ("--rule", rule)]
    junit = tmp_path / "junit.xml"
    found, out, err = run("check", url, *asked, "--json", "--junit", str(junit))
    assert (found, err) == (code, "")
    assert [row["verdict"] for row in json.loads(out)["rules"]] == verdicts
    suite = ElementTree.parse(junit).getroot()
    assert suite.get("failures") == str(verdicts.count("violated"))
    assert suite.get("errors") == str(verdicts.count("unknown"))
    assert [case.get("name") for case in suite] == rules
    found, out, _ = run("check", url, *asked)
    assert found == code
    assert [line.split()[0] for line in out.splitlines()] == verdicts


def test_for_a_time_only_what_happened_in_it_counts(
    url: str, run: Run, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = monitor.clock
    assert isinstance(clock, ManualClock)

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        for _ in range(10):
            monitor.record_request(20.0)

    for _ in range(100):
        monitor.record_request(900.0, is_error=True)
    clock.advance(2)
    monkeypatch.setattr(check, "time", SimpleNamespace(sleep=sleep, monotonic=clock.monotonic))
    rules = ("--rule", "p95 < 300 at least 50", "--rule", "error_rate < 1")
    assert run("check", url, *rules)[0] == 1
    assert run("check", url, *rules, "--for", "10s")[0] == 0
    assert run("check", url, "--rule", "p95 < 300", "--for", "2m")[0] == 2  # beyond the window


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("p95 is low", "not a rule"),
        ("p95 < 300 for 1m", 'no "for"'),
        ("error_rate < 5 over 5m", "at most the server's window (60 s)"),
    ],
)
def test_what_cannot_be_asked_is_said(url: str, run: Run, rule: str, says: str) -> None:
    code, out, err = run("check", url, "--rule", rule)
    assert (code, out) == (2, "")
    assert says in err


def test_a_server_that_is_not_there_is_no_violation(run: Run) -> None:
    assert run("check", "http://127.0.0.1:9/", "--rule", "p95 < 300")[0] == 2


def test_who_is_not_let_in_is_told(url: str, run: Run) -> None:
    assert run("check", url, "--rule", "p95 < 300", "--token", "wrong")[0] == 2
    assert run("alerts", "silence", url, "--for", "1h", "--token", "wrong")[0] == 3


def test_silence(url: str, run: Run, monitor: MetricsMonitor) -> None:
    wall = monitor.clock.time()
    code, out, _ = run("alerts", "silence", url, "--for", "2h", "--type", "HIGH_CPU")
    assert code == 0
    assert out.startswith("silenced: HIGH_CPU until ")
    assert read_silences(monitor, wall)[0]["until"] == wall + 7200
    assert run("alerts", "silence", url, "--until", "tomorrow")[0] == 2
    assert run("alerts", "silence", url, "--end")[:2] == (0, "nothing is silenced\n")


def test_send_test(url: str, run: Run, monitor: MetricsMonitor) -> None:
    told: list[Alert] = []

    def fail(alert: Alert) -> None:
        raise OSError

    assert run("alerts", "send-test", url)[0] == 2  # no alerter runs
    with MetricsAlerter(monitor, 3600, notify=told.append):
        assert run("alerts", "send-test", url)[0] == 0
    with MetricsAlerter(monitor, 3600, notify=fail):
        code, out, _ = run("alerts", "send-test", url)
    assert code == 1
    assert "failed: OSError" in out
    assert len(told) == 1
    assert run("alerts", "send-test")[0] == 2
