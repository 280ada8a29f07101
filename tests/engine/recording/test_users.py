"""Active users: who was seen within the timeout, each counted once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock


def test_each_user_counts_once(monitor: MetricsMonitor) -> None:
    for user in ("bob", "ada", "bob", "ada", "cyd"):
        monitor.record_user_activity(user)
    assert monitor.get_active_users() == 3
    assert monitor.get_active_user_ids() == ["ada", "bob", "cyd"]
    assert monitor.get_current_snapshot().active_users == 3


def test_activity_is_no_request(monitor: MetricsMonitor) -> None:
    monitor.record_user_activity("ada")
    assert monitor.total_requests == 0
    assert monitor.get_request_rate_rpm() == 0.0


def test_a_request_marks_its_user(monitor: MetricsMonitor) -> None:
    monitor.record_request(1.0, user_id="ada")
    monitor.record_request(1.0, True, "bob")
    monitor.record_request(1.0)
    assert monitor.get_active_user_ids() == ["ada", "bob"]
    assert monitor.total_requests == 3


def test_ids_are_taken_as_text(monitor: MetricsMonitor) -> None:
    for user in (5, "5", 10):
        monitor.record_user_activity(user)
    assert monitor.get_active_user_ids() == ["10", "5"]


@pytest.mark.parametrize("timeout", [60, 300, 900])
def test_a_user_is_active_until_the_timeout(timeout: int) -> None:
    clock = ManualClock()
    with MetricsMonitor(user_timeout_seconds=timeout, clock=clock) as monitor:
        monitor.record_user_activity("early")
        clock.advance(timeout - 10)
        monitor.record_user_activity("late")
        clock.advance(9)
        assert monitor.get_active_user_ids() == ["early", "late"]
        clock.advance(2)
        assert monitor.get_active_user_ids() == ["late"]
        assert monitor.get_active_users() == 1
        clock.advance(timeout)
        assert monitor.get_active_user_ids() == []
        assert monitor.get_active_users() == 0


def test_activity_renews(monitor: MetricsMonitor, clock: ManualClock) -> None:
    for _ in range(20):
        monitor.record_user_activity("ada")
        clock.advance(200)
        assert monitor.get_active_user_ids() == ["ada"]


def test_the_timeout_is_not_the_window(clock: ManualClock) -> None:
    with MetricsMonitor(10, user_timeout_seconds=600, clock=clock) as monitor:
        monitor.record_request(1.0, user_id="ada")
        clock.advance(500)
        assert monitor.get_request_rate_rpm() == 0.0
        assert monitor.get_active_users() == 1


@pytest.mark.parametrize(
    "users",
    [
        ["x" * 500 + "a", "x" * 500 + "b"],
        ["é" * 300 + "a", "é" * 300 + "b"],
        ["ada", "ada ", " ada", "ADA"],
        ["\N{GRINNING FACE}", "\N{GRINNING FACE}" * 2],
        ["a\x00b", "a", "a\x00"],
        ["line\nbreak", "line"],
        ["\ud800", "\udfff"],
    ],
    ids=[
        "long",
        "long, not ASCII",
        "spaces and case",
        "emoji",
        "zero byte",
        "newline",
        "surrogate",
    ],
)
def test_ids_that_differ_are_different_users(monitor: MetricsMonitor, users: list[str]) -> None:
    for user in users * 2:
        monitor.record_user_activity(user)
    assert monitor.get_active_users() == len(users)
    assert len(set(monitor.get_active_user_ids())) == len(users)


def test_exact_up_to_the_maximum() -> None:
    with MetricsMonitor(max_users=2000, clock=ManualClock()) as monitor:
        names = [f"user-{number:05}" for number in range(2000)]
        for name in names:
            monitor.record_user_activity(name)
        assert monitor.get_active_users() == 2000
        assert monitor.get_active_user_ids() == names


def test_those_who_left_make_room() -> None:
    clock = ManualClock()
    with MetricsMonitor(max_users=100, user_timeout_seconds=60, clock=clock) as monitor:
        for shift in range(10):
            names = [f"shift-{shift}-{number:03}" for number in range(100)]
            for name in names:
                monitor.record_user_activity(name)
            assert monitor.get_active_user_ids() == names
            clock.advance(62)
            assert monitor.get_active_users() == 0


@pytest.mark.parametrize("many", [1_500, 20_000])
def test_past_the_maximum_it_is_an_estimate(many: int) -> None:
    clock = ManualClock()
    with MetricsMonitor(max_users=1000, clock=clock) as monitor:
        for _ in range(2):
            for number in range(many):
                monitor.record_user_activity(f"user-{number}")
        # A sample of a thousand has a standard error of some 3 %, one of five hundred 4.5 %.
        assert monitor.get_active_users() == pytest.approx(many, rel=0.25)
        assert len(monitor.get_active_user_ids()) <= 1000
        clock.advance(302)
        assert monitor.get_active_users() == 0
        for number in range(10):
            monitor.record_user_activity(f"user-{number}")
        assert monitor.get_active_users() == pytest.approx(10, abs=10)


def test_statistics_say_that_it_is_an_estimate() -> None:
    def said(users: int) -> dict[str, object]:
        with MetricsMonitor(max_users=100, clock=ManualClock()) as monitor:
            for number in range(users):
                monitor.record_user_activity(number)
            statistics = monitor.get_statistics()
            return {
                name: value
                for name, value in statistics["current"].items()
                if "user" in name and name != "active_users"
            }

    assert said(100) != said(1000)


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 30, 100, 299, 302, 1e6]), st.text(max_size=3)),
        max_size=60,
    )
)
def test_against_a_dictionary(steps: list[tuple[float, str]]) -> None:
    clock = ManualClock()
    seen: dict[str, float] = {}
    with MetricsMonitor(clock=clock) as monitor:
        for gap, user in steps:
            clock.advance(gap)
            if user:
                monitor.record_user_activity(user)
                seen[user] = clock.monotonic()
            now = clock.monotonic()
            surely = {user for user, at in seen.items() if now - at <= 299}
            perhaps = {user for user, at in seen.items() if now - at <= 301}
            reported = monitor.get_active_user_ids()
            assert reported == sorted(set(reported))
            assert surely <= set(reported) <= perhaps
            assert monitor.get_active_users() == len(reported)
