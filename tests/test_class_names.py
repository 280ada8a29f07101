"""A class is known by one name, and a name stands for one class, in the whole package."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Flask and Django users import the middleware of their framework by the same name.
PUBLIC = {"MetricsMiddleware"}


def test_a_name_stands_for_one_class() -> None:
    names = Counter(
        name
        for folder in ("metricsmw", "adapters")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^class _*(\w+)", path.read_text(), re.MULTILINE)
    )
    assert names["MetricsMonitor"] == 1
    assert {name for name, count in names.items() if count > 1} == PUBLIC
