"""Prometheus' text format, version 0.0.4: what every engine reads, and `promtool` checks.

Of a histogram it carries the classic buckets only, the sum and the count; it has neither start
times nor exemplars.

This file also has what the OpenMetrics formats share with it: numbers, label sets, escaping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metricsmw.exporters.model import CounterFamily, Exposition, Family, HistogramFamily
from metricsmw.exporters.names import Escaping, labels, metric_name, readable


def number(value: float) -> str:
    """Return a number as both text formats write it."""
    if value == float("inf"):
        return "+Inf"
    return repr(value)


def quoted(text: str) -> str:
    """Return the text with quotes around it; backslashes, quotes and line feeds are escaped."""
    return '"' + escaped(text).replace('"', '\\"') + '"'


def escaped(text: str) -> str:
    """Return the text with backslashes and line feeds escaped."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def pairs(found: Mapping[str, str]) -> list[str]:
    """Return labels as ``name="value"``."""
    return [f"{name}={quoted(value)}" for name, value in found.items()]


def braced(inside: list[str]) -> str:
    """Return a label set; nothing where it is empty."""
    return "{" + ",".join(inside) + "}" if inside else ""


def _lines(family: Family, escaping: Escaping) -> Iterator[str]:
    name = metric_name(family, escaping)
    if family.help:
        yield f"# HELP {name} {escaped(readable(family.help))}"
    if isinstance(family, HistogramFamily):
        yield f"# TYPE {name} histogram"
        for point in family.points:
            inside = pairs(labels(point.attributes, escaping))
            for bound, count in point.classic():
                le = f'le="{number(bound)}"'
                yield f"{name}_bucket{braced([*inside, le])} {count}"
            yield f"{name}_sum{braced(inside)} {number(point.sum)}"
            yield f"{name}_count{braced(inside)} {point.count}"
        return
    yield f"# TYPE {name} {'counter' if isinstance(family, CounterFamily) else 'gauge'}"
    for number_point in family.points:
        inside = pairs(labels(number_point.attributes, escaping))
        yield f"{name}{braced(inside)} {number(number_point.value)}"


def write(exposition: Exposition, escaping: Escaping = "underscores") -> bytes:
    """Return the families as text, format 0.0.4.

    Args:
        exposition: What is written; its resource becomes the gauge ``target_info``.
        escaping: How names are written.
    """
    families = exposition.all_families()
    return "".join(f"{line}\n" for family in families for line in _lines(family, escaping)).encode()
