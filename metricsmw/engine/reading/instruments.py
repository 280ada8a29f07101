"""The app's own numbers, joined over all workers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from metricsmw.engine.storage.histogram import (
    Distribution,
    instrument_buckets,
)
from metricsmw.engine.storage.lanes import ROUTE_HISTOGRAM, in_use, lane_of
from metricsmw.engine.storage.layout import CounterLane, HistogramLane, Kind

KINDS = {Kind.COUNTERS: "counter", Kind.GAUGES: "gauge", Kind.HISTOGRAMS: "histogram"}
GAUGE = struct.Struct("<dd")


@dataclass
class InstrumentSeries:
    """One series of an instrument of the app, over all workers since the start or the last reset.

    ``value``: of a counter or a gauge; the sum of a histogram's values. ``scale``, ``first`` and
    ``counts``: a histogram's buckets, as `Distribution` has them.
    """

    kind: Kind
    name: str
    unit: str
    labels: dict[str, str]
    value: float = 0.0
    scale: int = 0
    first: int = 0
    counts: list[int] = field(default_factory=list)

    def as_row(self, help: str) -> dict[str, object]:
        """Return it as `GET /custom` shows it."""
        row: dict[str, object] = {
            "name": self.name,
            "type": KINDS[self.kind],
            "help": help,
            "unit": self.unit,
            "labels": self.labels,
        }
        if self.kind is not Kind.HISTOGRAMS:
            return {**row, "value": self.value}
        found = self.distribution
        row |= {"count": found.count, "sum": self.value, "max": found.max}
        return row | {f"p{percent}": found.percentile(percent) for percent in (50, 95, 99)}

    @property
    def distribution(self) -> Distribution:
        """The histogram, to be asked for percentiles."""
        return Distribution(self.counts, self.first, self.scale)


def join(rows: Iterable[tuple[Kind, str, int]]) -> list[InstrumentSeries]:
    """Return the series of all workers' rows (kind, packed name, lanes), by name and kind."""
    counted: dict[tuple[Kind, str], int] = {}
    gauges: dict[str, list[tuple[float, float]]] = {}  # value, when it was set
    for kind, name, lanes in rows:
        if kind is Kind.GAUGES:
            value, at = GAUGE.unpack(lanes.to_bytes(GAUGE.size, "little"))
            if at > 0 and value - value == 0:  # set by this worker, and finite
                gauges.setdefault(name, []).append((value, at))
        else:
            key = kind, name
            counted[key] = counted.get(key, 0) + lanes
    found = []
    for (kind, name), lanes in counted.items():
        if (series := _named(kind, name)) is not None:
            _fill(series[0], lanes)
            found.append(series[0])
    for name, values in gauges.items():
        if (series := _named(Kind.GAUGES, name)) is not None:
            series[0].value = _joined(series[1], values)
            found.append(series[0])
    return sorted(found, key=lambda one: (one.name, one.kind, one.unit, sorted(one.labels.items())))


def as_rows(
    series: Iterable[InstrumentSeries], help_of: Callable[[str], str]
) -> list[dict[str, object]]:
    """Return series as `GET /custom` shows them; `help_of` returns the help of a name."""
    return [one.as_row(help_of(one.name)) for one in series]


def _named(kind: Kind, packed: str) -> tuple[InstrumentSeries, str] | None:
    """Return a series without numbers, and how gauges are joined; None for what is no name."""
    try:
        name, unit, merge, labels = json.loads(packed)
        described = {str(label): str(value) for label, value in labels.items()}
    except (ValueError, TypeError, AttributeError):
        return None
    return InstrumentSeries(kind, str(name), str(unit), described), str(merge)


def _fill(series: InstrumentSeries, lanes: int) -> None:
    if series.kind is Kind.COUNTERS:
        units, part = (lane_of(lanes, lane) for lane in CounterLane)
        series.value = units + part / 1e6 if part else units  # else it stays an int
        return
    form = instrument_buckets(series.unit)
    skipped, series.counts = in_use(lanes & ROUTE_HISTOGRAM)
    series.scale, series.first = form.scale, form.first + skipped
    series.value = lane_of(lanes, HistogramLane.SUM) / form.sum_factor


def _joined(merge: str, values: list[tuple[float, float]]) -> float:
    if merge == "max":
        return max(value for value, _ in values)
    if merge == "last":
        return max(values, key=lambda pair: pair[1])[0]
    return sum(value for value, _ in values)
