"""The server's own errors, told apart from those that clients caused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter
from metricsmw.clock import ManualClock
from metricsmw.history import SQLiteHistory


@pytest.mark.parametrize(
    ("request_", "is_error", "is_own"),
    [
        ({"status": 200}, False, False),
        ({"status": 404}, True, False),
        ({"status": 499}, True, False),
        ({"status": 500}, True, True),
        ({"status": 599}, True, True),
        ({"is_error": True}, True, True),
        ({"is_error": True, "status": 404}, True, False),
        ({"is_error": True, "status": 200}, True, True),
    ],
)
@pytest.mark.parametrize("where", [{}, {"method": "GET", "route": "/x"}], ids=["server", "route"])
def test_what_is_an_error_of_the_server(
    monitor: MetricsMonitor,
    where: dict[str, str],
    request_: dict[str, Any],
    is_error: bool,
    is_own: bool,
) -> None:
    monitor.record_request(1.0, **where)
    monitor.record_request(1.0, **where, **request_)
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_errors, snapshot.total_server_errors) == (is_error, is_own)
    assert snapshot.server_error_rate_pct == 50.0 * is_own
    assert [row["server_error_rate_pct"] for row in monitor.get_routes()] in ([], [50.0 * is_own])
    assert monitor.check_health({"server_error_rate_pct": 50})["checks"] == {
        "server_error_rate_pct": not is_own
    }


def test_an_exception_is_one_whatever_was_sent(monitor: MetricsMonitor) -> None:
    recorder = monitor.recorder
    for status in (200, 500):
        recorder.fail(recorder.begin(), status, "/x", "GET")
    recorder.end(recorder.begin(), 404, "/x", "GET")
    snapshot = monitor.get_current_snapshot()
    assert (snapshot.total_errors, snapshot.total_server_errors) == (3, 2)
    (row,) = monitor.get_routes()
    assert row["server_error_rate_pct"] == 66.67
    assert row["statuses"] == monitor.read().server.total.statuses == {"2xx": 1, "4xx": 1, "5xx": 1}


STATUSES = st.one_of(st.none(), st.integers(100, 599))
KINDS = st.sampled_from(["server", "route", "response", "failed", "gone"])


@given(
    st.lists(st.tuples(KINDS, STATUSES, st.booleans(), st.sampled_from([0, 0, 3, 70])), max_size=30)
)
def test_classes_are_those_of_all_answers(
    requests: list[tuple[str, int | None, bool, int]],
) -> None:
    clock = ManualClock(start=1000.0)
    expected: dict[int, Counter[str]] = {}
    with MetricsMonitor(60, clock=clock) as monitor:
        recorder = monitor.recorder
        for kind, status, is_error, pause in requests:
            clock.advance(pause)
            sent = status or 200
            if kind == "server":
                monitor.record_request(1.0, is_error, status=status)
            elif kind == "route":
                monitor.record_request(1.0, is_error, method="GET", route="/x", status=status)
            elif kind == "response":
                recorder.end(recorder.begin(), sent, "/x", "GET")
            elif kind == "failed":
                recorder.fail(recorder.begin(), sent, "/x", "GET", "ValueError" * is_error)
            else:
                recorder.begin()
                recorder.abandon(sent, "/x", "GET")
                continue
            if kind in ("server", "route") and status is None and is_error:
                sent = 500
            expected.setdefault(int(clock.now) + 1, Counter())[f"{sent // 100}xx"] += 1
        assert monitor.read().server.total.statuses == sum(expected.values(), Counter())
        clock.advance(1)
        for step in monitor.get_series()["series"]:
            assert step["statuses"] == expected.get(step["step"], {})


def test_a_rule_of_a_route(monitor: MetricsMonitor, clock: ManualClock) -> None:
    rules = [
        "server_error_rate_pct > 1 on /checkout",
        "S: server_error_rate > 1 on GET /checkout over 60s",
    ]
    with MetricsAlerter(monitor, rules=rules, notify=str, start=False) as alerter:
        for failing in (404, 500):
            for number in range(100):
                status = failing if number % 10 == 0 else 200
                monitor.record_request(1.0, method="GET", route="/checkout", status=status)
            clock.advance(31)
            fired = [alert.type for alert in alerter.check()]
            assert fired == (["SERVER_ERROR_RATE", "S"] if failing == 500 else [])


def test_steps_rules_and_histories_know_them(
    monitor: MetricsMonitor, clock: ManualClock, tmp_path: Path
) -> None:
    history = SQLiteHistory(monitor, tmp_path / "metrics.db", start=False)
    alerter = MetricsAlerter(
        monitor,
        rules=["server_error_rate > 1", "S: server_error_rate > 1 over 5s", "error_rate > 50"],
        notify=str,
        start=False,
    )
    for number in range(100):
        monitor.record_request(1.0, status=500 if number < 2 else 404 if number < 40 else 200)
    clock.advance(5)
    step = monitor.get_series()["series"][-1]
    assert (step["errors"], step["server_errors"]) == (40, 2)
    assert step["server_error_rate_pct"] == 2.0
    assert [alert.type for alert in alerter.check()] == ["SERVER_ERROR_RATE", "S"]
    clock.advance(55)
    (row,) = monitor.get_metrics_history()
    assert (row["server_error_rate_pct"], row["total_server_errors"]) == (2.0, 2)
    history.check()
    (span,) = history.rows(0, clock.time() + 1, step_minutes=5)
    assert (span["server_error_rate_pct"], span["total_server_errors"]) == (2.0, 2)
    alerter.stop()


@pytest.mark.parametrize(("errors_from", "errors"), [(400, 4), (500, 2)])
def test_errors_from_says_what_counts(errors_from: Any, errors: int) -> None:
    with MetricsMonitor(errors_from=errors_from, clock=ManualClock()) as monitor:
        for status in (200, 404, 500):
            monitor.record_request(1.0, status=status)
            recorder = monitor.recorder
            recorder.end(recorder.begin(), status, "/x", "GET")
        snapshot = monitor.get_current_snapshot()
        assert (snapshot.total_errors, snapshot.total_server_errors) == (errors, 2)
        (row,) = monitor.get_routes()
        assert row["error_rate_pct"] == round(100 * errors / 2 / 3, 2)
        assert row["statuses"] == {"2xx": 1, "4xx": 1, "5xx": 1}
        assert row["server_error_rate_pct"] == 33.33
        assert monitor.read().server.total.statuses == {"2xx": 2, "4xx": 2, "5xx": 2}


@pytest.mark.parametrize("errors_from", [0, 404, "500", None])
def test_other_limits_are_refused(errors_from: Any) -> None:
    with pytest.raises(ValueError, match="errors_from must be 400 or 500"):
        MetricsMonitor(errors_from=errors_from)


def test_a_burn_rate_of_the_servers_own_errors(monitor: MetricsMonitor, clock: ManualClock) -> None:
    with MetricsAlerter(
        monitor,
        rules=["burn_rate(99, 10m, 2m) > 10", "S: server_burn_rate(99, 10m, 2m) > 10"],
        notify=str,
        start=False,
    ) as alerter:
        fired = []
        for minute in range(24):
            for number in range(20):
                bad = 404 if minute < 12 else 500
                monitor.record_request(1.0, status=bad if number < 10 else 200)
            clock.advance(60)
            fired += [(alert.type, minute) for alert in alerter.check()]
    assert [name for name, _ in fired] == ["BURN_RATE", "S"]
    assert fired[0][1] < 12 <= fired[1][1]
