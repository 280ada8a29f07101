"""The panel of `metricsmw top` with the errors by kind; the texts of others are plain here, too."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from metricsmw.cli.client import Fields
from metricsmw.cli.panels import MOST_ROWS, bare_table
from metricsmw.cli.text import number, plain, sparkline

BARS = 20  # of the last minutes
WIDE = 100  # columns, from which on a kind has its minutes


def errors_panel(errors: Sequence[Fields], width: int) -> Table:
    """Return the kinds of error, as they come: type, place, count, minutes, last time, routes."""
    is_wide = width >= WIDE
    table = bare_table(expand=True)
    table.add_column("Error", ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column("Where", ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column("Count", justify="right", no_wrap=True)
    if is_wide:
        table.add_column(f"Last {BARS} min", no_wrap=True)
    table.add_column("Last", no_wrap=True)
    table.add_column("Routes", ratio=2, no_wrap=True, overflow="ellipsis")
    for row in errors[:MOST_ROWS]:
        mark = "▲ " if row["new"] else ""
        table.add_row(
            Text(plain(f"{mark}{row['type']}"), style="bold red" if row["new"] else ""),
            plain_place(row["where"]),
            number(row["count"]),
            *([Text(sparkline(row["bars"], BARS), style="red")] if is_wide else []),
            plain(row["last_seen"])[11:19],
            Text(plain(", ".join(row["routes"])), style="dim"),
        )
    if len(errors) > MOST_ROWS:
        table.add_row(Text(f"… and {len(errors) - MOST_ROWS} more kinds", style="dim"))
    return table


def plain_place(where: Fields | None) -> Text:
    """Return a place: function and line in front, as the module may be long."""
    if where is None:
        return Text("-", style="dim")
    place = Text(plain(f"{where['function']}:{number(where['line']).replace(',', '')}"))
    return place.append(plain(f"  {where['module']}"), style="dim")
