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

from metricsmw.alerts.rules import ROUTE_FIELDS, BurnRate, Rule, RuleStatus, advance, parse
from metricsmw.engine.reading.routes import RouteRow
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
    return Rule(
        draw(st.sampled_from(NUMERIC_FIELDS if route is None else ROUTE_FIELDS)),
        threshold,
        comparison,
        draw(st.floats(0, 604_800) | st.sampled_from([0.0, 5.0, 10.0])),
        clear,
        draw(severities),
        route,
        None if route is None else draw(st.none() | st.sampled_from(["GET", "_OTHER"])),
        draw(st.sampled_from(["", "SLOW", "too-many_2"])),
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
        before, status = status, advance(rule, status, value, now, now)
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
        ("error_rate > 5", "error_rate_pct"),
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

    def counts(self, minutes: int) -> tuple[int, int]:
        return self.windows[minutes]


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
    source = Numbers(idle)
    assert Rule("error_rate_pct", 5).value(source) is None
    assert Rule("cpu_usage_pct", 5).value(source) == 7.0
    assert Rule("request_rate_rpm", 5, "<").value(source) == 0.0


def test_a_route_of_any_method_is_as_bad_as_its_worst() -> None:
    source = Numbers(routes=[row("GET", "/a", 1.0), row("POST", "/a", 9.0), row("GET", "/b", 50.0)])
    assert Rule("error_rate_pct", 5, route="/a").value(source) == 9.0
    assert Rule("error_rate_pct", 5, route="/a", method="GET").value(source) == 1.0
    assert Rule("latency_p50_ms", 5, "<", route="/a").value(source) == 1.0
    assert Rule("requests", 5, route="/a").value(source) == 20
    assert Rule("requests", 5, route="/c").value(source) == 0
    assert Rule("error_rate_pct", 5, route="/c").value(source) is None
    assert Rule("requests", 5, route="/a", method="_OTHER").value(source) == 0


def test_a_burn_rate_is_that_of_the_calmer_window() -> None:
    rule = BurnRate(99.0, 10.0)
    assert rule.value(Numbers(windows={60: (1000, 200), 5: (100, 90)})) == pytest.approx(20.0)
    assert rule.value(Numbers(windows={60: (1000, 200), 5: (100, 1)})) == pytest.approx(1.0)
    assert rule.value(Numbers(windows={60: (1000, 200), 5: (0, 0)})) is None


@pytest.mark.parametrize("broken", [math.nan, None, "5", True])
def test_what_is_no_number_is_an_error(broken: Any) -> None:
    with pytest.raises(ValueError, match="cpu_usage_pct is not a number"):
        Rule("cpu_usage_pct", 5).value(Numbers({"request_rate_rpm": 1.0, "cpu_usage_pct": broken}))
