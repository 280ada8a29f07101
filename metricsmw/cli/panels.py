"""Panels of `metricsmw top`: workers, slow requests, the app's own numbers, a server's health.

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
WIDE = 110  # columns, from which on a worker's row has all its numbers
MINUTE, HOUR = 60, 3600


def health_lines(health: Fields) -> Iterator[Text]:
    """Yield a line for each component that is not operational."""
    for name, state in health.get("components", {}).items():
        if state != "operational":
            said = f"▲ {name.replace('_', ' ')}: {state}"
            yield Text(plain(said), style="bold red", no_wrap=True, overflow="ellipsis")


# A worker's numbers: (column's label, field, whether it is there only where there is room).
WORKER_NUMBERS = (
    ("Requests", "requests", True),
    ("/ min", "request_rate_rpm", False),
    ("Err%", "error_rate_pct", True),
    ("5xx%", "server_error_rate_pct", False),
    ("P95", "latency_p95_ms", False),
    ("Busy", "requests_in_flight", False),
    ("CPU%", "cpu_pct", False),
    ("MB", "memory_mb", False),
)
# Those that do not hinder a worker.
CALM = ("running", "unknown")


def workers_panel(workers: Sequence[Fields], width: int) -> Table:
    """Return the workers, those that are sick or differ from the others first."""
    is_wide = width >= WIDE
    numbers = [(label, name) for label, name, wide in WORKER_NUMBERS if is_wide or not wide]
    heads = ["Worker", "", *(label for label, _ in numbers), "Last"]
    table = _table(*heads, *(["Seen", "Since"] if is_wide else []))
    table.padding = (0, 1, 0, 0)
    rows = sorted(workers, key=lambda row: (not _is_marked(row), row["pid"]))
    for row in rows[:MOST_ROWS]:
        state = Text(plain(str(row["state"])), style="" if row["state"] in CALM else "bold red")
        table.add_row(
            str(row["pid"]),
            state,
            *(
                Text(f"▲{_short(row[name])}", style="bold red")
                if name in row["differs"]
                else _short(row[name])
                for _, name in numbers
            ),
            _ago(row["last_request_seconds"]),
            *([_ago(row["seen_seconds"]), plain(str(row["since"]))[11:19]] if is_wide else []),
        )
    return _with_rest(table, len(rows))


def _is_marked(row: Fields) -> bool:
    return row["state"] not in CALM or bool(row["differs"])


def _short(value: float | None) -> str:
    """Return a number in few characters: from 100 on without decimals."""
    return f"{value:,.0f}" if value is not None and value >= 100 else number(value)


def _ago(seconds: float | None) -> str:
    """Return how long ago something was, in few characters."""
    if seconds is None:
        return "-"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 100 * MINUTE else f"{seconds / HOUR:.0f} h"


def slowest_panel(slowest: Sequence[Fields]) -> Table:
    """Return the captured requests, slowest first, with what leads to their traces and logs."""
    table = _table("Slow request", "Trace, or id", "ms", "Status", "At", "Worker", "In flight")
    for row in slowest[:MOST_ROWS]:
        what = f"{row['method']} {row['path'] or row['route']}"
        if row["query"]:
            what += f"?{row['query']}"
        status = row["error"] or row["status"]
        table.add_row(
            Text(plain(what), no_wrap=True, overflow="ellipsis"),
            Text(plain(row["trace_id"] or row["request_id"] or "-"), style="dim"),
            number(row["latency_ms"]),
            Text("-" if status is None else plain(str(status))),
            plain(row["timestamp"])[11:19],
            str(row["pid"]),
            number(row["requests_in_flight"]),
        )
    return _with_rest(table, len(slowest))


def custom_panel(custom: Sequence[Fields]) -> Table:
    """Return the app's own numbers; of a histogram how many values, and their percentiles."""
    table = _table("Own number", "", "Value or sum", "Count", "P50", "P95", "P99")
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


def bare_table(*, expand: bool = False) -> Table:
    """Return a table without columns, in the look of all panels."""
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        border_style="dim",
        header_style="bold",
        expand=expand,
    )


def _table(*heads: str) -> Table:
    table = bare_table()
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place > 1 else "left", no_wrap=True)
    return table


def _with_rest(table: Table, rows: int) -> Table:
    if rows > MOST_ROWS:
        table.add_row(f"… and {rows - MOST_ROWS} more", style="dim")
    return table
