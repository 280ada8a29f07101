"""What a run prints and keeps: figures by section, and the table of goals at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from timing import Estimate


@dataclass(frozen=True)
class Figure:
    """One measured figure; None where what was to be measured is not installed."""

    section: str
    name: str
    unit: str
    estimate: Estimate | None


@dataclass(frozen=True)
class Goal:
    """A figure held against its limit; `at_least` turns the comparison round."""

    what: str
    value: float
    limit: float
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Report:
    """Prints figures as they come and keeps them."""

    def __init__(self) -> None:
        self._section = ""
        self._figures: list[Figure] = []
        self._goals: list[Goal] = []

    def section(self, title: str) -> None:
        self._section = title
        print(f"\n{title}", flush=True)

    def figure(self, name: str, value: Estimate | float, unit: str) -> None:
        estimate = value if isinstance(value, Estimate) else Estimate.exact(value)
        self._figures.append(Figure(self._section, name, unit, estimate))
        spread = ""
        if estimate.low != estimate.high:
            spread = f"  ({_number(estimate.low)} .. {_number(estimate.high)})"
        print(f"  {name:<52}{_number(estimate.value):>9} {unit:<4}{spread}", flush=True)

    def missing(self, name: str) -> None:
        self._figures.append(Figure(self._section, name, "", None))
        print(f"  {name:<52}not installed", flush=True)

    def goal(
        self,
        what: str,
        value: Estimate | float,
        limit: float,
        unit: str = "x",
        *,
        at_least: bool = False,
    ) -> None:
        plain = value.value if isinstance(value, Estimate) else value
        self._goals.append(Goal(what, plain, limit, unit, at_least))

    def print_goals(self) -> None:
        if not self._goals:
            return
        print("\nGoals")
        for goal in self._goals:
            bound = f"{'>=' if goal.at_least else '<='} {_number(goal.limit)}"
            verdict = "reached" if goal.reached else "NOT reached"
            print(f"  {goal.what:<52}{_number(goal.value):>9} {goal.unit:<4} {bound:<9} {verdict}")

    def write_json(self, path: Path) -> None:
        document = {
            "figures": [asdict(figure) for figure in self._figures],
            "goals": [{**asdict(goal), "reached": goal.reached} for goal in self._goals],
        }
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
