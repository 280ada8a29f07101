"""Alert rules as Prometheus evaluates them: the same number, threshold, wait and hysteresis.

A rule reads the server's window, or the span that it names (``over``, or half of ``for``); in
Prometheus it is a rate over as long a time, at least a minute, as Prometheus needs some scrapes.
``at least`` is a condition on the requests of that time.
``clear`` has no counterpart there: once an alert fires, its own series `ALERTS` holds it until the
value is past ``clear``. Telling again (``repeat every``) is Alertmanager's ``repeat_interval``.
Every expression is of one scraped server, so that each has alerts of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from metricsmw.alerts.rules import AnyRule, BurnRate, CustomRule, Rule, identity
from metricsmw.alerts.values import goes_by_steps
from metricsmw.engine.storage.keys import OTHER, UNMATCHED
from metricsmw.exporters.model import CounterFamily, GaugeFamily, HistogramFamily
from metricsmw.exporters.names import label_name, metric_name, readable
from metricsmw.snapshot import FIRST_BYTE_FIELDS

GROUP = "metricsmw"
OVERALL = "metricsmw_request_duration_seconds"
BY_ROUTE = "http_server_request_duration_seconds"
STREAMS = "metricsmw_stream_duration_seconds"
STREAMS_FIRST_BYTE = "metricsmw_stream_first_byte_duration_seconds"
ERRORS = "metricsmw_request_errors_total"
SERVER_ERRORS = "metricsmw_request_server_errors_total"
SERVER_LABELS = "job, instance"
ANSWER_LABELS = "http_response_status_code, error_type, url_scheme"
_UNPRINTABLE = re.compile("[\x7f-\x9f\ufffe\uffff]")
# The shortest time that rates are taken over.
LEAST_SECONDS = 60


def _percentile(quantile: str) -> Callable[[str], str]:
    return lambda window: f"1000 * histogram_quantile({quantile}, rate({OVERALL}[{window}]))"


def first_bytes(where: str, window: str, labels: str) -> str:
    """Return the times to first byte of all requests: those of streams, not their durations.

    Each of the three only grows, and so each has a rate; what they come to does not, as they are
    not counted at one moment.

    Args:
        where: The labels of the series, in braces; "": all.
        window: The time that rates are taken over.
        labels: What the sums keep, as "by (job)" or "without (status)".
    """
    everything, whole, first = (
        f"sum {labels} (rate({name}{where}[{window}]))"
        for name in (BY_ROUTE, STREAMS, STREAMS_FIRST_BYTE)
    )
    return f"({everything} - {whole} + {first} or {everything})"  # without any stream: the last


def _first_byte(quantile: str) -> Callable[[str], str]:
    def expression(window: str) -> str:
        times = first_bytes("", window, f"by ({SERVER_LABELS})")
        return f"1000 * histogram_quantile({quantile}, {times})"

    return expression


def _gauge(name: str, factor: str = "") -> Callable[[str], str]:
    return lambda window: f"{factor}{name}"


def _error_rate(window: str, errors: str = ERRORS) -> str:
    requests = "metricsmw_requests_total"
    return f"rate({errors}[{window}]) / rate({requests}[{window}])"


# For each field of a snapshot, its expression over a time such as "5m".
FIELDS: Final[Mapping[str, Callable[[str], str]]] = {
    "request_rate_rpm": lambda window: f"60 * rate(metricsmw_requests_total[{window}])",
    "error_rate_pct": lambda window: f"100 * ({_error_rate(window)})",
    "server_error_rate_pct": lambda window: f"100 * ({_error_rate(window, SERVER_ERRORS)})",
    "latency_p50_ms": _percentile("0.5"),
    "latency_p95_ms": _percentile("0.95"),
    "latency_p99_ms": _percentile("0.99"),
    "latency_max_ms": _percentile("1"),
    "latency_ttfb_p50_ms": _first_byte("0.5"),
    "latency_ttfb_p95_ms": _first_byte("0.95"),
    "latency_ttfb_p99_ms": _first_byte("0.99"),
    "active_users": _gauge("metricsmw_users_active"),
    "memory_usage_mb": lambda window: (
        "sum without (process_pid) (process_memory_usage_bytes) / 1048576"
    ),
    "cpu_usage_pct": lambda window: (
        "100 * sum without (process_pid, cpu_mode) "
        f"(rate(process_cpu_time_seconds_total[{window}]))"
    ),
    "websocket_connections": _gauge("metricsmw_websocket_connections"),
    "total_requests": _gauge("metricsmw_requests_total"),
    "total_errors": _gauge("metricsmw_request_errors_total"),
    "total_server_errors": _gauge(SERVER_ERRORS),
    "requests_in_flight": _gauge("http_server_active_requests"),
    "workers": _gauge("metricsmw_workers"),
}
QUANTILES: Final = {
    "latency_p50_ms": "0.5",
    "latency_p95_ms": "0.95",
    "latency_p99_ms": "0.99",
    "latency_max_ms": "1",
    "latency_ttfb_p50_ms": "0.5",
    "latency_ttfb_p95_ms": "0.95",
    "latency_ttfb_p99_ms": "0.99",
}


def _selector(rule: Rule) -> str:
    """Return the labels of a rule's route."""
    found = {}
    if rule.route == OTHER:
        found["otel_metric_overflow"] = "true"
    elif rule.route == UNMATCHED:
        found |= {"http_route": "", "otel_metric_overflow": ""}
    else:
        found["http_route"] = str(rule.route)
    if rule.method is not None:
        found["http_request_method"] = rule.method
    pairs = (f"{name}={_quoted(value)}" for name, value in found.items())
    return "{" + ",".join(pairs) + "}"


def _route_expression(rule: Rule, window: str) -> str:
    where = _selector(rule)
    # A row of the table is several series there, one for each status.
    durations = f"sum without ({ANSWER_LABELS}) (rate({BY_ROUTE}{where}[{window}]))"
    counted = f"histogram_count({durations})"
    requests = f"({counted} + rate(metricsmw_route_abandoned_total{where}[{window}]))"
    if rule.field == "requests":
        seconds = f"{window_seconds(window)} * "
        return f"{seconds}sum by ({SERVER_LABELS}) ({requests})"
    if rule.field == "error_rate_pct":
        value = f"100 * rate(metricsmw_route_errors_total{where}[{window}]) / {requests}"
    elif rule.field == "server_error_rate_pct":
        # By the conventions only an error of the server has a type; where there was none, it is 0.
        own = where[:-1] + ',error_type!=""}'
        failed = f"rate({BY_ROUTE}{own}[{window}])"
        failed = f"histogram_count(sum without ({ANSWER_LABELS}) ({failed}))"
        value = f"100 * ({failed} or 0 * {counted}) / {requests}"
    elif rule.field not in QUANTILES:
        raise ValueError(f"{rule.field} is not exported, so Prometheus cannot watch it")
    else:
        quantile = QUANTILES[rule.field]
        if rule.field in FIRST_BYTE_FIELDS:
            durations = first_bytes(where, window, f"without ({ANSWER_LABELS})")
        value = f"1000 * histogram_quantile({quantile}, {durations})"
    worst = "min" if rule.comparison.startswith("<") else "max"
    return f"{worst} by ({SERVER_LABELS}) ({value})"


def _custom_expression(rule: CustomRule, window: str) -> str:
    """Return the PromQL of a number of the app's own, which is named as the rule names it."""
    pairs = (f"{label_name(label)}={_quoted(value)}" for label, value in rule.labels)
    where = "{" + ",".join(pairs) + "}" if rule.labels else ""
    by_server = f"sum by ({SERVER_LABELS})"
    if rule.taken == "value":
        return f"{by_server} ({metric_name(GaugeFamily(rule.metric, '', '', []))}{where})"
    if rule.taken == "rate":
        name = metric_name(CounterFamily(rule.metric, "", "", []))
        return f"60 * {by_server} (rate({name}{where}[{window}]))"
    name = metric_name(HistogramFamily(rule.metric, "", "", []))
    values = f"{by_server} (rate({name}{where}[{window}]))"
    if rule.taken == "mean":
        return f"histogram_sum({values}) / histogram_count({values})"
    return f"histogram_quantile(0.{rule.taken.removeprefix('p')}, {values})"


def window_seconds(window: str) -> int:
    """Return the seconds of a Prometheus duration such as "5m"; `ValueError` for another text."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = window[:-1], window[-1:]
    if unit not in units or not (number.isascii() and number.isdigit() and int(number)):
        raise ValueError(f'a window must be like "300s", "5m" or "1h", got {window!r}')
    return int(number) * units[unit]


def expression(rule: AnyRule, window: str = "5m") -> str:
    """Return the PromQL of what a rule watches, without its threshold.

    Args:
        rule: The rule; no burn rate, which has a value for each of its windows.
        window: The time that stands for the server's window.

    Raises:
        ValueError: What the rule watches is not exported.
    """
    if isinstance(rule, CustomRule):
        return _custom_expression(rule, window)
    assert isinstance(rule, Rule)
    if rule.route is not None:
        return _route_expression(rule, window)
    if rule.field not in FIELDS:
        raise ValueError(f"{rule.field} is not exported, so Prometheus cannot watch it")
    return FIELDS[rule.field](window)


def span(rule: AnyRule, window: str) -> str:
    """Return the time that a rule's rates are over; ``window`` where the rule does not say."""
    if isinstance(rule, BurnRate) or (isinstance(rule, Rule) and not goes_by_steps(rule)):
        return window
    if rule.over_seconds is not None:
        return f"{max(math.ceil(rule.over_seconds), LEAST_SECONDS)}s"
    if not rule.for_seconds:
        return window
    half = max(int(rule.for_seconds / 2), LEAST_SECONDS)
    return f"{half}s" if half < window_seconds(window) else window


def _enough(rule: AnyRule, window: str) -> str:
    """Return the PromQL that is true while there are enough requests; "" where it always is."""
    if isinstance(rule, BurnRate):
        # A series that was not there before the long window says nothing of it.
        window = f"{rule.long_minutes}m"
        there = f" and on ({SERVER_LABELS}) metricsmw_requests_total offset {window}"
        return f"increase(metricsmw_requests_total[{window}]) >= {rule.at_least}{there}"
    if rule.least_requests <= 1:
        return ""
    if rule.route is None:
        return f"increase(metricsmw_requests_total[{window}]) >= {rule.least_requests}"
    requests = Rule("requests", 0, route=rule.route, method=rule.method)
    return f"{_route_expression(requests, window)} >= {rule.least_requests}"


def condition(rule: AnyRule, window: str = "5m") -> str:
    """Return the PromQL that is true, for a server, while a rule's value is beyond.

    Raises:
        ValueError: What the rule watches is not exported, or the window is none.
    """
    window_seconds(window)
    window = span(rule, window)
    beyond = _compare(rule, rule.threshold, window)
    if enough := _enough(rule, window):
        beyond = f"({beyond}) and on ({SERVER_LABELS}) ({enough})"
    if rule.clear is None or rule.clear == rule.threshold:
        return beyond
    # Rules may share a name, as all on a latency do.
    firing = f'ALERTS{{alertstate="firing", rule={_quoted(rule_label(rule))}}}'
    held = _compare(rule, rule.clear, window)
    return f"({beyond}) or (({held}) and on ({SERVER_LABELS}) {firing})"


def rule_label(rule: AnyRule) -> str:
    """Return the label that tells a rule from others of its name: what it says but its numbers."""
    return _plain(identity(rule))


def _plain(text: str) -> str:
    """Return text that is no template of Prometheus', as one with two braces would be."""
    return re.sub(r"\{(?=\{)", "{ ", text)


def _quoted(text: str) -> str:
    """Return a string of YAML, and of PromQL, of text as it is exported.

    JSON's strings are both, but for some characters that YAML takes escaped only.
    """
    quoted = json.dumps(readable(text), ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _compare(rule: AnyRule, threshold: float, window: str) -> str:
    number = repr(float(threshold))
    if not isinstance(rule, BurnRate):
        return f"{expression(rule, window)} {rule.comparison} {number}"
    budget = repr(round(1 - rule.objective / 100, 12))
    errors = SERVER_ERRORS if rule.is_of_server else ERRORS
    long, short = (
        f"({_error_rate(f'{minutes}m', errors)}) / {budget} {rule.comparison} {number}"
        for minutes in (rule.long_minutes, rule.short_minutes)
    )
    return f"({long}) and ({short})"


def rules_file(rules: Sequence[AnyRule], window: str = "5m") -> str:
    """Return the rules as a file for Prometheus' ``rule_files``.

    Args:
        rules: The rules.
        window: The time that stands for the server's window.

    Raises:
        ValueError: What a rule watches is not exported, or the window is none.
    """
    lines = ["groups:", f"- name: {GROUP}", "  rules:" if rules else "  rules: []"]
    for rule in rules:
        lines += (
            f"  - alert: {_quoted(rule.name)}",
            f"    expr: {_quoted(condition(rule, window))}",
            f"    for: {int(rule.for_seconds)}s",
            f"    labels: {{severity: {rule.severity}, rule: {_quoted(rule_label(rule))}}}",
            "    annotations:",
            f"      summary: {_quoted(_plain(str(rule)))}",
            '      value: "{{ $value }}"',
        )
    return "\n".join(lines) + "\n"
