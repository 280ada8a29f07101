"""`metricsmw generate`: a Grafana dashboard, or alert rules as Prometheus reads them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

from metricsmw.alerts.custom import with_unit
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.rules import AnyRule, CustomRule
from metricsmw.cli.client import CUSTOM, AnswerShape, MetricsClient, TopError
from metricsmw.cli.locate import locate
from metricsmw.cli.output import complain
from metricsmw.cli.tokens import token_in
from metricsmw.exporters.grafana import dashboard
from metricsmw.exporters.prometheus_rules import condition, rules_file, window_seconds

RULES = AnswerShape(texts=("rule",))


def run_grafana(options: argparse.Namespace) -> int:
    """Print the dashboard; return the exit code, 0."""
    print(json.dumps(dashboard(options.title), indent=2))
    return 0


def run_rules(options: argparse.Namespace) -> int:
    """Print the rules.

    Returns:
        0; 2 for a rule that is none or cannot be watched; as `top` does, where a server's rules
        cannot be had.
    """
    try:
        rules = [parse(text) for text in _texts(options)]
        if options.url is not None:
            rules += _of_server(options)
        if not rules:
            raise ValueError(
                "no rules: give some by --rule or --file, or the URL of a server that has some"
            )
        print(rules_file(rules, options.window), end="")
    except TopError as error:
        complain("generate prometheus-rules", error)
        return error.code
    except (OSError, ValueError) as error:
        complain("generate prometheus-rules", error)
        return 2
    return 0


def _of_server(options: argparse.Namespace) -> list[AnyRule]:
    """Return the rules of a running server; those that Prometheus cannot watch are said.

    Raises:
        TopError: The server does not answer as metrics do.
        ValueError: The window is none.
    """
    window_seconds(options.window)
    client = MetricsClient(locate(options.url), token_in(options))
    alerts = client.ask_rows("/alerts", "alerts", RULES)
    units = {row["name"]: row["unit"] for row in client.ask_rows("/custom", "custom", CUSTOM)}
    found: list[AnyRule] = []
    for text in dict.fromkeys(row["rule"] for row in alerts):
        try:
            rule = parse(text)
            if isinstance(rule, CustomRule):
                rule = replace(rule, metric=with_unit(rule.metric, units.get(rule.metric, "")))
            condition(rule, options.window)
        except ValueError as error:
            complain("generate prometheus-rules", f"left out: {text}: {error}")
        else:
            found.append(rule)
    return found


def _texts(options: argparse.Namespace) -> Iterator[str]:
    yield from options.rule or ()
    for path in options.file or ():
        with open(path, encoding="utf-8") as file:
            for line in file:
                text = line.strip()
                if text and not text.startswith("#"):
                    yield text


def run(options: argparse.Namespace) -> int:
    """Do what the subcommand says; return the exit code."""
    return run_grafana(options) if options.what == "grafana" else run_rules(options)
