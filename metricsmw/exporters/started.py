"""When the server's counters began, as Unix time: one number that all its workers agree on.

Workers know that moment on the monotonic clock, and the difference of the two clocks is never
twice the same. So the worker that first exports works it out and leaves it in the server's
directory, in a file named by the monotonic time, and all exports say what stands there.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

PREFIX = "started-"

_known: dict[tuple[Path | None, str], float] = {}


def unix_time(directory: Path | None, moment: float, now: float, wall: float) -> float:
    """Return the Unix time of a monotonic ``moment``, the same in all workers.

    Args:
        directory: That of the server's workers; None for a monitor that is private to its process.
        moment: When the counters began; monotonic seconds.
        now: The monotonic time of this moment.
        wall: The Unix time of this moment.
    """
    name = f"{PREFIX}{moment:.9f}"
    key = directory, name
    if key not in _known:
        worked_out = wall - (now - moment)
        found = worked_out if directory is None else _agree(directory, name, worked_out)
        # Of a directory the last one counts: another one begins with a reset.
        for other in [other for other in _known if other[0] == directory]:
            del _known[other]
        _known[key] = found
    return _known[key]


def _agree(directory: Path, name: str, worked_out: float) -> float:
    """Return what stands in the file, having written it unless another worker has."""
    path = directory / name
    draft = directory / f"new-{name}-{os.getpid()}-{threading.get_ident()}"
    with suppress(OSError, ValueError):
        if not path.exists():
            try:
                draft.write_text(repr(worked_out), encoding="ascii")
                # Not a replacement: the file appears as a whole, and of two the first stays.
                with suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            for old in directory.glob(f"{PREFIX}*"):
                if old != path:
                    old.unlink(missing_ok=True)
        return float(path.read_text(encoding="ascii"))
    return worked_out
