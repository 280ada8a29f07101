"""Numbers, bars and the text of others, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

from metricsmw.formats import plain as plain

BARS = "▁▂▃▄▅▆▇█"


def number(value: object) -> str:
    """Return a number as people read it, to its last decimal; of less than a tenth three digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    if 0 < abs(value) < 0.1:
        return f"{value:.3g}"
    text = f"{value:,.2f}"
    return text.rstrip("0").rstrip(".")


def sparkline(values: Sequence[object], width: int = 60) -> str:
    """Return the last values as bars from 0 to their highest; a blank where there is none."""
    last = values[-width:]
    high = max((value for value in last if isinstance(value, (int, float))), default=0)
    return "".join(
        " "
        if not isinstance(value, (int, float))
        else BARS[max(min(int(value / high * len(BARS)), len(BARS) - 1), 0)]
        if high > 0
        else BARS[0]
        for value in last
    )
