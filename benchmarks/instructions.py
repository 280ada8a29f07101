"""Counts the instructions that a request takes; see README.md.

python benchmarks/instructions.py [--only HOST ...] [--contenders NAME ...] [--json FILE]
python benchmarks/instructions.py --gate

Of each host the bare app is counted, and what the honest floor, ours and each peer add to it.
Instructions do not drift with the machine's load as times do, so that a limit can be held: `--gate`
counts ours only, and fails where it adds more than instructions.json allows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import callgrind
from contenders import BARE, BY_HAND, HONEST, OURS, PLAIN, WRAPPED, contenders
from peers import hosts
from report import Report

COUNTED = Path(__file__).with_name("counted.py")
CEILINGS = Path(__file__).with_suffix(".json")
PYTHON = ".".join(platform.python_version_tuple()[:2])
DESCRIBED = "described way"

AGAIN = 2  # times that what is too much is counted anew
TOLERANCE = 1.01
"""What may be counted, as a multiple of the ceiling: releases of frameworks move it a little."""

PEER_GOAL = 10
"""What each peer is to add at least, as a multiple of ours."""

BEGIN, END = "<!-- counted: begin -->\n", "<!-- counted: end -->\n"
"""What stands around the tables in the documentation."""


@dataclass(frozen=True)
class Added:
    """What a contender adds to a request of the bare app."""

    instructions: float
    garbage: float


@dataclass(frozen=True)
class Counts:
    """What was counted on one host; `added` has no contender that is not installed."""

    host: str
    bare: float
    bare_garbage: float
    added: Mapping[str, Added]
    missing: tuple[str, ...]


def count(host: str, names: Iterable[str]) -> Counts:
    """Count contenders on a host, the bare app among them whether named or not."""
    names = [name for name in names if name != BARE]
    with tempfile.TemporaryDirectory() as folder:
        printed = callgrind.run(COUNTED, [host, BARE, *names], Path(folder) / "counts")
    bare, *others = (json.loads(line) for line in printed.splitlines())
    counted = dict(zip(names, others, strict=True))
    return Counts(
        host,
        bare["instructions"],
        bare["garbage"],
        {
            name: Added(
                figures["instructions"] - bare["instructions"],
                figures["garbage"] - bare["garbage"],
            )
            for name, figures in counted.items()
            if figures is not None
        },
        tuple(name for name, figures in counted.items() if figures is None),
    )


def count_all(chosen: Mapping[str, list[str]]) -> Iterable[Counts]:
    """Count the contenders of each host, as many hosts at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(count, chosen, chosen.values())


def report_on(report: Report, counts: Counts) -> None:
    """Print and keep the figures of one host."""
    report.section(f"{counts.host}: thousands of instructions added to a request")
    report.figure("the bare app", counts.bare / 1000, "k")
    report.figure("  objects left to the garbage collector", counts.bare_garbage, "")
    ours = counts.added.get(WRAPPED)
    for name, added in counts.added.items():
        report.figure(name, added.instructions / 1000, "k")
        if added.garbage:
            report.figure("  objects left to the garbage collector, added", added.garbage, "")
        if ours is not None and _is_peer(name):
            ratio = added.instructions / ours.instructions
            report.figure(f"  {name} / {WRAPPED}", ratio, "x")
            report.goal(f"{counts.host}: {name} / ours", ratio, PEER_GOAL, at_least=True)
    for name in counts.missing:
        report.missing(name)


def _is_peer(name: str) -> bool:
    return name not in (BARE, HONEST, *OURS, DESCRIBED)


# --- the gate -------------------------------------------------------------------------------------


def gate(lower: bool) -> int:
    """Hold what ours adds by `wrap` against its ceilings.

    Args:
        lower: Also write what was counted for new ceilings, where it is less.

    Returns:
        The exit status: 1 where a ceiling is exceeded.
    """
    every: dict[str, dict[str, int]] = json.loads(CEILINGS.read_text(encoding="utf-8"))
    ceilings = every.get(PYTHON)
    if ceilings is None:
        print(f"no ceilings for Python {PYTHON}: nothing is held")
        return 0
    exceeded = False
    for counts in count_all({host: [WRAPPED] for host in ceilings}):
        added, ceiling = counts.added[WRAPPED], ceilings[counts.host]
        # On a busy machine more requests are slow ones, which are captured: some hundred
        # instructions a request then. The least counts.
        for _ in range(AGAIN):
            if added.instructions > ceiling * TOLERANCE:
                again = count(counts.host, [WRAPPED]).added[WRAPPED]
                added = min(added, again, key=lambda one: one.instructions)
        too_much = added.instructions > ceiling * TOLERANCE
        exceeded = exceeded or too_much
        verdict = "TOO MUCH" if too_much else "held"
        print(
            f"  {counts.host:<12}{added.instructions:>8.0f} instructions added, at most {ceiling}:"
            f" {verdict}",
            flush=True,
        )
        ceilings[counts.host] = min(ceiling, round(added.instructions))
    if lower:
        CEILINGS.write_text(json.dumps(every, indent=2) + "\n", encoding="utf-8")
    return int(exceeded)


# --- the documentation ----------------------------------------------------------------------------


def tables(every: Iterable[Counts]) -> str:
    """Return the two tables of the documentation."""
    every = list(every)
    ours = [
        "| app | bare | honest floor | ours by `wrap` | by hand | plain middleware |",
        "|---|---|---|---|---|---|",
    ]
    peers = [
        "| app | peer | adds | times ours | objects left to the garbage collector |",
        "|---|---|---|---|---|",
    ]
    for counts in every:
        added = {name: _thousands(each.instructions) for name, each in counts.added.items()}
        cells = (added.get(name, "") for name in (HONEST, WRAPPED, BY_HAND, PLAIN))
        ours.append(f"| {counts.host} | {_thousands(counts.bare)} | {' | '.join(cells)} |")
        for name, each in counts.added.items():
            if _is_peer(name):
                ratio = each.instructions / counts.added[WRAPPED].instructions
                peers.append(
                    f"| {counts.host} | {name} | {added[name]} | {ratio:.1f} | {each.garbage:.0f} |"
                )
    python = f"CPython {platform.python_version()}, {platform.machine()}"
    return "\n".join([f"Thousands of instructions a request, {python}:", "", *ours, "", *peers, ""])


def _thousands(instructions: float) -> str:
    return f"{instructions / 1000:.1f}"


def write_docs(path: Path, every: Iterable[Counts]) -> None:
    """Put the tables between the two marks in a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{tables(every)}\n{END}{after}", encoding="utf-8")


def main() -> int:
    names = [host.name for host in hosts()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", action="append", choices=names, metavar="HOST", help=", ".join(names))
    add("--contenders", action="append", metavar="NAME", help="as they are printed; the rest not")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--docs", type=Path, metavar="FILE", help="also put the tables into that page")
    add("--gate", action="store_true", help=f"hold ours against {CEILINGS.name}")
    add("--lower", action="store_true", help="as --gate, and lower the ceilings to what is counted")
    arguments = parser.parse_args()
    reason = callgrind.why_not()
    if reason is not None:
        print(f"instructions: skipped: {reason}")
        return 0
    if arguments.gate or arguments.lower:
        return gate(arguments.lower)
    report = Report()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    wanted = arguments.contenders
    chosen = {
        host.name: [name for name in contenders(host) if not wanted or name in wanted]
        for host in hosts()
        if not arguments.only or host.name in arguments.only
    }
    every = []
    for counts in count_all(chosen):
        report_on(report, counts)
        every.append(counts)
    report.print_goals()
    if arguments.json:
        report.write_json(arguments.json)
    if arguments.docs:
        write_docs(arguments.docs, every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
