"""When the server's counters began, as Unix time: one number that all its workers agree on.

Workers know that moment on the monotonic clock, and the difference of the two clocks is never
twice the same. So the worker that first exports works it out and leaves it in the server's
directory, in a file named by the monotonic time, and all exports say what stands there.
"""

from __future__ import annotations

from contextlib import suppress

from metricsmw.engine.directory import Directory

PREFIX = "started-"
MAX_BYTES = 64
MAX_TIME = 253_402_300_800.0  # the year 10000

_known: dict[tuple[tuple[int, int] | None, str], float] = {}


def unix_time(directory: Directory | None, moment: float, now: float, wall: float) -> float:
    """Return the Unix time of a monotonic ``moment``, the same in all workers.

    Args:
        directory: That of the server's workers; None for a monitor that is private to its process.
        moment: When the counters began; monotonic seconds.
        now: The monotonic time of this moment.
        wall: The Unix time of this moment.
    """
    name = f"{PREFIX}{moment:.9f}"
    place = None if directory is None else directory.identity
    key = place, name
    if key not in _known:
        # A machine may not know the time: formats have none before 1970.
        worked_out = max(wall - (now - moment), 0.0)
        found = worked_out if directory is None else _agree(directory, name, worked_out)
        # Of a directory the last one counts: another one begins with a reset.
        for other in [other for other in _known if other[0] == place]:
            del _known[other]
        _known[key] = found
    return _known[key]


def _agree(directory: Directory, name: str, worked_out: float) -> float:
    """Return what stands in the file, having written it unless another worker has."""
    with suppress(OSError, ValueError):
        with suppress(FileNotFoundError):
            return _parse(directory.read(name, MAX_BYTES))
        directory.write_first(name, repr(worked_out).encode())
        for old in directory.files(PREFIX):
            if old != name:
                directory.remove(old)
        return _parse(directory.read(name, MAX_BYTES))
    return worked_out


def _parse(text: bytes) -> float:
    """Return a Unix time. Raises ValueError for what cannot be one."""
    time = float(text)
    if not 0 <= time < MAX_TIME:
        raise ValueError("no Unix time")
    return time
