"""What the commands write to a terminal: text of files and servers can do nothing there."""

from __future__ import annotations

import sys

from metricsmw.cli.text import plain


def plain_lines(text: str) -> str:
    """Return a text of several lines, each of them `plain`."""
    return "\n".join(plain(line.expandtabs()) for line in text.split("\n"))


def write(text: str = "") -> None:
    """Write lines to standard output."""
    print(plain_lines(text), flush=True)


def complain(command: str, message: object) -> None:
    """Write to standard error why a command cannot go on."""
    print(plain_lines(f"metricsmw {command}: {message}"), file=sys.stderr)
