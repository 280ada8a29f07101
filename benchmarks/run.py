"""Measures metricsmw against the least it could cost and against its peers; see README.md.

python benchmarks/run.py [--quick] [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import engine
import middlewares
import polled
import streams
from report import Report

BENCHMARKS = {
    "asgi": middlewares.asgi,
    "wsgi": middlewares.wsgi,
    "peers": middlewares.peers,
    "record": engine.record,
    "custom": engine.custom,
    "readers": engine.readers,
    "snapshot": engine.snapshot,
    "workers": engine.workers,
    "scrape": engine.scrape,
    "memory": engine.memory,
    "imports": engine.imports,
    "streams": streams.streams,
    "polled": polled.polled,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args()
    report = Report()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    for name, benchmark in BENCHMARKS.items():
        if not arguments.only or name in arguments.only:
            benchmark(report, arguments.quick)
    report.print_goals()
    if arguments.json:
        report.write_json(arguments.json)


if __name__ == "__main__":
    main()
