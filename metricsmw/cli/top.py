"""`metricsmw top`: the live page in a terminal, or once, or as JSON for scripts.

Everything shown is read from the server's own routes, as any client would read it, or from the
shared memory of a server on this machine. What comes from there is written as plain text: no
route's name can move the cursor or change colours.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metricsmw.alerts.alert import unit_of
from metricsmw.cli.attach import source_of
from metricsmw.cli.client import (
    DEADLINE_SECONDS,
    REFUSED,
    Fields,
    MetricsClient,
    ServerAnswers,
    Source,
    TopError,
    late,
)
from metricsmw.cli.errors_panel import errors_panel
from metricsmw.cli.output import complain
from metricsmw.cli.panels import (
    bare_table,
    custom_panel,
    health_lines,
    slowest_panel,
    workers_panel,
)
from metricsmw.cli.shape import bars
from metricsmw.cli.text import number, plain, sparkline

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

EVERY_SECONDS = 1.0
KEY_SECONDS = 0.1
PIPE_WIDTH = 120

BESIDE_BARS = 36  # columns of a sparkline's line that its labels take
WIDE = 100  # columns, from which on the table's heads are in full
SIDE_BY_SIDE = 76  # columns, from which on the groups of numbers are side by side
# Arrows and the like send more than one character, of which none is a key by itself.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)?|.", re.DOTALL)
SCROLL = {"\x1b[A": -1, "\x1b[B": 1, "\x1bOA": -1, "\x1bOB": 1, "\x1b[5~": -10, "\x1b[6~": 10}

# (label, field, unit)
TILES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Traffic",
        (
            ("Request rate", "request_rate_rpm", "/ min"),
            ("Error rate", "error_rate_pct", "%"),
            ("By the server", "server_error_rate_pct", "%"),
            ("Requests", "total_requests", ""),
            ("Errors", "total_errors", ""),
            ("Active users", "active_users", ""),
        ),
    ),
    (
        "Latency",
        (
            ("P50", "latency_p50_ms", "ms"),
            ("P95", "latency_p95_ms", "ms"),
            ("P99", "latency_p99_ms", "ms"),
            ("Slowest", "latency_max_ms", "ms"),
            ("TTFB P95", "latency_ttfb_p95_ms", "ms"),
            ("In flight", "requests_in_flight", ""),
        ),
    ),
    (
        "Server",
        (
            ("CPU", "cpu_usage_pct", "%"),
            ("Memory", "memory_usage_mb", "MB"),
            ("Memory", "memory_usage_pct", "%"),
            ("Workers", "workers", ""),
            ("WebSockets", "websocket_connections", "open"),
        ),
    ),
)
SPARKS = (
    ("Request rate", "request_rate_rpm", "/ min"),
    ("Errors", "error_rate_pct", "%"),
    ("P95", "latency_p95_ms", "ms"),
)
# key -> (column's label, the same where there is little room, field)
COLUMNS: Mapping[str, tuple[str, str, str]] = {
    "n": ("Route", "Route", "route"),
    "r": ("Requests", "Reqs", "requests"),
    "e": ("Errors %", "Err%", "error_rate_pct"),
    "5": ("P50 ms", "P50", "latency_p50_ms"),
    "p": ("P95 ms", "P95", "latency_p95_ms"),
    "9": ("P99 ms", "P99", "latency_p99_ms"),
    "s": ("Slowest ms", "Max", "latency_max_ms"),
}
NARROW, NARROW_KEYS = 60, "nrep"  # columns, below which the table has only these of them
UNMATCHED = "<unmatched>"
KEYS = (
    "q quit   ↑ ↓ scroll   sort by n route · r requests · e errors · 5 P50 · p P95 · 9 P99 · "
    "s slowest; again to reverse"
)
PANEL_KEYS = {
    "w": "w workers",
    "l": "l slow requests",
    "x": "x kinds of error",
    "c": "c the app's own numbers",
}


@dataclass
class View:
    """How the table is sorted, which row is its first, and what to say of the connection.

    ``panels``: the keys of the tables that are shown beside that of the routes.
    """

    address: str
    key: str = "r"
    up: bool = False
    top: int = 0
    problem: str = ""
    quit: bool = field(default=False)
    panels: set[str] = field(default_factory=set)

    def press(self, keys: str) -> None:
        """React to what was typed."""
        for key in ESCAPES.findall(keys):
            if key == "q":
                self.quit = True
            elif key in COLUMNS:
                self.up = not self.up if key == self.key else key == "n"
                self.key = key
            elif key in PANEL_KEYS:
                self.panels ^= {key}
            elif key in SCROLL:
                self.top = max(self.top + SCROLL[key], 0)

    def sorted(self, routes: Sequence[Fields]) -> list[Fields]:
        """Return the rows in the order that was asked for."""
        name = COLUMNS[self.key][-1]
        if name != "error_rate_pct":
            return sorted(routes, key=lambda row: row[name], reverse=not self.up)
        # As on the page: what the server failed first, and what is no route of the app last.
        rows = sorted(routes, key=lambda row: (own_errors(row), row[name]), reverse=not self.up)
        return sorted(rows, key=lambda row: bool(row["route"] == UNMATCHED))


def own_errors(row: Fields) -> float:
    """Return the share of a route's requests that the server failed, in percent."""
    return float(row.get("server_error_rate_pct", 0.0))


def run(options: argparse.Namespace) -> int:
    """Run the command; 0 done, 1 no answer, 2 wrong usage, 3 not let in."""
    try:
        server = source_of(options)
        snapshot = _first(server)
        view = View(server.base)
        if options.json:
            told: dict[str, object] = {
                "metrics": snapshot.metrics,
                "routes": snapshot.routes,
                "alerts": snapshot.alerts,
                "custom": snapshot.custom,
                "workers": snapshot.workers,
                "slowest": snapshot.slowest,
                "errors": snapshot.errors,
            }
            if snapshot.health:
                told["health"] = snapshot.health
            json.dump(told, sys.stdout, indent=2)
            print()
        elif options.once or not sys.stdout.isatty():
            # A file or a pipe has no width of its own.
            width = None if sys.stdout.isatty() else PIPE_WIDTH
            console = Console(highlight=False, width=width)
            view.panels = set(PANEL_KEYS)
            console.print(render(snapshot, view, console.width))
        else:
            _live(server, snapshot, view)
    except TopError as error:
        complain("top", error)
        return error.code
    return 0


def _first(server: Source) -> ServerAnswers:
    """Return what the server says; ask for a token where it wants one and somebody is there."""
    try:
        return server.fetch()
    except TopError as error:
        there = sys.stdin.isatty() and sys.stderr.isatty()
        if not isinstance(server, MetricsClient) or server.has_token or not there:
            raise
        if error.code != REFUSED:
            raise
        refused = error
    try:
        token = getpass.getpass(f"Token of {plain(server.base)}: ", sys.stderr).strip()
    except EOFError:
        raise refused from None
    server.use(token)
    return server.fetch()


def _live(server: Source, snapshot: ServerAnswers, view: View) -> None:
    """Show it until q. Raises `TopError` where the server lets nobody in any more."""
    console = Console(highlight=False)
    with (
        _ended_in_order() as ended,
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as screen,
    ):
        asked: Future[ServerAnswers] | None = None
        due = patience_ends = 0.0
        while not view.quit:
            if ended:
                sys.exit(128 + ended[0])
            if asked is None and time.monotonic() >= due:
                asked = server.fetch_aside()
                due = time.monotonic() + EVERY_SECONDS
                patience_ends = time.monotonic() + DEADLINE_SECONDS
            if asked is not None and asked.done():
                try:
                    snapshot, view.problem = asked.result(), ""
                except TopError as error:
                    if error.code == REFUSED:
                        raise
                    view.problem = str(error)
                asked = None
            elif asked is not None and time.monotonic() >= patience_ends:
                # Another question would not be answered either, and have a thread of its own.
                view.problem = str(late(server.base, DEADLINE_SECONDS))
            # A resize may have changed the size; and a key may have come.
            screen.update(fitting(console, snapshot, view), refresh=True)
            view.press(pressed())


def fitting(console: Console, snapshot: ServerAnswers, view: View) -> RenderableType:
    """Return the picture, with as many rows of the table as the terminal has room for."""
    rest = console.render_lines(render(snapshot, view, console.width, rows=0))
    rows = max(console.height - len(rest), 1)
    view.top = min(view.top, max(len(snapshot.routes) - rows, 0))
    return render(snapshot, view, console.width, rows)


@contextmanager
def _ended_in_order() -> Iterator[list[int]]:
    """Have a signal that ends the process leave the terminal as it was.

    Yields:
        The signals that came. Each raises `SystemExit`, too, which is lost where it comes within a
        finalizer or another call that no exception leaves.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        sys.exit(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Keys as they are pressed; the function waits a little, and returns what came."""

    def nothing() -> str:
        time.sleep(KEY_SECONDS)
        return ""

    if termios is None or not sys.stdin.isatty():
        yield nothing
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> str:
        ready, _, _ = select.select([descriptor], [], [], KEY_SECONDS)
        if not ready:
            return ""
        read = os.read(descriptor, 64)
        return read.decode(errors="ignore") if read else "q"  # the terminal is gone

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def render(
    snapshot: ServerAnswers, view: View, width: int, rows: int | None = None
) -> RenderableType:
    """Everything as one picture, with at most so many rows of the table (None: all)."""
    parts: list[RenderableType] = [
        _head(snapshot, view),
        *health_lines(snapshot.health),
        *_alerts(snapshot.alerts),
        _tiles(snapshot.metrics, width),
    ]
    if snapshot.series:
        parts.append(_sparks(snapshot, max(width - BESIDE_BARS, 10)))
    if "w" in view.panels and snapshot.workers:
        parts.append(workers_panel(snapshot.workers, width))
    if "l" in view.panels and snapshot.slowest:
        parts.append(slowest_panel(snapshot.slowest))
    if "x" in view.panels and snapshot.errors:
        parts.append(errors_panel(snapshot.errors, width))
    if "c" in view.panels and snapshot.custom:
        parts.append(custom_panel(snapshot.custom))
    routes = view.sorted(snapshot.routes)
    shown = routes if rows is None else routes[view.top : view.top + rows]
    parts.append(_table(shown, view, width))
    if rows is not None:
        hidden = len(routes) - len(shown)
        more = f"{hidden} more routes   " if hidden else ""
        panels = {
            "w": snapshot.workers,
            "l": snapshot.slowest,
            "x": snapshot.errors,
            "c": snapshot.custom,
        }
        keys = " · ".join([KEYS, *(PANEL_KEYS[key] for key, found in panels.items() if found)])
        parts.append(Text(more + keys, style="dim"))
    return Group(*parts)


def _head(snapshot: ServerAnswers, view: View) -> Text:
    head = Text("Live metrics  ", style="bold", no_wrap=True, overflow="ellipsis")
    head.append(plain(view.address), style="not bold cyan")
    head.append(
        f"  {plain(str(snapshot.metrics.get('timestamp', '')))[11:19]} UTC", style="not bold dim"
    )
    if view.problem:
        head.append(f"\n✖ Connection lost, trying again: {plain(view.problem)}", style="bold red")
    return head


def _alerts(alerts: Sequence[Fields]) -> Iterator[Text]:
    """Return a line for each rule that fires or is about to."""
    for row in alerts:
        style = {"firing": "bold red", "pending": "yellow"}.get(row["state"])
        if style:
            of = f" of {row['route']}" if row["route"] else ""
            unit = unit_of(str(row["field"]))
            said = (
                f"{'▲' if row['state'] == 'firing' else '◷'} {row['type']} {row['state']}: "
                f"{row['field']}{of} is {number(row['value'])}{unit} "
                f"({row['comparison']} {number(row['threshold'])}{unit}), "
                f"since {str(row['since'])[11:19]} UTC"
            )
            yield Text(plain(said), style=style, no_wrap=True, overflow="ellipsis")


def _tiles(metrics: Fields, width: int) -> RenderableType:
    groups = Table.grid(padding=(0, 3))
    grids = []
    for title, tiles in TILES:
        groups.add_column()
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim")
        grid.add_column(justify="right", style="bold")
        grid.add_column(style="dim")
        grid.add_row(Text(title, style="bold not dim"))
        for label, name, unit in tiles:
            grid.add_row(label, number(metrics.get(name)), unit)
        grids.append(grid)
    groups.add_row(*grids)
    return groups if width >= SIDE_BY_SIDE else Group(*grids)


def _sparks(snapshot: ServerAnswers, width: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    for label, name, unit in SPARKS:
        values = [step.get(name) for step in snapshot.series]
        known = [value for value in values if isinstance(value, (int, float))]
        high = max(known, default=0)
        grid.add_row(
            Text(label, style="dim"),
            Text(sparkline(values, width), style="cyan"),
            Text(f"up to {number(high)} {unit}", style="dim"),
        )
    if snapshot.distribution:
        drawn, ends = bars(snapshot.distribution, width)
        grid.add_row(
            Text("Latencies", style="dim"), Text(drawn, style="cyan"), Text(ends, style="dim")
        )
    return grid


def _table(routes: Sequence[Fields], view: View, width: int) -> Table:
    table = bare_table(expand=True)
    columns = {key: COLUMNS[key] for key in (COLUMNS if width >= NARROW else NARROW_KEYS)}
    for key, (long, short, name) in columns.items():
        label = long if width >= WIDE else short
        arrow = (" ↑" if view.up else " ↓") if key == view.key else ""
        if name == "route":
            table.add_column(label + arrow, ratio=1, no_wrap=True, overflow="ellipsis")
        else:
            table.add_column(label + arrow, justify="right", no_wrap=True)
    for row in routes:
        cells = [Text(plain(f"{row['method']} {row['route']}"))]
        for _, _, name in list(columns.values())[1:]:
            failing = name == "error_rate_pct" and own_errors(row) > 0
            cells.append(Text(number(row[name]), style="bold red" if failing else ""))
        table.add_row(*cells)
    return table
