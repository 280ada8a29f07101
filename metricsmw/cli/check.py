"""`metricsmw check`: does what rules say hold on a live server, now or over a time?

Rates and latencies are those of the window or, with ``--for``, of what happened in that time. What
is not counted (CPU, memory, connections) is looked at again and again meanwhile, and must hold at
each look.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

from metricsmw.alerts.alert import unit_of
from metricsmw.cli.client import MetricsClient, TopError
from metricsmw.cli.output import complain, write
from metricsmw.cli.tokens import token_in

LOOK_SECONDS = 1.0
VIOLATED, UNKNOWN = 1, 2
# The worst first.
VERDICTS = ("violated", "unknown", "ok")
# What is shown of a rule.
ROW = {"rule", "verdict", "field", "value", "requests", "over_seconds", "reason"}

Row = Mapping[str, Any]


def ask(client: MetricsClient, path: str) -> list[Row]:
    """Return what the server says of rules.

    Raises:
        TopError: It does not answer, or takes a rule for none.
    """
    rows = client.ask(path, "rules")
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not is_list or not all(row.keys() >= ROW and row["verdict"] in VERDICTS for row in rows):
        raise TopError(f"{client.base}/check does not answer as metrics do")
    return list(rows)


def watch(client: MetricsClient, path: str, seconds: int) -> list[Row]:
    """Return what the server says of rules over so many seconds from now.

    Raises:
        TopError: It does not answer, or takes a rule for none.
    """
    worst = ask(client, path)
    # The last step must have ended.
    end = time.monotonic() + seconds + float(client.ask(path, "step_seconds"))
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_SECONDS))
        for place, row in enumerate(ask(client, path)):
            before = worst[place]
            is_worse = VERDICTS.index(row["verdict"]) <= VERDICTS.index(before["verdict"])
            if row["over_seconds"] is not None or before["verdict"] == "unknown" or is_worse:
                worst[place] = row
    return worst


def text_of(row: Row) -> str:
    """Return a rule's outcome as a line."""
    field = str(row["field"])
    value = "has no value" if row["value"] is None else f"is {row['value']:.10g}{unit_of(field)}"
    over = "" if row["over_seconds"] is None else f" over {row['over_seconds']:g} s"
    reason = f": {row['reason']}" if row["reason"] else ""
    requests = f", {row['requests']} requests" if row["requests"] else ""
    return f"{row['verdict']:8}  {row['rule']}  ({field} {value}{over}{requests}){reason}"


def write_junit(path: str, base: str, rows: Sequence[Row], seconds: float) -> None:
    """Write the outcome as JUnit's XML. Raises OSError where it cannot be written."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    suite = ElementTree.Element(
        "testsuite",
        name="metricsmw check",
        hostname=base,
        tests=str(len(rows)),
        failures=str(counts["violated"]),
        errors=str(counts["unknown"]),
        time=f"{seconds:.3f}",
    )
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname="metricsmw", name=row["rule"])
        if row["verdict"] != "ok":
            kind = "failure" if row["verdict"] == "violated" else "error"
            ElementTree.SubElement(case, kind, message=text_of(row))
    tree = ElementTree.ElementTree(suite)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def run(options: argparse.Namespace) -> int:
    """Run the command; 0: all rules hold, 1: one does not, 2: one is not known, or an error."""
    begun = time.monotonic()
    try:
        client = MetricsClient(options.url, token_in(options))
        query = [("rule", rule) for rule in options.rule]
        if options.seconds is None:
            rows = ask(client, f"/check?{urlencode(query)}")
        else:
            query.append(("seconds", str(options.seconds)))
            rows = watch(client, f"/check?{urlencode(query)}", options.seconds)
        if options.junit:
            write_junit(options.junit, client.base, rows, time.monotonic() - begun)
    except (TopError, OSError) as error:
        complain("check", error)
        return UNKNOWN
    verdicts = {row["verdict"] for row in rows}
    if options.json:
        write(json.dumps({"rules": rows}, indent=2))
    else:
        write("\n".join(map(text_of, rows)))
    return VIOLATED if "violated" in verdicts else UNKNOWN if "unknown" in verdicts else 0
