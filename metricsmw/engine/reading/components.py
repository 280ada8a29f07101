"""What health says of the server's segments and of its processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from metricsmw.engine.storage.header import OTHER_VERSION
from metricsmw.engine.workers.processes import find_root
from metricsmw.engine.workers.surroundings import HERE, Surroundings


def left_out(reasons: Iterable[str]) -> str:
    """Return what is said of segments that are left out; "" where none is.

    Args:
        reasons: Why each of them is.
    """
    found = list(reasons)
    other = found.count(OTHER_VERSION)
    damaged = len(found) - other
    parts = [f"{damaged} damaged segments left out"] if damaged else []
    if other:
        parts.append(f"{other} segments of workers of another version left out")
    return "; ".join(parts)


def count_processes(here: Surroundings = HERE) -> int | None:
    """Return how many processes of this one's server serve; None where that is not shown."""
    root = find_root(here)
    if root.problem:
        return None
    if root.process.pid == os.getpid():
        return 1
    import psutil  # here, as importing the package is to cost next to nothing

    try:
        siblings = psutil.Process(os.getppid()).children()
        commands = [" ".join(sibling.cmdline()) for sibling in siblings]
        # multiprocessing has a helper of its own beside the workers.
        return sum("resource_tracker" not in command for command in commands) or None
    except psutil.Error:
        return None
