"""Alert rules on the app's own numbers: what they are of, and when nothing is known."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.alerts import CustomRule, MetricsAlerter, check_now, parse
from metricsmw.alerts.custom import MOST_CHECKS, PastTotals, Total
from metricsmw.alerts.rules import TAKEN, identity
from metricsmw.clock import ManualClock

Make = Callable[..., MetricsAlerter]
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)


@st.composite
def custom_rules(draw: st.DrawFn) -> CustomRule:
    taken = draw(st.sampled_from(TAKEN))
    return CustomRule(
        draw(names),
        taken,
        draw(st.integers(-9, 9).map(float)),
        tuple(draw(st.dictionaries(st.sampled_from(["a", "b_2"]), st.text())).items()),
        draw(st.sampled_from([">", ">=", "<", "<="])),
        draw(st.sampled_from([0.0, 90.0])),
        over_seconds=None if taken == "value" else draw(st.none() | st.just(60.0)),
    )


@given(custom_rules())
def test_a_rule_is_its_text(rule: CustomRule) -> None:
    assert parse(str(rule)) == rule
    assert identity(parse(str(rule))) == identity(rule)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("orders_failed > 5", 'a number of the app\'s own is "orders_failed rate"'),
        ('orders_failed{shop="north"} > 5', "not a rule"),
        ("orders_failed rate > 5 on GET /", 'not about requests, and has no "on ROUTE"'),
        ("orders_failed rate > 5 at least 9", 'has no "at least NUMBER requests"'),
        ("queue value > 5 over 1m", "the value of a gauge is that of now"),
        ("orders{shop} rate > 5", "labels must be like"),
        (r'orders{shop="\q"} rate > 5', "quoted as in JSON"),
        ('orders{shop="a",shop="b"} rate > 5', "different"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def value_of(one: MetricsAlerter) -> float | None:
    one.check()
    return one.get_alerts()[0]["value"]


def test_a_rate_is_by_the_minute_over_the_span(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    failed = monitor.counter("orders_failed", labels=["shop"])
    one = alerter(rules=["orders_failed rate > 5 over 1m"])
    failed.labels("north").inc(1000)
    found = []
    for minute in range(4):
        found.append(value_of(one))
        clock.advance(30)
        failed.labels("south").inc(minute)
        failed.labels("north").inc()
    # Known after a minute: what was counted before it is in no rate.
    assert found == [None, None, 3, 5]


def test_labels_choose_series(alerter: Make, monitor: MetricsMonitor, clock: ManualClock) -> None:
    failed = monitor.counter("orders_failed", labels=["shop", "kind"])
    one = alerter(rules=['orders_failed_total{shop="no\\"th"} rate > 5 over 30s'])
    one.check()
    failed.labels('no"th', "card").inc(2)
    failed.labels('no"th', "cash").inc(3)
    failed.labels("south", "cash").inc(100)
    clock.advance(30)
    assert value_of(one) == 10
    assert one.get_alerts()[0]["field"] == 'orders_failed{shop="no\\"th"} rate'


def test_the_first_failures_fire(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    one = alerter(rules=["orders_failed rate > 5 for 2m"])
    changes = []
    for minute in range(24):
        if 2 <= minute < 10:
            monitor.counter("orders_failed").inc(10)
        changes += [(minute, alert.state) for alert in one.check()]
        clock.advance(30)
    # Beyond from the first look on, for two minutes; then for the span after the last failure.
    assert changes == [(6, "firing"), (11, "resolved")]


def test_one_burst_does_not_last(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    failed = monitor.counter("orders_failed")
    failed.inc()
    for text in ("orders_failed rate > 5 for 2m", "orders_failed rate > 5 for 30s"):
        one = alerter(rules=[text])
        for look in range(20):
            failed.inc(1000 if look == 7 else 0)
            assert one.check() == []
            clock.advance(30)
        one.stop()


@pytest.mark.parametrize("text", ["nothing rate < 5", "nothing value < 5", "nothing p99 < 5"])
def test_an_unknown_number_has_no_data(alerter: Make, clock: ManualClock, text: str) -> None:
    one = alerter(rules=[text])
    for _ in range(20):
        assert one.check() == []
        clock.advance(30)
    assert one.get_alerts()[0]["value"] is None


def test_a_gauge_is_its_value(alerter: Make, monitor: MetricsMonitor, clock: ManualClock) -> None:
    queue = monitor.gauge("queue", labels=["of"])
    one = alerter(rules=["queue value > 10 clear 4", 'queue{of="mail"} value < 2'])
    assert one.check() == []
    queue.labels("mail").set(3)
    queue.labels("jobs").set(8)
    assert [alert.type for alert in one.check()] == ["QUEUE"]
    assert {row["field"]: row["value"] for row in one.get_alerts()} == {
        "queue value": 11,
        'queue{of="mail"} value': 3,
    }
    (row,) = check_now(monitor, ["queue value < 10"])
    assert (row["verdict"], row["value"]) == ("violated", 11)
    with pytest.raises(ValueError, match="takes several looks"):
        check_now(monitor, ["orders rate < 10"])


def test_a_histogram_is_of_the_values_in_the_span(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    payment = monitor.histogram("payment", labels=["by"])
    texts = ["payment p50 > 9", "payment_seconds p99 > 9", "payment mean > 9"]
    one = alerter(rules=[f"{text} over 1m" for text in texts])

    def values() -> list[float | None]:
        one.check()
        rows = {row["rule"]: row["value"] for row in one.get_alerts()}
        return [rows[str(parse(f"{text} over 1m"))] for text in texts]

    payment.labels("card").observe(100)
    assert values() == [None, None, None]
    clock.advance(60)
    for place in range(100):
        payment.labels("card" if place % 2 else "cash").observe(0.5 if place < 90 else 3)
    assert values() == [pytest.approx(0.5, 0.03), pytest.approx(3, 0.03), pytest.approx(0.75)]
    clock.advance(60)
    assert values() == [None, None, None], "no values, no percentile"


def test_a_reset_begins_anew(alerter: Make, monitor: MetricsMonitor, clock: ManualClock) -> None:
    orders = monitor.counter("orders")
    one = alerter(rules=["orders rate < 1 over 30s"])
    for _ in range(3):
        orders.inc(50)
        assert one.check() == []
        clock.advance(30)
    monitor.reset_statistics()
    orders.inc(1)
    assert one.check() == [], "not known, rather than fewer than before"
    clock.advance(30)
    orders.inc(2)
    assert value_of(one) == 4


def test_another_worker_begins_anew(
    alerter: Make, monitor: MetricsMonitor, clock: ManualClock
) -> None:
    orders = monitor.counter("orders")
    orders.inc(5)
    rules = ["orders rate > 1 over 30s"]
    one = alerter(rules=rules)
    for _ in range(2):
        orders.inc(5)
        one.check()
        clock.advance(30)
    assert one.get_alerts()[0]["state"] == "firing"
    one.stop()
    clock.advance(600)
    two = alerter(rules=rules)
    assert two.check() == [], "it goes on as it was until the span is covered"
    clock.advance(30)
    assert [alert.state for alert in two.check()] == ["resolved"]
    two.stop()
    clock.advance(60)
    orders.inc(100)
    assert one.check() == [], "what the first one saw is too old"


def test_a_rule_on_another_type_is_told(
    alerter: Make, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.counter("orders").inc()
    one = alerter(rules=["orders p99 > 1", "orders value > 1"])
    with caplog.at_level(logging.ERROR):
        assert one.check() == []
    assert "orders is a counter, of which there is no p99" in caplog.text
    assert [row["value"] for row in one.get_alerts()] == [None, None]


def test_what_is_kept_is_bounded() -> None:
    past = PastTotals(0.0)
    for look in range(10_000):
        past.note(look / 10, Total(look), 300.0)
    assert len(past.checks) <= MOST_CHECKS + 2
    assert past.checks[0][0] <= 700 <= past.checks[1][0]
