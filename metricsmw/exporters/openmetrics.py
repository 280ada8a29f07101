"""OpenMetrics text, versions 1.0 and 2.0.

Version 1.0 carries classic buckets, start times as ``_created`` samples, and one exemplar a bucket.
Version 2.0, a release candidate as this was written, has a histogram in one line: native buckets
(or, beside them, classic ones), its start time behind ``st@``, and any number of exemplars.

Sources: the OpenMetrics specifications 1.0 and 2.0 (prometheus.io/docs/specs/om).
"""

from __future__ import annotations

from collections.abc import Iterator

from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    Family,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import Escaping, labels, metric_name, readable, told_unit
from metricsmw.exporters.text import braced, number, pairs, quoted

# Version 1.0 allows so many characters in the names and values of an exemplar's labels.
EXEMPLAR_CHARACTERS = 128


def _kind(family: Family) -> str:
    if isinstance(family, HistogramFamily):
        return "histogram"
    return "counter" if isinstance(family, CounterFamily) else "gauge"


def _metadata(name: str, kind: str, family: Family) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    if unit := told_unit(family, name):
        yield f"# UNIT {name} {unit}"
    if family.help:
        yield f"# HELP {name} {quoted(readable(family.help))[1:-1]}"


def _exemplar(exemplar: Exemplar) -> str:
    inside = pairs(labels(exemplar.attributes))
    return f" # {{{','.join(inside)}}} {number(exemplar.value)} {_time(exemplar.time)}"


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"


# --- 1.0 ------------------------------------------------------------------------------------------


def write(exposition: Exposition, escaping: Escaping = "underscores") -> bytes:
    """Return the families as OpenMetrics text 1.0.

    Args:
        exposition: What is written; its resource becomes the info ``target``.
        escaping: How names are written.
    """
    lines = ["# TYPE target info", f"# HELP target {exposition.target.help}"]
    lines.append(f"{_target(exposition, escaping)} 1")
    for family in exposition.families:
        if family.points:
            lines += _lines(family, escaping)
    return "".join(f"{line}\n" for line in [*lines, "# EOF"]).encode()


def _target(exposition: Exposition, escaping: Escaping) -> str:
    name = metric_name(exposition.target, escaping)
    return name + braced(pairs(labels(exposition.resource, escaping)))


def _lines(family: Family, escaping: Escaping) -> Iterator[str]:
    name = metric_name(family, escaping)
    if isinstance(family, CounterFamily):
        name = name.removesuffix("_total")
    yield from _metadata(name, _kind(family), family)
    if isinstance(family, HistogramFamily):
        for point in family.points:
            yield from _classic_histogram(name, point, pairs(labels(point.attributes, escaping)))
        return
    for number_point in family.points:
        inside = braced(pairs(labels(number_point.attributes, escaping)))
        if isinstance(family, CounterFamily):
            yield f"{name}_total{inside} {_counted(number_point)}"
            if number_point.started is not None:
                yield f"{name}_created{inside} {_time(number_point.started)}"
        else:
            yield f"{name}{inside} {number(number_point.value)}"


def _counted(point: NumberPoint) -> str:
    exemplar = "" if point.exemplar is None else _short_exemplar(point.exemplar)
    return f"{number(point.value)}{exemplar}"


def _short_exemplar(exemplar: Exemplar) -> str:
    found = labels(exemplar.attributes)
    if sum(len(name) + len(value) for name, value in found.items()) > EXEMPLAR_CHARACTERS:
        return ""
    return _exemplar(exemplar)


def _classic_histogram(name: str, point: HistogramPoint, inside: list[str]) -> Iterator[str]:
    lower = 0.0
    for bound, count in point.classic():
        # The last one that lies in the bucket, which is the newest.
        within = [one for one in point.exemplars if lower < one.value <= bound]
        exemplar = _short_exemplar(within[-1]) if within else ""
        le = f'le="{number(bound)}"'
        yield f"{name}_bucket{braced([*inside, le])} {count}{exemplar}"
        lower = bound
    yield f"{name}_count{braced(inside)} {point.count}"
    yield f"{name}_sum{braced(inside)} {number(point.sum)}"
    if point.started is not None:
        yield f"{name}_created{braced(inside)} {_time(point.started)}"


# --- 2.0 ------------------------------------------------------------------------------------------


def write_2(
    exposition: Exposition, escaping: Escaping = "underscores", classic: bool = False
) -> bytes:
    """Return the families as OpenMetrics text 2.0, native histograms included.

    Args:
        exposition: What is written; its resource becomes the info ``target_info``.
        escaping: How names are written.
        classic: True adds the classic buckets, whose bounds are powers of two.
    """
    target = exposition.target
    lines = [*_metadata(metric_name(target, escaping), "info", target)]
    lines.append(f"{_target(exposition, escaping)} 1")
    for family in exposition.families:
        if family.points:
            lines += _lines_2(family, escaping, classic)
    return "".join(f"{line}\n" for line in [*lines, "# EOF"]).encode()


def _lines_2(family: Family, escaping: Escaping, classic: bool) -> Iterator[str]:
    name = metric_name(family, escaping)
    yield from _metadata(name, _kind(family), family)
    for point in family.points:
        inside = braced(pairs(labels(point.attributes, escaping)))
        started = "" if point.started is None else f" st@{_time(point.started)}"
        if isinstance(point, HistogramPoint):
            exemplars = "".join(map(_exemplar, point.exemplars))
            yield f"{name}{inside} {{{_composite(point, classic)}}}{started}{exemplars}"
        else:
            exemplar = "" if point.exemplar is None else _exemplar(point.exemplar)
            yield f"{name}{inside} {number(point.value)}{started}{exemplar}"


def _composite(point: HistogramPoint, classic: bool) -> str:
    parts = [f"count:{point.count}", f"sum:{number(point.sum)}", f"schema:{point.scale}"]
    parts += "zero_threshold:0.0", "zero_count:0"
    offsets: list[str] = []
    counts: list[str] = []
    end = 0
    for first, run in point.spans():
        # The first offset is an index, a later one the gap to the span before.
        offsets.append(f"{first - end}:{len(run)}")
        counts += map(str, run)
        end = first + len(run)
    if counts:
        parts += f"positive_spans:[{','.join(offsets)}]", f"positive_buckets:[{','.join(counts)}]"
    if classic:
        pairs_of = (f"{number(bound)}:{count}" for bound, count in point.classic())
        parts.append(f"bucket:[{','.join(pairs_of)}]")
    return ",".join(parts)
