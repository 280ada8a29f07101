"""`metricsmw alerts test`: what an alerter would have told is what the replay says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter
from metricsmw.alerts.grammar import parse
from metricsmw.cli import main as cli
from metricsmw.cli.replay import RecordedHistory, replay
from metricsmw.clock import ManualClock
from metricsmw.snapshot import FIELDS, iso_timestamp

RULES = [
    "error_rate_pct > 20 at least 1 requests",
    "error_rate_pct > 20 at least 4 requests clear 10",
    "latency_p99_ms > 100 at least 1 requests critical",
    "request_rate_rpm < 2",
    "total_requests > 30 for 2m",
    "burn_rate(90, 10m, 2m) > 2 at least 1 requests",
    "burn_rate(90, 10m, 2m) > 2 at least 20 requests",
]
minutes = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=30
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.differing_executors])
@given(minutes)
def test_it_says_what_an_alerter_told(traffic: list[tuple[int, int, bool]]) -> None:
    clock = ManualClock()
    with MetricsMonitor(60, clock=clock) as monitor:
        alerter = MetricsAlerter(monitor, rules=RULES, notify=str, start=False)
        told: list[tuple[str, str, str]] = []
        # A history does not tell what came before its first row; here that is nothing.
        for good, bad, slow in [(0, 0, False)] * 10 + traffic:
            for number in range(good + bad):
                monitor.record_request(500.0 if slow else 5.0, is_error=number < bad)
            clock.advance(60)
            monitor.get_metrics_history()
            told += [(alert.rule, alert.state, alert.at) for alert in alerter.check()]
        rows = monitor.get_metrics_history()
        alerter.stop()
    found = [
        (str(rule), change.state, change.at.isoformat(timespec="microseconds"))
        for rule in map(parse, RULES)
        for change in replay(rule, RecordedHistory(rows, 60))
    ]
    assert sorted(found) == sorted(told)


@pytest.fixture
def export(monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path) -> Path:
    """Ten quiet minutes, five bad ones, twenty quiet ones."""
    for minute in range(35):
        for _ in range(10):
            monitor.record_request(10.0, is_error=10 <= minute < 15)
        clock.advance(60)
    path = tmp_path / "export.json"
    monitor.export_to_json(path)
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["alerts", "test", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command(export: Path, run: Run) -> None:
    code, out, err = run("--rule", "error_rate_pct > 50 clear 30", "--history", str(export))
    assert (code, err) == (0, "")
    assert "35 snapshots" in out
    assert "would have fired once, 6 minutes in all" in out
    assert out.count("firing ") == 1
    assert out.count("resolved") == 1
    code, out, err = run(
        "--rule", "error_rate_pct > 101", "--rule", "total_errors > 0", "--history", str(export)
    )
    assert "would have fired never" in out
    assert "still firing at the end" in out


@pytest.mark.parametrize(
    ("rule", "minutes"),
    [
        ("error_rate_pct > 50 for 2m", "3 minutes"),  # of each minute, and not of five
        ("error_rate_pct > 50 over 1m at least 10", "5 minutes"),
        ("error_rate_pct > 50 over 2m at least 11", "4 minutes"),
        ("error_rate_pct > 50 over 1m at least 11", None),
        ("error_rate_pct > 50", "5 minutes"),
        ("error_rate_pct > 50 at least 60", None),
        ("request_rate_rpm < 9 over 1m", None),
    ],
)
def test_spans_are_whole_minutes(export: Path, run: Run, rule: str, minutes: str | None) -> None:
    code, out, _ = run("--rule", rule, "--history", str(export))
    assert code == 0
    assert (f"fired once, {minutes} in all" if minutes else "fired never") in out
    failing, _, _ = run("--rule", rule, "--history", str(export), "--fail-if-fired")
    assert failing == bool(minutes)


def test_a_burn_rate(export: Path, run: Run) -> None:
    code, out, _ = run("--rule", "burn_rate(99, 15m, 3m) > 10", "--history", str(export))
    assert code == 0
    assert "would have fired once" in out


@pytest.mark.parametrize(
    ("before", "fires_at", "fires_with_minutes_at"),
    [((10, 0), 25, 24), ((6, 6), 10, 8)],
    ids=["totals that were higher", "totals that are soon passed"],
)
def test_a_burn_rate_over_a_restart(
    before: tuple[int, int], fires_at: int, fires_with_minutes_at: int
) -> None:
    """Minutes are summed up over a restart; from totals alone it counts from the restart."""
    clock = ManualClock()
    rows: list[dict[str, Any]] = []
    for requests, errors in (before, (10, 5)):
        with MetricsMonitor(clock=clock) as monitor:
            for _ in range(15):
                for number in range(requests):
                    monitor.record_request(1.0, is_error=number < errors)
                clock.advance(60)
            rows += monitor.get_metrics_history()
    rule = parse("burn_rate(90, 10m, 2m) >= 4.99 at least 1")
    older = [{name: row[name] for name in row if not name.startswith("minute_")} for row in rows]
    for history, place in ((older, fires_at), (rows, fires_with_minutes_at)):
        (change,) = replay(rule, RecordedHistory(history))
        assert change.state == "firing"
        assert iso_timestamp(change.at.timestamp()) == rows[place]["timestamp"]


@pytest.mark.parametrize(
    ("rule", "content", "says"),
    [
        ("nonsense", None, "not a rule"),
        ("nonsense > 5", None, "no snapshot field 'nonsense'"),
        ("error_rate_pct > 5 on /x", None, "no routes"),
        ("error_rate_pct > 5", "{", "export.json"),
        ("error_rate_pct > 5", "[1]", "no export"),
        ("error_rate_pct > 5", '{"history": []}', "empty"),
        ("error_rate_pct > 5", '{"history": [{"timestamp": "2026-01-25"}]}', "error_rate_pct"),
        ("error_rate_pct > 5", '{"history": [{"timestamp": "?"}]}', "?"),
    ],
)
def test_what_cannot_be_tried_is_said(
    export: Path, run: Run, rule: str, content: str | None, says: str
) -> None:
    if content is not None:
        export.write_text(content)
    code, out, err = run("--rule", rule, "--history", str(export))
    assert (code, out) == (2, "")
    assert says in err


def test_no_file(tmp_path: Path, run: Run) -> None:
    code, _, err = run("--rule", "workers > 1", "--history", str(tmp_path / "none.json"))
    assert code == 2
    assert "none.json" in err


def test_latencies_over_minutes_are_those_of_the_minutes(
    monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path
) -> None:
    """Twenty slow requests of a hundred, in one minute of twenty: the window shows five of them."""
    for minute in range(20):
        for number in range(100):
            monitor.record_request(900.0 if minute == 9 and number < 20 else 10.0)
        clock.advance(60)
    rows = monitor.get_metrics_history()

    def fired(rule: str) -> list[int]:
        changes = replay(parse(rule), RecordedHistory(rows))
        stamps = [str(row["timestamp"]) for row in rows]
        return [stamps.index(change.at.isoformat(timespec="microseconds")) for change in changes]

    assert fired("latency_p95_ms > 500 over 1m") == [9, 10]
    assert fired("latency_p95_ms > 500 over 2m") == [9, 11]
    assert fired("latency_p95_ms > 500 for 2m") == []
    assert fired("latency_max_ms > 500 over 3m") == [9, 12]
    assert fired("latency_p50_ms > 500 over 1m") == []
    rows = [{name: row[name] for name in FIELDS} for row in rows]  # of an older export
    assert fired("latency_p99_ms > 500 over 1m") == [9, 14]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("server_error_rate > 5 over 1m", [4, 5]), ("server_error_rate > 5 over 2m", [4, 6])],
)
def test_server_errors_over_minutes(
    monitor: MetricsMonitor, clock: ManualClock, rule: str, expected: list[int]
) -> None:
    for minute in range(12):
        for number in range(50):
            monitor.record_request(1.0, status=500 if minute == 4 and number < 10 else 404)
        clock.advance(60)
    rows = monitor.get_metrics_history()
    changes = replay(parse(rule), RecordedHistory(rows))
    stamps = [str(row["timestamp"]) for row in rows]
    at = [stamps.index(change.at.isoformat(timespec="microseconds")) for change in changes]
    assert at == expected
