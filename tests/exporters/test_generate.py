"""`metricsmw generate`: rules that Prometheus keeps as we do, queries that have data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kits.engines import PROMETHEUS_SUITES, prometheus, promtool
from kits.servers import serve, wait_until

from metricsmw.alerts.grammar import parse
from metricsmw.alerts.states import Look, RuleStatus, advance
from metricsmw.cli.main import main
from metricsmw.exporters.grafana import dashboard, queries
from metricsmw.exporters.prometheus_rules import (
    FIELDS,
    condition,
    expression,
    rule_label,
    rules_file,
)
from metricsmw.snapshot import NUMERIC_FIELDS

pytestmark = pytest.mark.timeout(240)

RULES = [
    *(f"{field} > 5 for 2m clear 3" for field in FIELDS),
    "latency_p99_ms > 500 on GET /items/{id} for 90s",
    "server_error_rate > 1 on GET /items/{id} over 2m",
    "latency_ttfb_p95_ms > 300 on GET /items/{id}",
    'latency_p95_ms < 1 on /quoted/"\\d+"',
    "error_rate_pct > 1 on <unmatched>",
    "requests < 1 on POST <other> for 1h clear 2",
    "latency_max_ms >= 1e3 on /é critical",
    "burn_rate(99.9, 60m, 5m) > 14.4 critical",
    "MINUTE: error_rate_pct > 5 over 90s at least 50 requests critical repeat every 4h",
    "SLOW: latency_p99_ms > 500 on GET /items/{id} over 2m at least 50 requests",
    "BUSY: request_rate_rpm > 500 for 10s",
    "SLO: burn_rate(95, 6h, 30m) > 6 for 2m clear 3 info",
    'orders_failed{shop="nor\\"th"} rate > 5 for 2m',
    "latency_p99_ms > 500 on GET /{{{\0\x01\x7f\x9b\udc80\ufffe\U0001f600",
    "queue_length value > 100 for 1m clear 50",
    "payment_seconds p99 > 2 over 2m",
    "payment_seconds mean > 2 critical",
]


@pytest.mark.parametrize("suite", PROMETHEUS_SUITES)
def test_promtool_takes_all_rules(suite: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules_file([parse(text) for text in RULES]))
    status, said = promtool(suite, "check", "rules", str(tmp_path / "rules.yml"))
    assert status == 0, said
    assert f"{len(RULES)} rules found" in said


# --- the same cases as our own state machine ------------------------------------------------------

# A value a minute: it rises past the threshold, dips, stays, falls between `clear` and the
# threshold, and past `clear`.
COURSES = {
    "workers": ("workers > 5 for 2m clear 3", "metricsmw_workers"),
    "no clear": ("workers > 5 for 2m", "metricsmw_workers"),
    "at once": ("workers >= 5 clear 4", "metricsmw_workers"),
    "own": ("queue_length value > 5 for 2m clear 3", "queue_length"),
    "below": ("active_users < 3 for 1m clear 5", "metricsmw_users_active"),
}
VALUES = [1, 6, 2, 7, 8, 9, 6, 4, 4, 6, 4, 3, 2, 6, 6, 6, 5, 5, 3, 1, 1, 4, 4, 5, 6, 7]


def ours(text: str) -> Iterator[bool]:
    """Yield for each minute whether our own rule fires."""
    rule = parse(text)
    status = RuleStatus()
    for minute, value in enumerate(VALUES):
        status = advance(rule, status, Look(minute * 60.0, minute * 60.0, float(value)))
        yield status.state == "firing"


def test_case(text: str, series: str) -> str:
    rule = parse(text)
    labels = {"severity": rule.severity, "rule": rule_label(rule), "job": "j", "instance": "i"}
    lines = [
        "rule_files: [rules.yml]",
        "evaluation_interval: 1m",
        "tests:",
        "- interval: 1m",
        "  input_series:",
        f'  - series: \'{series}{{job="j", instance="i"}}\'',
        f"    values: '{' '.join(map(str, VALUES))}'",
        "  alert_rule_test:",
    ]
    for minute, (value, fires) in enumerate(zip(VALUES, ours(text), strict=True)):
        lines += f"  - eval_time: {minute}m", f"    alertname: {rule.name}"
        expected = {
            "exp_labels": labels,
            "exp_annotations": {"summary": str(rule), "value": str(value)},
        }
        lines.append(f"    exp_alerts: {json.dumps([expected] if fires else [])}")
    return "\n".join(lines) + "\n"


test_case.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("suite", PROMETHEUS_SUITES)
@pytest.mark.parametrize(("text", "series"), COURSES.values(), ids=COURSES)
def test_prometheus_fires_when_we_do(suite: str, text: str, series: str, tmp_path: Path) -> None:
    assert len(set(ours(text))) == 2, "it fires at times, and at times it does not"
    (tmp_path / "rules.yml").write_text(rules_file([parse(text)]))
    (tmp_path / "test.yml").write_text(test_case(text, series))
    status, said = promtool(suite, "test", "rules", "test.yml", cwd=tmp_path)
    assert status == 0, said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'orders_failed{shop="north"} rate > 5 for 2m',
            '60 * sum by (job, instance) (rate(orders_failed_total{shop="north"}[60s])) > 5.0',
        ),
        ("orders rate < 5", "60 * sum by (job, instance) (rate(orders_total[5m])) < 5.0"),
        ("queue value > 5 for 2m", "sum by (job, instance) (queue) > 5.0"),
        (
            "payment_seconds p95 > 2 over 90s",
            "histogram_quantile(0.95, sum by (job, instance) (rate(payment_seconds[90s]))) > 2.0",
        ),
    ],
)
def test_the_apps_own_numbers_are_translated(text: str, expected: str) -> None:
    assert condition(parse(text)) == expected


# --- real numbers ---------------------------------------------------------------------------------


OWN = ('orders{shop="north"} rate', "queue value", "payment_seconds p99", "payment_seconds mean")


def test_every_query_has_data() -> None:
    with (
        serve("gunicorn", "apps.sent:wsgi", workers=2) as server,
        prometheus("forky", {"app": server.port}, path="/api/metrics/prometheus") as engine,
    ):
        for _ in range(3):
            server.get("/sent?ms=5,20,100")
            before = engine.value("metricsmw_requests_total") or 0
            wait_until(
                lambda: (engine.value("metricsmw_requests_total") or 0) > before,  # noqa: B023
                "a scrape",
            )
        asked = [
            query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
            for query in queries()
        ]
        asked += [expression(parse(f"{field} > 1"), "1m") for field in FIELDS]
        asked += [expression(parse(f"{own} > 1"), "1m") for own in OWN]
        asked += [
            expression(parse(f"{field} > 1 on GET /sent"), "1m")
            for field in (
                *("requests", "error_rate_pct", "server_error_rate_pct"),
                *("latency_p99_ms", "latency_ttfb_p99_ms"),
            )
        ]
        for query in asked:
            found = engine.query(query)
            assert found, query
            assert all(sample.value == sample.value for sample in found), query


def test_the_dashboard_is_whole() -> None:
    made = json.loads(json.dumps(dashboard("Shop")))
    assert made["title"] == "Shop"
    places = [panel["gridPos"] for panel in made["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    taken = {
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(taken) == sum(place["w"] * place["h"] for place in places), "none lies on another"


def test_fields_that_are_not_exported_are_named() -> None:
    missing = set(NUMERIC_FIELDS) - set(FIELDS)
    assert missing == {"memory_usage_pct", "cpu_share_pct"}
    with pytest.raises(ValueError, match="memory_usage_pct is not exported"):
        rules_file([parse("memory_usage_pct > 80")])


@pytest.mark.parametrize(
    ("text", "window", "condition"),
    [
        ("workers < 2 for 2m", "5m", ""),
        ("error_rate_pct > 5", "5m", "increase(metricsmw_requests_total[5m]) >= 20"),
        ("error_rate_pct > 5 at least 1 requests", "5m", ""),
        ("error_rate_pct > 5 for 10s", "60s", "increase(metricsmw_requests_total[60s]) >= 20"),
        ("error_rate_pct > 5 for 4m", "120s", "increase(metricsmw_requests_total[120s]) >= 20"),
        ("error_rate_pct > 5 for 1h", "5m", "increase(metricsmw_requests_total[5m]) >= 20"),
        ("p95 > 5 over 90s at least 50", "90s", "increase(metricsmw_requests_total[90s]) >= 50"),
        (
            "burn_rate(99, 30m, 5m) > 1",
            "30m",
            (
                "increase(metricsmw_requests_total[30m]) >= 100 "
                "and on (job, instance) metricsmw_requests_total offset 30m"
            ),
        ),
    ],
)
def test_spans_and_least_requests_are_translated(text: str, window: str, condition: str) -> None:
    (line,) = (line for line in rules_file([parse(text)]).splitlines() if "expr:" in line)
    expr = json.loads(line.partition("expr: ")[2])
    assert f"[{window}]" in expr or text.startswith("workers")
    assert (
        expr.endswith(f" and on (job, instance) ({condition})")
        if condition
        else ("increase" not in expr)
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["grafana"], 0, '"title": "metricsmw"'),
        (["grafana", "--title", "Shop"], 0, '"title": "Shop"'),
        (["prometheus-rules", "--rule", "workers < 2"], 0, "metricsmw_workers < 2.0"),
        (["prometheus-rules", "--rule", "workers ~ 2"], 2, "not a rule"),
        (["prometheus-rules", "--rule", "memory_usage_pct > 1"], 2, "not exported"),
        (["prometheus-rules"], 2, "no rules"),
        (["prometheus-rules", "--file", "/nowhere"], 2, "/nowhere"),
        (["prometheus-rules", "--rule", "workers < 2", "--window", "5 m"], 2, "window"),
    ],
)
def test_the_command(
    arguments: Sequence[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *arguments]) == code
    printed = capsys.readouterr()
    assert said in (printed.err if code else printed.out)


def test_a_file_has_a_rule_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("# mine\n\nworkers < 2\n  error_rate_pct > 5 for 2m\n")
    assert main(["generate", "prometheus-rules", "--file", str(path)]) == 0
    assert capsys.readouterr().out.count("- alert:") == 2


def test_the_rules_of_a_running_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("METRICSMW_TOKEN", raising=False)
    with serve("uvicorn", "apps.ruled:app", workers=1, env={"METRICSMW_TOKEN": "a" * 32}) as server:
        assert main(["generate", "prometheus-rules", server.url, "--token", "b"]) == 3
        assert "lets nobody in" in capsys.readouterr().err
        (tmp_path / "token").write_text("a" * 32)

        def printed() -> tuple[str, str]:
            arguments = [server.url, "--token-file", str(tmp_path / "token")]
            main(["generate", "prometheus-rules", *arguments])
            return capsys.readouterr()

        wait_until(lambda: "alert" in printed()[0], "the first check")
        out, err = printed()
    alerts = [json.loads(line.partition(": ")[2]) for line in out.splitlines() if "alert:" in line]
    assert sorted(alerts) == ["BURN_RATE", "ORDERS", "PAYMENT"]
    assert "rate(payment_seconds[" in out, "units are those of the running server"
    assert "left out: HIGH_MEMORY" in err
    assert "memory_usage_pct is not exported" in err
    (tmp_path / "rules.yml").write_text(out)
    status, said = promtool("forky", "check", "rules", str(tmp_path / "rules.yml"))
    assert status == 0, said
