"""Receivers that work, hang, refuse and fail: nobody waits for them, and each is told once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from kits.receivers import HTTPReceiver, http_receiver, mail_receiver, text_of
from kits.servers import _free_port, wait_until

from metricsmw import MetricsMonitor, notify
from metricsmw.alerts import Alert, MetricsAlerter, get_alerts
from metricsmw.clock import ManualClock

Make = Callable[..., MetricsAlerter]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other quickly."""
    monkeypatch.setattr(notify, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(notify, "LONGEST_DELAY", 0.05)


@pytest.fixture
def receiver() -> Iterator[HTTPReceiver]:
    with http_receiver() as receiver:
        yield receiver


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [r for r in caplog.records if r.name == "metricsmw.alerts"]
    return [r.getMessage() for r in records if r.levelno == logging.ERROR]


def fire(alerter: MetricsAlerter, monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, is_error=True)
    assert [alert.state for alert in alerter.check()] == ["firing"]


def recover(alerter: MetricsAlerter, monitor: MetricsMonitor) -> None:
    monitor.reset_statistics()
    assert [alert.state for alert in alerter.check()] == ["resolved"]


RULES = ["total_errors > 0 critical"]


def test_a_webhook_by_apprise(
    alerter: Make, monitor: MetricsMonitor, receiver: HTTPReceiver
) -> None:
    one = alerter(rules=RULES, notify=f"json://{receiver.address}/hook", link="https://h/metrics/")
    fire(one, monitor)
    recover(one, monitor)
    assert one.flush()
    assert receiver.paths == ["/hook", "/hook"]
    assert [post["type"] for post in receiver.posts] == ["failure", "success"]
    first, second = receiver.posts
    assert first["title"].startswith("ALERT: TOTAL_ERRORS (critical)")
    assert second["title"].startswith("RESOLVED: TOTAL_ERRORS")
    for part in ("total_errors is 1", "threshold > 0", "Since: 2023-11-14T22:13:20", "Host: "):
        assert part in first["message"]
    assert "https://h/metrics/" in first["message"]


def test_a_mail_by_apprise(alerter: Make, monitor: MetricsMonitor) -> None:
    with mail_receiver() as mailbox:
        url = f"mailto://127.0.0.1:{mailbox.port}?from=app@example.com&to=ops@example.com"
        one = alerter(rules=RULES, notify=url)
        fire(one, monitor)
        assert one.flush()
        (mail,) = mailbox.mails
    assert "ALERT: TOTAL_ERRORS" in mail["Subject"]
    assert "ops@example.com" in mail["To"]
    assert "total_errors is 1" in text_of(mail)


def test_a_failing_receiver_is_tried_again_and_logged_once(
    alerter: Make,
    monitor: MetricsMonitor,
    receiver: HTTPReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.status = 500
    one = alerter(rules=RULES, notify=f"json://user:secret@{receiver.address}")
    fire(one, monitor)
    recover(one, monitor)
    wait_until(lambda: receiver.asked >= 4, "the third attempt")
    assert receiver.posts == []
    receiver.status = 200
    assert one.flush()
    titles = [post["title"].split(":")[0] for post in receiver.posts]
    assert titles == ["ALERT", "RESOLVED"]
    (message,) = errors_logged(caplog)
    assert "json://…" in message
    assert "secret" not in message
    counts = get_alerts(monitor)[1]
    assert counts["sent"] == 2
    assert counts["failed_attempts"] >= 3
    assert counts["waiting"] == 0


def test_a_receiver_that_refuses_is_told_when_it_is_back(
    alerter: Make, monitor: MetricsMonitor
) -> None:
    port = _free_port()
    one = alerter(rules=RULES, notify=f"json://127.0.0.1:{port}")
    fire(one, monitor)
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 2, "two attempts")
    assert get_alerts(monitor)[1]["waiting"] == 1
    with http_receiver(port) as receiver:
        assert one.flush()
        assert [post["type"] for post in receiver.posts] == ["failure"]


def test_a_receiver_that_hangs_holds_up_nobody(
    alerter: Make, monitor: MetricsMonitor, receiver: HTTPReceiver, told: list[Alert]
) -> None:
    receiver.hang.set()
    hanging = f"json://{receiver.address}?rto=0.2&cto=0.2"
    one = alerter(rules=RULES, notify=[hanging, told.append])
    fire(one, monitor)
    wait_until(lambda: receiver.asked, "the receiver to hang")
    # It hangs still, and all else goes on.
    recover(one, monitor)
    wait_until(lambda: len(told) == 2, "the other receiver to be told")
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 2, "the end of patience")
    assert receiver.posts == []


def test_a_slow_callable_is_told_once(
    alerter: Make, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    calls: list[str] = []

    def slow(alert: Alert) -> None:
        calls.append(alert.state)
        go_on.wait(60)

    one = alerter(rules=RULES, notify=slow, timeout=0.02)
    fire(one, monitor)
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 3, "three time-outs")
    assert calls == ["firing"]
    go_on.set()
    assert one.flush()
    assert calls == ["firing"]
    recover(one, monitor)
    assert one.flush()
    assert calls == ["firing", "resolved"]
    (message,) = errors_logged(caplog)
    assert "no answer within 0.02 s" in message


def test_after_an_hour_it_is_given_up(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(alert: Alert) -> None:
        raise ConnectionError("no way")

    one = alerter(rules=RULES, notify=fail)
    fire(one, monitor)
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 2, "two attempts")
    assert get_alerts(monitor)[1]["given_up"] == 0
    clock.advance(3600)
    assert one.flush()
    assert get_alerts(monitor)[1]["given_up"] == 1
    assert "any more" in errors_logged(caplog)[-1]


def test_a_receiver_that_exits_or_takes_nothing_is_a_failure(
    alerter: Make, monitor: MetricsMonitor
) -> None:
    def leave(alert: Alert) -> None:
        raise SystemExit

    one = alerter(rules=RULES, notify=[leave, lambda: None])
    fire(one, monitor)
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 4, "two attempts each")
    assert get_alerts(monitor)[1]["sent"] == 0


def test_what_waits_is_bounded(
    alerter: Make, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricsmw.alerts.MOST_WAITING", 3)

    def fail(alert: Alert) -> None:
        raise ConnectionError("no way")

    one = alerter(rules=RULES, notify=fail)
    for _ in range(4):
        fire(one, monitor)
        recover(one, monitor)
    counts = get_alerts(monitor)[1]
    assert counts["waiting"] == 3
    assert counts["given_up"] == 5


def test_a_receiver_that_a_reload_took_away_is_waited_for_no_longer(
    alerter: Make, monitor: MetricsMonitor, told: list[Alert]
) -> None:
    def fail(alert: Alert) -> None:
        raise ConnectionError("no way")

    one = alerter(rules=RULES, notify=[told.append, fail])
    fire(one, monitor)
    wait_until(lambda: told and get_alerts(monitor)[1]["sent"] == 1, "the first receiver")
    assert get_alerts(monitor)[1]["waiting"] == 1
    one.stop(0)
    two = alerter(rules=RULES)
    assert two.check() == []
    assert get_alerts(monitor)[1]["waiting"] == 0
    assert len(told) == 1
