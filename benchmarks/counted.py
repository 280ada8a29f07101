"""Counts contenders on one host, each alone in its process; `callgrind.run` starts this.

python benchmarks/counted.py HOST CONTENDER … PROFILE

Prints a line of JSON for each contender: its figures, or null where it is not installed. The host
is imported once; contenders are built in forks of this process, where nothing has run before.
"""

# ruff: noqa: E402
from __future__ import annotations

import itertools
import time

TICK = 1e-4
"""Seconds between two readings of any clock."""

# Clocks that tell the same times in every run, set before anything binds the real ones. Under
# callgrind those would bring new maxima, steps of windows, and latencies of buckets far away.
time.monotonic = time.perf_counter = itertools.count(1000.0, TICK).__next__
time.time = itertools.count(1_700_000_000.0, TICK).__next__
time.time_ns = itertools.count(1_700_000_000 * 10**9, round(TICK * 1e9)).__next__

import asyncio
import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from callgrind import Counter
from contenders import contenders, drive
from peers import Host, hosts
from raw import garbage_per_request

if TYPE_CHECKING:
    from peers import App

WARM_UP = 200
"""Requests before the first that counts: caches are filled and the interpreter has specialised."""

DRAWS = 3
"""How often each contender is counted; the least counts."""


def count(host: Host, build: Callable[[], App], profile: Path) -> dict[str, float] | None:
    """Return the figures of one request; None where what it needs is not installed."""
    draws = [_in_a_fork(host, build, profile, draw) for draw in range(DRAWS)]
    return min((draw for draw in draws if draw), key=_instructions, default=None)


def _instructions(figures: dict[str, float]) -> float:
    return figures["instructions"]


def _in_a_fork(
    host: Host, build: Callable[[], App], profile: Path, draw: int
) -> dict[str, float] | None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            figures = _count_once(host, build, profile, draw)
            os.write(writing, json.dumps(figures).encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(1)
    figures: dict[str, float] | None = json.loads(answer)
    return figures


def _count_once(
    host: Host, build: Callable[[], App], profile: Path, draw: int
) -> dict[str, float] | None:
    try:
        app = build()
    except ImportError:
        return None
    _draw_versions(draw)
    requests = drive(host, app)

    async def run() -> dict[str, float]:
        requests(WARM_UP)
        gc.collect()
        gc.disable()
        instructions = Counter(profile).per_call(requests)
        return {"instructions": instructions, "garbage": garbage_per_request(requests)}

    return asyncio.run(run())  # some peers ask which loop is running


def _draw_versions(draw: int) -> None:
    """Give all classes new version tags.

    CPython caches the attributes of classes in a table of 4096 places, by the class's version tag
    and the address of the name. Where two that a request needs share a place, each of its requests
    looks both up in vain: up to 2 % more instructions, and which ones do so is chance.
    """
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(object))
    for _ in range(draw * 37):
        hasattr(type("", (), {}), "")


def main() -> None:
    _, name, *names, profile = sys.argv
    (host,) = (host for host in hosts() if host.name == name)
    host.build()
    builds = contenders(host)
    for contender in names:
        print(json.dumps(count(host, builds[contender], Path(profile))), flush=True)


if __name__ == "__main__":
    main()
