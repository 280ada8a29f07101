"""Rules: the state machine against a plain model, their text, and what makes no rule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw.alerts.grammar import parse
from metricsmw.alerts.rules import ROUTE_FIELDS, SPAN_FIELDS, BurnRate, Rule
from metricsmw.alerts.states import Look, RuleStatus, advance
from metricsmw.alerts.values import PastCounts, look
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.spans import StepTable
from metricsmw.snapshot import NUMERIC_FIELDS

finite = st.floats(allow_nan=False, allow_infinity=False, width=32).map(float)
comparisons = st.sampled_from([">", ">=", "<", "<="])
severities = st.sampled_from(["info", "warning", "critical"])
# Few values, so that they meet the thresholds.
values = st.one_of(st.none(), st.just(math.nan), st.integers(-3, 3).map(float), st.just(math.inf))


@st.composite
def rules(draw: st.DrawFn, numbers: st.SearchStrategy[float] = finite) -> Rule:
    route = draw(
        st.none() | st.sampled_from(["/", "/items/{id}", "/items/<int:id>", "<unmatched>"])
    )
    comparison = draw(comparisons)
    threshold = draw(numbers)
    clear = draw(st.none() | numbers)
    if clear is not None and (clear > threshold) is comparison.startswith(">"):
        threshold, clear = clear, threshold
    name = draw(st.sampled_from(NUMERIC_FIELDS if route is None else ROUTE_FIELDS))
    counted = name in SPAN_FIELDS
    return Rule(
        name,
        threshold,
        comparison,
        draw(st.floats(0, 604_800) | st.sampled_from([0.0, 5.0, 10.0])),
        clear,
        draw(severities),
        route,
        None if route is None else draw(st.none() | st.sampled_from(["GET", "_OTHER"])),
        draw(st.sampled_from(["", "SLOW", "too-many_2"])),
        draw(st.none() | st.floats(1, 604_800)) if counted else None,
        draw(st.none() | st.integers(1, 10**9)) if counted else None,
        draw(st.none() | st.floats(1, 604_800)),
    )


burn_rates = st.builds(
    BurnRate,
    st.floats(0.001, 99.999),
    st.floats(0.01, 1000),
    st.integers(3, 60),
    st.integers(1, 2),
    severities,
    st.floats(0, 600),
)


@dataclass
class Model:
    """The promise, plainly: since when it has been beyond without a break, whether it fires."""

    rule: Rule
    beyond_since: float | None = None
    firing: bool = False
    has_recovered: bool = False
    told: list[str] = field(default_factory=list)

    def holds(self, value: float | None, limit: float) -> bool:
        if value is None:
            return False
        return {
            ">": value > limit, ">=": value >= limit, "<": value < limit, "<=": value <= limit
        }[self.rule.comparison]  # fmt: skip

    def look(self, value: float | None, now: float) -> None:
        if value is not None and math.isnan(value):
            return
        if self.firing:
            clear = self.rule.threshold if self.rule.clear is None else self.rule.clear
            if not self.holds(value, clear):
                self.firing, self.beyond_since = False, None
                self.told.append("resolved")
            return
        if not self.holds(value, self.rule.threshold):
            self.beyond_since = None
            return
        if self.beyond_since is None:
            self.beyond_since = now
        if now - self.beyond_since >= self.rule.for_seconds:
            self.firing = True
            self.told.append("firing")


@given(
    rules(st.integers(-2, 2).map(float)),
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 5.0, 30.0]), values), max_size=40),
)
def test_the_states_are_those_of_the_model(
    rule: Rule, looks: Sequence[tuple[float, float | None]]
) -> None:
    model, status, now = Model(rule), RuleStatus(), 1000.0
    told: list[str] = []
    for wait, value in looks:
        now += wait
        before, status = status, advance(rule, status, Look(now, now, value))
        model.look(value, now)
        if status.state != before.state and status.state in ("firing", "resolved"):
            told.append(status.state)
        assert (status.state == "firing") is model.firing
        assert (status.state in ("pending", "firing")) is (model.beyond_since is not None)
        if model.beyond_since is not None:
            assert status.beyond_at == model.beyond_since
    assert told == model.told
    # One message each, by turns: what recovers was firing, what fires has recovered.
    assert told[::2] == ["firing"] * len(told[::2])
    assert told[1::2] == ["resolved"] * len(told[1::2])


@given(rules() | burn_rates)
def test_a_rule_is_read_back_from_its_text(rule: Rule | BurnRate) -> None:
    assert parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("error_rate_pct > 5", Rule("error_rate_pct", 5.0)),
        (
            "error_rate_pct>5 for 2m clear 3 critical",
            Rule("error_rate_pct", 5.0, for_seconds=120.0, clear=3.0, severity="critical"),
        ),
        (
            "SLOW: latency_p95_ms >= 800 on GET /items/{id} for 1h",
            Rule(
                "latency_p95_ms", 800.0, ">=", 3600.0, None, "warning", "/items/{id}", "GET", "SLOW"
            ),
        ),
        ("burn_rate(99.9, 1h, 5m) > 14.4", BurnRate(99.9)),
        ("server_burn_rate(99.9, 1h, 5m) > 14.4", BurnRate(99.9, is_of_server=True)),
        ("p95 < 300 at least 100 requests", Rule("latency_p95_ms", 300.0, "<", at_least=100)),
        ("error_rate > 5 over 1m", Rule("error_rate_pct", 5.0, over_seconds=60.0)),
        (
            "cpu > 80 repeat every 4h critical for 1m",
            Rule(
                "cpu_share_pct",
                80.0,
                for_seconds=60.0,
                severity="critical",
                repeat_seconds=14_400.0,
            ),
        ),
        (
            "burn_rate(99.9, 1h, 5m) > 6 at least 50 repeat 1d",
            BurnRate(99.9, 6.0, at_least=50, repeat_seconds=86_400.0),
        ),
    ],
)
def test_texts(text: str, rule: Rule | BurnRate) -> None:
    assert parse(text) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a rule"),
        ("error_rate_pct", "not a rule"),
        ("error_rate_pct > five", "five"),
        ("error_rate_pct > 5 for ever", "for ever"),
        ("error_ratio > 5", "error_rate_pct"),
        ("error_rate_pct > 5 for 1m for 2m", "says for twice"),
        ("error_rate_pct > 5 sometimes", "at 'sometimes'"),
        ("cpu_share_pct > 5 over 1m", '"over" needs a field that is counted'),
        ("workers > 5 at least 10 requests", '"at least" needs a field that is counted'),
        ("error_rate_pct > 5 over 0s", "over_seconds must be from 1 to 604800"),
        ("error_rate_pct > 5 at least 0 requests", "at_least must be a whole number from 1"),
        ("error_rate_pct > 5 repeat every 0s", "repeat_seconds must be from 1 to 604800"),
        ("burn_rate(99, 60m, 5m) > 1 over 1m", "windows in brackets"),
        ("timestamp > 5", "no snapshot field 'timestamp'"),
        ("memory_usage_pct > 5 on /x", "no route field 'memory_usage_pct'"),
        ("error_rate_pct > 5 clear 6", "clear must be at most the threshold"),
        ("request_rate_rpm < 5 clear 4", "clear must be at least the threshold"),
        ("error_rate_pct > 5 for 1000h", "for_seconds must be from 0 to 604800"),
        ("error_rate_pct > 1e999", "finite"),
        ("burn_rate(100, 60m, 5m) > 1", "objective must be a percentage above 0 and below 100"),
        ("burn_rate(99, 5m, 60m) > 1", "short_minutes must be from 1"),
        ("burn_rate(99, 90s, 60s) > 1", "whole minutes"),
        ("burn_rate(99, 60m, 5m) > 1 on /x", "whole server"),
        ("burn_rate(99, 60m, 5m) < 1", "compares by"),
    ],
)
def test_what_makes_no_rule_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"threshold": "5"}, TypeError),
        ({"threshold": True}, TypeError),
        ({"threshold": math.nan}, ValueError),
        ({"threshold": 5, "for_seconds": -1}, ValueError),
        ({"threshold": 5, "comparison": "=="}, ValueError),
        ({"threshold": 5, "severity": "bad"}, ValueError),
        ({"threshold": 5, "clear": math.inf}, ValueError),
        ({"threshold": 5, "method": "GET"}, ValueError),
        ({"threshold": 5, "method": "get", "route": "/"}, ValueError),
        ({"threshold": 5, "method": "FETCH", "route": "/"}, ValueError),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Rule("error_rate_pct", **settings)


@dataclass
class Numbers:
    """A source of which the tests say what it holds."""

    snapshot: Mapping[str, str | float | int] = field(default_factory=dict)
    routes: Sequence[RouteRow] = ()
    windows: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    window_requests: int = 100
    is_covered: bool = True
    now: float = 1000.0
    wall: float = 2000.0

    def counts(self, minutes: int) -> PastCounts:
        return PastCounts(*self.windows[minutes], self.is_covered)

    def step_table(self, method: str | None, route: str | None) -> StepTable:
        raise AssertionError

    def value(self, rule: Rule | BurnRate) -> float | None:
        return look(rule, self).value


def row(method: str, route: str, error_rate: float, requests: int = 10) -> RouteRow:
    return {
        "method": method,
        "route": route,
        "requests": requests,
        "error_rate_pct": error_rate,
        "latency_p50_ms": 1.0,
        "latency_p95_ms": 2.0,
        "latency_p99_ms": 3.0,
        "latency_max_ms": 4.0,
        "statuses": {},
    }


def test_without_a_request_there_is_no_error_rate() -> None:
    idle = {"request_rate_rpm": 0.0, "error_rate_pct": 0.0, "cpu_usage_pct": 7.0}
    source = Numbers(idle, window_requests=0)
    assert source.value(Rule("error_rate_pct", 5)) is None
    assert source.value(Rule("cpu_usage_pct", 5)) == 7.0
    assert source.value(Rule("request_rate_rpm", 5, "<")) == 0.0


def test_a_route_of_any_method_is_as_bad_as_its_worst() -> None:
    source = Numbers(routes=[row("GET", "/a", 1.0), row("POST", "/a", 9.0), row("GET", "/b", 50.0)])
    assert source.value(Rule("error_rate_pct", 5, route="/a")) == 9.0
    assert source.value(Rule("error_rate_pct", 5, route="/a", method="GET")) == 1.0
    assert source.value(Rule("latency_p50_ms", 5, "<", route="/a")) == 1.0
    assert source.value(Rule("requests", 5, route="/a")) == 20
    assert source.value(Rule("requests", 5, route="/c")) == 0
    assert source.value(Rule("error_rate_pct", 5, route="/c")) is None
    assert source.value(Rule("requests", 5, route="/a", method="_OTHER")) == 0


def test_a_burn_rate_is_that_of_the_calmer_window() -> None:
    rule = BurnRate(99.0, 10.0)
    assert Numbers(windows={60: (1000, 200), 5: (100, 90)}).value(rule) == pytest.approx(20.0)
    assert Numbers(windows={60: (1000, 200), 5: (100, 1)}).value(rule) == pytest.approx(1.0)
    assert Numbers(windows={60: (1000, 200), 5: (0, 0)}).value(rule) is None


@pytest.mark.parametrize(
    ("rule", "source", "enough"),
    [
        (Rule("error_rate_pct", 5), Numbers({"error_rate_pct": 50.0}, window_requests=19), False),
        (Rule("error_rate_pct", 5), Numbers({"error_rate_pct": 50.0}, window_requests=20), True),
        (
            Rule("error_rate_pct", 5, at_least=2),
            Numbers({"error_rate_pct": 50.0}, window_requests=2),
            True,
        ),
        (Rule("workers", 5), Numbers({"workers": 6}, window_requests=0), True),
        (Rule("error_rate_pct", 5, route="/a"), Numbers(routes=[row("GET", "/a", 9.0)]), False),
        (
            Rule("error_rate_pct", 5, route="/a", at_least=10),
            Numbers(routes=[row("GET", "/a", 9.0)]),
            True,
        ),
        (BurnRate(99.0), Numbers(windows={60: (99, 99), 5: (5, 5)}), False),
        (BurnRate(99.0), Numbers(windows={60: (100, 99), 5: (5, 5)}), True),
        (BurnRate(99.0, at_least=9), Numbers(windows={60: (9, 9), 5: (5, 5)}), True),
        (BurnRate(99.0), Numbers(windows={60: (100, 99), 5: (5, 5)}, is_covered=False), False),
    ],
)
def test_a_rule_needs_so_many_requests_to_fire(
    rule: Rule | BurnRate, source: Numbers, enough: bool
) -> None:
    assert look(rule, source).is_enough is enough


def test_too_few_requests_do_not_end_what_fires() -> None:
    rule = Rule("error_rate_pct", 5, clear=3)
    status = advance(rule, RuleStatus(), Look(0.0, 0.0, 50.0, False))
    assert status.state == "inactive"
    status = advance(rule, status, Look(1.0, 1.0, 50.0))
    assert advance(rule, status, Look(2.0, 2.0, 50.0, False)).state == "firing"
    assert advance(rule, status, Look(2.0, 2.0, 3.0, False)).state == "resolved"


@pytest.mark.parametrize("broken", [math.nan, None, "5", True])
def test_what_is_no_number_is_an_error(broken: Any) -> None:
    with pytest.raises(ValueError, match="cpu_usage_pct is not a number"):
        Numbers({"request_rate_rpm": 1.0, "cpu_usage_pct": broken}).value(Rule("cpu_usage_pct", 5))
