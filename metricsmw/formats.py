"""Exports as text: the JSON document and the CSV table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from metricsmw.snapshot import FIELDS

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


def export_document(monitor: MetricsMonitor) -> dict[str, object]:
    """The statistics' three parts and the whole history."""
    history = monitor.get_metrics_history(monitor.settings.max_history_minutes)
    return {**monitor.get_statistics(), "history": history}


def json_text(monitor: MetricsMonitor) -> str:
    """`export_document` as JSON text."""
    import json  # here, as importing the package is to cost next to nothing

    return json.dumps(export_document(monitor), indent=2, ensure_ascii=False) + "\n"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """A header of the snapshot's fields, and a line for each row."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
