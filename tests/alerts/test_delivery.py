"""Receivers that work, hang, refuse and fail: nobody waits for them, and each is told once."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
from kits.receivers import HTTPReceiver, http_receiver, mail_receiver, text_of
from kits.servers import free_port, wait_until

from metricsmw import MetricsMonitor
from metricsmw.alerts import Alert, MetricsAlerter, Retry, get_alerts
from metricsmw.clock import ManualClock
from metricsmw.engine.workers.leader import LeaderLock

Make = Callable[..., MetricsAlerter]


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
NOTHING = {"waiting": 0, "sent": 0, "failed_attempts": 0, "given_up": 0}


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


def test_without_apprise_it_says_what_to_install(
    alerter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "metricsmw\[alerts\]"') as raised:
        alerter(notify="json://user:secret@localhost/")
    assert "secret" not in str(raised.value)
    assert "json://" in str(raised.value)


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
    port = free_port()
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


class FullDisk:
    """While `full` is set nothing can be noted; ``tried`` counts how often that was attempted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = threading.Event()
        self.tried = 0
        write = LeaderLock.write

        def fail_or_write(leader: LeaderLock, note: Mapping[str, object]) -> bool:
            if self.full.is_set():
                self.tried += 1
                raise OSError(28, "No space left on device")
            return write(leader, note)

        monkeypatch.setattr(LeaderLock, "write", fail_or_write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


def test_what_a_full_disk_cannot_note_is_told_once(
    alerter: Make, monitor: MetricsMonitor, disk: FullDisk
) -> None:
    told: list[str] = []

    def fill_the_disk(alert: Alert) -> None:
        disk.full.set()
        told.append(alert.state)

    one = alerter(rules=RULES, notify=fill_the_disk)
    fire(one, monitor)
    wait_until(lambda: disk.tried >= 3, "three attempts to note it")
    assert told == ["firing"]
    assert get_alerts(monitor)[1] == NOTHING | {"waiting": 1}
    disk.full.clear()
    assert one.flush()
    assert get_alerts(monitor)[1] == NOTHING | {"sent": 1}
    assert told == ["firing"]


def test_a_full_disk_keeps_no_failure_from_the_log(
    alerter: Make,
    monitor: MetricsMonitor,
    clock: ManualClock,
    disk: FullDisk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def fail(alert: Alert) -> None:
        disk.full.set()
        calls.append(alert)
        raise ConnectionError("no way")

    one = alerter(rules=RULES, notify=fail)
    fire(one, monitor)
    wait_until(lambda: len(calls) >= 3, "three attempts")
    (message,) = errors_logged(caplog)
    assert "no way" in message
    clock.advance(3600)
    wait_until(lambda: "any more" in errors_logged(caplog)[-1], "the end")
    before, tried = len(calls), disk.tried
    wait_until(lambda: disk.tried >= tried + 3, "three attempts to note it")
    assert len(calls) == before
    assert len(errors_logged(caplog)) == 2
    disk.full.clear()
    assert one.flush()
    assert get_alerts(monitor)[1]["given_up"] == 1


def test_who_has_stopped_does_not_take_the_lead_again(
    alerter: Make, monitor: MetricsMonitor
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(alert: Alert) -> None:
        begun.set()
        go_on.wait(60)

    one = alerter(rules=RULES, notify=slow)
    fire(one, monitor)
    assert begun.wait(60)
    (sender,) = [t for t in threading.enumerate() if t.name == "metricsmw sender"]
    one.stop(0)
    go_on.set()
    sender.join(60)
    assert not sender.is_alive()
    assert not one.is_leader
    assert not one.flush(0)
    assert not one.is_leader
    told: list[str] = []
    two = alerter(rules=RULES, notify=lambda alert: told.append(alert.state))
    recover(two, monitor)


def test_of_several_services_in_one_text_only_those_that_failed_are_told_again(
    alerter: Make, monitor: MetricsMonitor, receiver: HTTPReceiver
) -> None:
    with http_receiver() as broken:
        broken.status = 500
        one = alerter(rules=RULES, notify=f"json://{broken.address}/, json://{receiver.address}/")
        fire(one, monitor)
        wait_until(lambda: broken.asked >= 3, "the third attempt")
        broken.status = 200
        assert one.flush()
        assert len(broken.posts) == 1
    assert receiver.asked == 1
    assert get_alerts(monitor)[1]["sent"] == 2


def test_a_receiver_that_exits_or_takes_nothing_is_a_failure(
    alerter: Make, monitor: MetricsMonitor
) -> None:
    def leave(alert: Alert) -> None:
        raise SystemExit

    one = alerter(rules=RULES, notify=[leave, lambda: None])
    fire(one, monitor)
    wait_until(lambda: get_alerts(monitor)[1]["failed_attempts"] >= 4, "two attempts each")
    assert get_alerts(monitor)[1]["sent"] == 0


def test_what_waits_is_bounded(alerter: Make, monitor: MetricsMonitor) -> None:
    def fail(alert: Alert) -> None:
        raise ConnectionError("no way")

    one = alerter(rules=RULES, notify=fail, retry=Retry(0.02, 0.05, max_waiting=3))
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


def test_after_a_reload_in_another_order_each_gets_its_own(
    alerter: Make, monitor: MetricsMonitor
) -> None:
    told: dict[str, list[str]] = {"good": [], "bad": []}

    def good(alert: Alert) -> None:
        told["good"].append(alert.state)

    def bad_of(works: bool) -> Callable[[Alert], None]:
        def bad(alert: Alert) -> None:
            if not works:
                raise ConnectionError("no way")
            told["bad"].append(alert.state)

        return bad

    one = alerter(rules=RULES, notify=[good, bad_of(works=False)])
    fire(one, monitor)
    wait_until(
        lambda: get_alerts(monitor)[1]["failed_attempts"] and told["good"], "an attempt each"
    )
    wait_until(lambda: get_alerts(monitor)[1]["sent"] == 1, "the good one to be struck off")
    one.stop(0)
    two = alerter(rules=RULES, notify=[bad_of(works=True), good])
    assert two.check() == []
    assert two.flush()
    assert told == {"good": ["firing"], "bad": ["firing"]}
