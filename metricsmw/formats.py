"""Given data as text: an export as JSON and CSV, and the texts of others made plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metricsmw.snapshot import HISTORY_FIELDS


def export_document(
    statistics: Mapping[str, object], history: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Return what an export has: the statistics' three parts, and the history."""
    return {**statistics, "history": history}


def json_text(document: Mapping[str, object]) -> str:
    """Return the document as indented JSON that ends with a line break."""
    import json  # here, as importing the package is to cost next to nothing

    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a header of the fields of a history's rows, and a line for each row.

    A field that a row does not have is left empty.
    """
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(text: str) -> str:
    """Text without anything that a terminal would obey, and without what turns its direction."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
