"""Exports: the JSON document and the CSV table, and files that are never seen half-written."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from metricsmw.snapshot import FIELDS

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor
    from metricsmw.scheduled import ScheduledExport as ScheduledExport

# The names of drafts, as a pattern, around that of their file's name.
DRAFT = r"\.{}\.\d+-\d+"


def __getattr__(name: str) -> object:
    # Known by this module's name, and imported by those who use it only.
    if name == "ScheduledExport":
        from metricsmw.scheduled import ScheduledExport

        return ScheduledExport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file as a whole: a reader sees the old one or the new one.

    Raises OSError where that cannot be; the old file is then untouched.
    """
    target = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(target)
    draft = os.path.join(folder, f".{name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(draft, os.stat(target).st_mode & 0o777)
        os.replace(draft, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
