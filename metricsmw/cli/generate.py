"""`metricsmw generate`: a Grafana dashboard, or alert rules as Prometheus reads them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from metricsmw.alerts.grammar import parse
from metricsmw.cli.output import complain
from metricsmw.exporters.grafana import dashboard
from metricsmw.exporters.prometheus_rules import rules_file


def run_grafana(options: argparse.Namespace) -> int:
    """Print the dashboard; return the exit code, 0."""
    print(json.dumps(dashboard(options.title), indent=2))
    return 0


def run_rules(options: argparse.Namespace) -> int:
    """Print the rules; return the exit code, 2 for a rule that is none or cannot be watched."""
    try:
        rules = [parse(text) for text in _texts(options)]
        if not rules:
            raise ValueError("no rules: give some by --rule or --file")
        print(rules_file(rules, options.window), end="")
    except (OSError, ValueError) as error:
        complain("generate prometheus-rules", error)
        return 2
    return 0


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
