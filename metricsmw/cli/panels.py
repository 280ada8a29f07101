"""Panels of `metricsmw top`: the app's own numbers; of an attached server its health and workers.

The texts of others are plain here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from metricsmw.cli.client import Fields
from metricsmw.cli.text import number, plain

MOST_ROWS = 8


def health_lines(health: Fields) -> Iterator[Text]:
    """Yield a line for each component that is not operational."""
    for name, state in health.get("components", {}).items():
        if state != "operational":
            said = f"▲ {name.replace('_', ' ')}: {state}"
            yield Text(plain(said), style="bold red", no_wrap=True, overflow="ellipsis")


def workers_panel(workers: Sequence[Fields]) -> Table:
    """Return the workers, those that do not run first."""
    table = _table("Worker", "", "Reqs/min", "Err%", "P95", "In flight", "Seen", "MB")
    rows = sorted(workers, key=lambda row: (row["state"] == "running", row["pid"]))
    for row in rows[:MOST_ROWS]:
        runs = row["state"] == "running"
        seen = row["seen_seconds"]
        table.add_row(
            str(row["pid"]),
            Text(plain(str(row["state"])), style="" if runs else "bold red"),
            number(row["request_rate_rpm"]),
            number(row["error_rate_pct"]),
            number(row["latency_p95_ms"]),
            number(row["requests_in_flight"]),
            "-" if seen is None else f"{seen:.0f} s ago",
            number(row["memory_mb"]),
        )
    return _with_rest(table, len(rows))


def custom_panel(custom: Sequence[Fields]) -> Table:
    """Return the app's own numbers; of a histogram how many values, and their percentiles."""
    table = _table("Own number", "", "Value", "Count", "P50", "P95", "P99")
    for row in custom[:MOST_ROWS]:
        labels = ", ".join(f"{name}={value}" for name, value in row["labels"].items())
        name = f"{row['name']}{{{labels}}}" if labels else str(row["name"])
        table.add_row(
            Text(plain(name), no_wrap=True, overflow="ellipsis"),
            plain(str(row["unit"])),
            number(row.get("value", row.get("sum"))),
            *(number(row.get(field)) for field in ("count", "p50", "p95", "p99")),
        )
    return _with_rest(table, len(custom))


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, border_style="dim", header_style="bold")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place > 1 else "left", no_wrap=True)
    return table


def _with_rest(table: Table, rows: int) -> Table:
    if rows > MOST_ROWS:
        table.add_row(f"… and {rows - MOST_ROWS} more", style="dim")
    return table
