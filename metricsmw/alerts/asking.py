"""Rules that are asked once, as `metricsmw check` does: does what they say hold now?

An alert rule says what is wrong, such a rule what is right: ``p95 < 300 at least 100 requests``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict

from metricsmw.alerts.custom import found_custom
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.rules import (
    NEEDS_REQUESTS,
    NEW_ERRORS,
    SPAN_FIELDS,
    AnyRule,
    Comparison,
    CustomRule,
    Rule,
    is_beyond,
)
from metricsmw.alerts.source import ReadingInput
from metricsmw.alerts.values import found_now, found_over

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

Verdict = Literal["ok", "violated", "unknown"]
MAX_RULES = 100


class CheckedRule(TypedDict):
    """Whether what a rule says holds.

    ``value`` and ``requests``: what was found, and of how many requests; ``over_seconds``: the span
    that it is of, None: the window, or the moment. ``reason``: why it is not known, else "".
    """

    rule: str
    verdict: Verdict
    field: str
    value: float | None
    comparison: Comparison
    threshold: float
    requests: int
    over_seconds: float | None
    reason: str


def check_now(
    monitor: MetricsMonitor, texts: Sequence[str], over_seconds: int | None = None
) -> list[CheckedRule]:
    """Return whether what rules say holds.

    Args:
        monitor: Whose numbers.
        texts: The rules.
        over_seconds: Rates and latencies are those of so many seconds, where the rule does not say;
            None: of the window.

    Raises:
        ValueError: A text is no rule that can be asked once, or a span is longer than the window.
    """
    if len(texts) > MAX_RULES:
        raise ValueError(f"there may be up to {MAX_RULES} rules, got {len(texts)}")
    window = monitor.settings.window_seconds
    rules = [_asked(text, over_seconds, window) for text in texts]
    source = ReadingInput(monitor)
    return [_check(text, rule, source, window) for text, rule in zip(texts, rules, strict=True)]


def _asked(text: str, over_seconds: int | None, window: int) -> AnyRule:
    rule = parse(text)
    if rule.for_seconds or rule.clear is not None or rule.repeat_seconds is not None:
        raise ValueError(
            f'a rule that is asked once has no "for", "clear" or "repeat": {text!r}; '
            '"over" names a span'
        )
    if isinstance(rule, CustomRule) and rule.taken != "value":
        raise ValueError(
            f"a {rule.taken} of the app's own numbers takes several looks, so that only an alerter "
            f'can watch it; what can be asked once is a "value": {text!r}'
        )
    if not isinstance(rule, Rule):
        return rule
    if rule.field in NEEDS_REQUESTS and rule.at_least is None:
        rule = replace(rule, at_least=1)
    if rule.field in SPAN_FIELDS and rule.over_seconds is None and over_seconds is not None:
        rule = replace(rule, over_seconds=over_seconds)
    is_long = rule.over_seconds is not None and rule.over_seconds > window
    if is_long and rule.field != NEW_ERRORS:
        raise ValueError(
            f"a span must be at most the server's window ({window} s), "
            f"got {rule.over_seconds:g} s: {text!r}"
        )
    return rule


def _check(text: str, rule: AnyRule, source: ReadingInput, window: int) -> CheckedRule:
    over = rule.over_seconds
    if isinstance(rule, CustomRule):
        found = found_custom(rule, source)
    elif isinstance(rule, Rule) and rule.field != NEW_ERRORS and over is not None:
        found = found_over(rule, source, window)
    else:
        found = found_now(rule, source)
    value = None if found.value is None or math.isnan(found.value) else found.value
    reason = ""
    if found.requests < rule.least_requests:
        reason = f"{found.requests} requests, at least {rule.least_requests} needed"
    elif not found.is_covered or value is None:
        reason = "there are no numbers of that time yet"
    holds = is_beyond(rule, value, rule.threshold)
    return {
        "rule": text,
        "verdict": "unknown" if reason else "ok" if holds else "violated",
        "field": rule.field,
        "value": value,
        "comparison": rule.comparison,
        "threshold": float(rule.threshold),
        "requests": found.requests,
        "over_seconds": over,
        "reason": reason,
    }
