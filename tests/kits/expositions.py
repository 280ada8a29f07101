"""Any families there can be, for property tests of what writes them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from metricsmw.exporters.model import (
    CounterFamily,
    Exemplar,
    Exposition,
    Family,
    GaugeFamily,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import labels

# Text that breaks a careless writer, beside any there is.
AWKWARD = [
    '"',
    "\\",
    "\n",
    "\\n",
    '\\"',
    "\0",
    "\udc80",
    "\ud800",
    "é",
    "{}",
    "a,b",
    " ",
    "\r",
]
VALUES = st.one_of(
    st.text(st.characters(), max_size=10),
    st.lists(st.sampled_from(AWKWARD), max_size=6).map("".join),
)
ATTRIBUTES = st.sampled_from(
    ["http.route", "http.request.method", "a", "A_b", "9lives", "é.x", "x-y"]
)
TIMES = st.floats(1e9, 3e9)
COUNTS = st.integers(0, 2**53)


def attributes() -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(ATTRIBUTES, VALUES, max_size=4)


EXEMPLARS = st.builds(
    Exemplar,
    value=st.floats(1e-7, 4000),
    attributes=st.fixed_dictionaries(
        {"trace_id": st.text("0123456789abcdef", min_size=32, max_size=32)}
    ),
    time=TIMES,
)


@st.composite
def histogram_points(draw: st.DrawFn, described: dict[str, str]) -> HistogramPoint:
    scale = draw(st.sampled_from([5, 4, 0]))
    first = draw(st.integers(-24 << scale, 12 << scale))
    counts = draw(st.lists(st.one_of(st.just(0), COUNTS), max_size=20))
    return HistogramPoint(
        described,
        scale,
        first,
        counts,
        draw(st.floats(0, 1e15)),
        draw(st.none() | TIMES),
        draw(st.lists(EXEMPLARS, max_size=3)),
    )


@st.composite
def families(draw: st.DrawFn, name: str) -> Family:
    kind = draw(st.sampled_from([CounterFamily, GaugeFamily, HistogramFamily]))
    unit = draw(st.sampled_from(["s", "By", "1", "", "{request}", "widgets"]))
    help = draw(st.one_of(st.just("What it is."), VALUES))
    points: list[NumberPoint] = []
    histograms: list[HistogramPoint] = []
    for described in _told_apart(draw(st.lists(attributes(), max_size=4))):
        if kind is HistogramFamily:
            histograms.append(draw(histogram_points(described)))
        elif kind is CounterFamily:
            value = draw(st.one_of(COUNTS, st.floats(0, 1e300)))
            exemplar = draw(st.none() | EXEMPLARS)
            points.append(NumberPoint(described, value, draw(st.none() | TIMES), exemplar))
        else:
            value = draw(st.floats(allow_nan=False, allow_infinity=False))
            points.append(NumberPoint(described, value))
    if kind is HistogramFamily:
        return HistogramFamily(name, unit, help, histograms)
    return kind(name, unit, help, points)


@st.composite
def expositions(draw: st.DrawFn) -> Exposition:
    names = draw(
        st.lists(st.sampled_from(["http.server.request", "orders", "b_total", "x"]), unique=True)
    )
    return Exposition(draw(attributes()), [draw(families(name)) for name in names])


def _told_apart(found: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Those label sets that are still different once they are written."""
    return list({frozenset(labels(described).items()): described for described in found}.values())
