"""OpenTelemetry's names as Prometheus knows them, and text that every engine can read.

The rules are those of the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility",
with the translation that is its default (UnderscoreEscapingWithSuffixes): characters that
Prometheus did not always allow become underscores, and a name ends in its unit and, for counters,
in ``_total``. So the same query finds the same series in Prometheus 2 and 3.

Such a name needs no escaping. Of the schemes that a scraper may ask for only ``dots`` changes it:
there an underscore is written as two.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

from metricsmw.exporters.model import Attributes, CounterFamily, Family, GaugeFamily

Escaping = Literal["allow-utf-8", "underscores", "dots", "values"]
ESCAPINGS: Final[tuple[Escaping, ...]] = ("allow-utf-8", "underscores", "dots", "values")

UNITS: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "By": "bytes",
    "%": "percent",
    "1": "",
}
_FOREIGN = re.compile(r"[^a-zA-Z0-9_:]+|_{2,}")
_FOREIGN_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]+|_{2,}")
_ANNOTATION = re.compile(r"\{[^}]*\}")  # of a UCUM unit: {request}
# Surrogates have no UTF-8, and a NUL ends the text for Prometheus' parser.
_UNREADABLE = re.compile("[\0\ud800-\udfff]")


@lru_cache(maxsize=1024)
def unit_name(unit: str) -> str:
    """Return a UCUM unit in words: ``seconds`` for ``s``, nothing for ``{request}`` and ``1``."""
    bare = _ANNOTATION.sub("", unit)
    return UNITS.get(bare, _FOREIGN_IN_LABEL.sub("_", bare).strip("_"))


@lru_cache(maxsize=4096)
def _metric_name(name: str, unit: str, counter: bool, gauge: bool) -> str:
    stem = _FOREIGN.sub("_", name).strip("_")
    if counter:
        stem = stem.removesuffix("_total")
    words = unit_name(unit) or ("ratio" if gauge and unit == "1" else "")
    if words and not f"_{stem}".endswith(f"_{words}"):
        stem = f"{stem}_{words}"
    if stem[:1].isdigit():
        stem = f"_{stem}"
    return f"{stem}_total" if counter else stem


def metric_name(family: Family, escaping: Escaping = "underscores") -> str:
    """Return the family's Prometheus name: unit and ``_total`` included."""
    name = _metric_name(
        family.name, family.unit, isinstance(family, CounterFamily), isinstance(family, GaugeFamily)
    )
    return name.replace("_", "__") if escaping == "dots" else name


def told_unit(family: Family, name: str) -> str:
    """Return the family's unit in words, where the name that it is written under ends in it.

    Nothing otherwise: readers refuse a unit that is no suffix, and all that was written beside it.
    """
    words = unit_name(family.unit)
    return words if name.removesuffix("_total").endswith(f"_{words}") else ""


@lru_cache(maxsize=4096)
def label_name(attribute: str, escaping: Escaping = "underscores") -> str:
    """Return an attribute's name as that of a Prometheus label."""
    name = _FOREIGN_IN_LABEL.sub("_", readable(attribute))
    if name[:1].isdigit():
        name = f"key_{name}"
    return name.replace("_", "__") if escaping == "dots" else name


def labels(attributes: Attributes, escaping: Escaping = "underscores") -> dict[str, str]:
    """Return attributes as labels. Values of attributes that get the same name are joined by ``;``.

    An empty value is the same as no label to Prometheus, and is left out.
    """
    found: dict[str, str] = {}
    for attribute in sorted(attributes):
        value = readable(attributes[attribute])
        if value:
            name = label_name(attribute, escaping)
            found[name] = f"{found[name]};{value}" if name in found else value
    return found


def readable(text: str) -> str:
    """Return text with a UTF-8 form and no NUL; other characters are escaped by a backslash."""
    # One look for what is hardly ever there; most texts are returned as they are.
    if not _UNREADABLE.search(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
