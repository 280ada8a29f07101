"""Who is told, and when: severities, repeats, silences, tests, and the alerts of the past."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api import answers
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request, Response
from metricsmw.adapters.auth import public, token
from metricsmw.alerts import (
    Alert,
    MetricsAlerter,
    read_silences,
    set_silence,
    silences,
    until_time,
)
from metricsmw.alerts.application import application_name
from metricsmw.clock import ManualClock

Make = Callable[..., MetricsAlerter]
RULE = "requests_in_flight > 0"


def set_value(monitor: MetricsMonitor, beyond: bool) -> None:
    """Have a request in flight, or none."""
    if beyond:
        monitor.recorder.begin()
    else:
        monitor.recorder.cancel()


def check(one: MetricsAlerter) -> list[str]:
    """Check, wait until it is told, and return the states that changed."""
    changes = [alert.state for alert in one.check()]
    assert one.flush()
    return changes


def ask(monitor: MetricsMonitor, method: str, path: str, query: str = "", **more: Any) -> Response:
    headers = {"sec-fetch-site": "same-origin"} | more.pop("headers", {})
    handlers = Handlers(monitor, more.pop("auth", public()), **more)
    return handlers.handle(Request(method, path, query, headers))


def test_it_is_repeated_while_it_fires(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, told: list[Alert]
) -> None:
    one = alerter(rules=[f"{RULE} repeat every 1h", "workers > 0"], repeat_seconds=7200)
    set_value(monitor, True)
    found = []
    for minute in range(0, 181, 10):
        check(one)
        found += [(minute, alert.type, alert.is_repeat) for alert in told]
        told.clear()
        clock.advance(600)
    assert found == [
        (0, "REQUESTS_IN_FLIGHT", False),
        (0, "WORKERS", False),
        (60, "REQUESTS_IN_FLIGHT", True),
        (120, "REQUESTS_IN_FLIGHT", True),
        (120, "WORKERS", True),
        (180, "REQUESTS_IN_FLIGHT", True),
    ]


def test_severities_have_receivers_of_their_own(alerter: Make, monitor: MetricsMonitor) -> None:
    pager: list[Alert] = []
    mail: list[Alert] = []
    one = alerter(
        rules=["workers > 0 critical", "P: workers > 0 warning", "I: workers > 0 info"],
        notify={"critical": [pager.append, mail.append], "warning": mail.append},
    )
    check(one)
    assert [alert.severity for alert in pager] == ["critical"]
    assert [alert.severity for alert in mail] == ["critical", "warning"]


def test_who_is_no_severity_is_said(alerter: Make) -> None:
    with pytest.raises(ValueError, match="'fatal'"):
        alerter(notify={"fatal": str})


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        # beyond, silenced, what receivers are told
        ([(True, True), (True, True), (True, False)], ["firing"]),
        ([(True, True), (False, True), (False, False)], []),
        ([(True, False), (False, True), (False, False)], ["firing", "resolved"]),
        ([(True, False), (False, True), (True, True), (True, False)], ["firing"]),
        ([(True, False), (True, True), (True, False)], ["firing"]),
    ],
)
def test_a_silence_delays_what_is_told(
    alerter: Make,
    monitor: MetricsMonitor,
    clock: ManualClock,
    told: list[Alert],
    course: list[tuple[bool, bool]],
    expected: list[str],
) -> None:
    one = alerter(rules=[RULE])
    was = False
    for beyond, silenced in course:
        if beyond != was:
            set_value(monitor, beyond)
        was = beyond
        until = clock.time() + (600 if silenced else 0)
        set_silence(monitor, "REQUESTS_IN_FLIGHT", until, clock.time())
        check(one)
        (row,) = one.get_alerts()
        assert (row["silenced_until"] is not None) is silenced
        assert row["state"] in (("firing",) if beyond else ("resolved", "inactive"))
        clock.advance(30)
    assert [alert.state for alert in told] == expected


def test_silences_are_the_servers(clock: ManualClock) -> None:
    with (
        MetricsMonitor(shared=True, clock=clock) as one,
        MetricsMonitor(shared=True, clock=clock) as two,
    ):
        wall = clock.time()
        set_silence(one, "ERROR_RATE", wall + 60, wall)
        set_silence(one, "HIGH_CPU", wall + 90, wall)
        assert [row["type"] for row in read_silences(two, wall)] == ["ERROR_RATE", "HIGH_CPU"]
        assert [row["type"] for row in read_silences(two, wall + 61)] == ["HIGH_CPU"]
        set_silence(two, None, wall + 30, wall)  # for all, instead of those
        assert [row["type"] for row in read_silences(one, wall)] == [None]
        set_silence(two, None, wall, wall)
        assert read_silences(one, wall) == []


def test_who_hangs_as_it_silences_keeps_nobody_from_it(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = clock.time()
    with (
        MetricsMonitor(shared=True, clock=clock) as one,
        MetricsMonitor(shared=True, clock=clock) as two,
    ):
        monkeypatch.setattr(silences, "PATIENCE_SECONDS", 0.0)

        def hang(*args: Any) -> list[silences.Silence]:
            """Another worker comes when the one that holds the lock is late."""
            monkeypatch.setattr(silences, "read_silences", read_silences)
            set_silence(two, "HIGH_CPU", wall + 90, wall)
            return []

        monkeypatch.setattr(silences, "read_silences", hang)
        with pytest.raises(OSError, match="another worker is setting a silence"):
            set_silence(one, "ERROR_RATE", wall + 60, wall)
        assert [row["type"] for row in read_silences(one, wall)] == ["HIGH_CPU"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", 1_000_000_000 + 7200.0),
        ("0s", 1_000_000_000.0),
        ("2001-09-09T02:46:40Z", 1_000_003_600.0),
        ("2001-09-09T02:46:40", 1_000_003_600.0),
        ("2001-09-09T04:46:40+02:00", 1_000_003_600.0),
    ],
)
def test_until_when(text: str, expected: float) -> None:
    assert until_time(text, 1_000_000_000) == expected


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("for=2h", 200),
        ("for=2h&type=HIGH_CPU", 200),
        (f"until={quote('2023-11-15T00:00:00Z')}", 200),
        (f"until={quote('2023-11-14T00:00:00Z')}", 400),
        ("for=31d", 400),
        ("for=soon", 400),
        ("for=1h&until=2h", 400),
        ("", 400),
    ],
)
def test_the_route_to_silence(monitor: MetricsMonitor, query: str, status: int) -> None:
    answer = ask(monitor, "POST", "/alerts/silence", query)
    assert answer.status == status
    assert len(read_silences(monitor, monitor.clock.time())) == (status == 200)


def test_a_silence_is_of_a_rule_that_is_there(monitor: MetricsMonitor) -> None:
    one = MetricsAlerter(monitor, rules=["p99 > 100", "cpu > 80"], start=False)
    one.check()
    assert ask(monitor, "POST", "/alerts/silence", "for=2h&type=HIGH_CPU").status == 200
    answer = ask(monitor, "POST", "/alerts/silence", "for=2h&type=HIGH_CPUS")
    assert answer.status == 400
    assert b"no rule is named 'HIGH_CPUS', there are: HIGH_CPU, HIGH_LATENCY" in answer.body
    assert ask(monitor, "POST", "/alerts/silence", "for=0s&type=HIGH_CPUS").status == 200


def test_a_silence_that_cannot_be_saved_now(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("another worker is setting a silence")

    monkeypatch.setattr(answers, "set_silence", fail)
    answer = ask(monitor, "POST", "/alerts/silence", "for=2h")
    assert answer.status == 503
    assert b"Nothing was silenced: another worker is setting a silence" in answer.body
    assert monitor.get_health()["faults"] == 0


@pytest.mark.parametrize("path", ["/alerts/silence", "/alerts/test"])
def test_a_change_has_the_resets_protections(monitor: MetricsMonitor, path: str) -> None:
    query = "for=2h"
    cross = ask(monitor, "POST", path, query, headers={"sec-fetch-site": "cross-site"})
    assert cross.status == 403
    assert ask(monitor, "POST", path, query, reset=False).status == 403
    assert ask(monitor, "POST", path, query, reset="token").status == 403
    assert ask(monitor, "POST", path, query, auth=token("secret")).status == 401
    assert ask(monitor, "GET", path).status == 405
    assert read_silences(monitor, monitor.clock.time()) == []


def test_a_test_alert(monitor: MetricsMonitor, told: list[Alert]) -> None:
    assert ask(monitor, "POST", "/alerts/test").status == 404

    def fail(alert: Alert) -> None:
        raise ConnectionError("secret")

    with MetricsAlerter(monitor, 3600, notify=[told.append, fail]):
        answer = ask(monitor, "POST", "/alerts/test")
    assert answer.status == 200
    assert b'"ConnectionError"' in answer.body
    assert b"secret" not in answer.body
    assert [alert.type for alert in told] == ["TEST"]


def test_past_alerts_are_kept_and_bounded(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=[RULE], notify=str)
    for _ in range(120):
        for beyond in (True, False):
            set_value(monitor, beyond)
            clock.advance(30)
            one.check()
    set_value(monitor, True)
    one.check()
    past = one.get_past_alerts()
    assert len(past) == 100
    assert [row["ended"] is None for row in past] == [False] * 99 + [True]
    assert past[0]["noticed"] < past[0]["ended"] < past[1]["noticed"]  # type: ignore[operator]
    answer = ask(monitor, "GET", "/alerts/history")
    assert answer.status == 200
    assert b'"ended":null' in answer.body
    assert b'"key"' not in answer.body


def test_messages_name_the_application(
    alerter: Make, told: list[Alert], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsMonitor(clock=clock, name="shop") as monitor:
        one = MetricsAlerter(
            monitor, rules=["memory_usage_mb > 0.5"], notify=told.append, start=False
        )
        check(one)
        one.stop()
    assert told[0].app == "shop"
    assert told[0].title.startswith("ALERT: HIGH_MEMORY (warning), shop on ")
    assert " MB, threshold > 0.5 MB." in str(told[0])
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-otel")
    assert application_name() == "from-otel"
    # Variables, and folders, are any bytes; a lone surrogate would make the note a damaged one.
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a\udcff\nb")
    assert application_name() == "a\ufffd\ufffdb"
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert application_name()


@pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "without"])
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is over"])
def test_what_fired_when_the_server_stopped_goes_on_or_is_over(
    tmp_path: Path,
    clock: ManualClock,
    told: list[Alert],
    monkeypatch: pytest.MonkeyPatch,
    lasting: bool,
    goes_on: bool,
) -> None:
    def serve(errors: int, begin: int) -> list[tuple[str, str]]:
        """Run a server for two minutes, and return what receivers are told."""
        history = tmp_path / "metrics.db" if lasting else None
        with MetricsMonitor(60, shared=not lasting, clock=clock, history=history) as monitor:
            with MetricsAlerter(
                monitor,
                rules=["error_rate_pct > 50", "GONE: workers > 0"][: 1 + (not told)],
                notify=told.append,
                start=False,
            ) as one:
                for second in range(120):
                    for number in range(10):
                        monitor.record_request(1.0, is_error=second >= begin and number < errors)
                    if second == 0 or second % 10 == 9:
                        check(one)
                    clock.advance(1)
                past = one.get_past_alerts()
            assert "ERROR_RATE" in [row["type"] for row in past]
        return [(alert.type, alert.state) for alert in told]

    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path))
    assert sorted(serve(9, 5)) == [("ERROR_RATE", "firing"), ("GONE", "firing")]
    for folder in tmp_path.glob("metricsmw-*"):
        shutil.rmtree(folder)
    clock.advance(30)
    later = serve(9 if goes_on else 0, 0)[2:]
    over = [] if goes_on else [("ERROR_RATE", "resolved")]
    assert sorted(later) == sorted([("GONE", "resolved"), *over])
