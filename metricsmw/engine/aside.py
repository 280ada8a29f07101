"""Work on files that a record makes due, kept out of event loops.

A record is made in an event loop where the app is an ASGI app. A loop that waits for a file holds
up every request in it, so such work goes to a thread there; elsewhere it is done at once.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from contextlib import suppress


def runs_event_loop() -> bool:
    """Return whether this thread runs an event loop of asyncio."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def do_aside(work: Callable[[float], object], now: float) -> None:
    """Do work that never raises: in a thread, where this one runs an event loop, else at once.

    Not by `threading`, whose start waits for the thread. Where no thread can be started, the work
    is left to the next call.

    Args:
        work: What to do, given the time.
        now: Monotonic seconds.
    """
    if not runs_event_loop():
        work(now)
        return
    with suppress(RuntimeError):
        _thread.start_new_thread(work, (now,))
