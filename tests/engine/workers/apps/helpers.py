"""A program that wraps an app, starts helper processes, and serves; the first argument says how.

Prints how many workers and segments there are once it serves, and once its helpers record, too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HELPERS = 2


@wrap
def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What helpers have imported or inherited, too."""
    start_response("200 OK", [])
    return [b"hello"]


def serve() -> None:
    """Answer one request."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SCRIPT_NAME": ""}
    assert b"".join(app(environ, lambda *_: print)) == b"hello"  # type: ignore[arg-type]


def numbers() -> dict[str, int]:
    """Workers, and segments of living and dead ones."""
    monitor = get_metrics_monitor()
    assert monitor.directory is not None
    files = list(monitor.directory.glob("worker-*"))
    return {"workers": monitor.get_current_snapshot().workers, "segments": len(files)}


def helper(ready: int, go: int, over: int) -> None:
    """Say that it runs, and record when told to; end when told by another pipe.

    By the same, a quick helper would take what another is told.
    """
    os.write(ready, b".")
    os.read(go, 1)
    serve()
    os.write(ready, b".")
    os.read(over, 1)


def start(method: str, ready: int, go: int, over: int) -> Callable[[], object]:
    """Start a helper; what waits for its end."""
    if method == "os.fork":
        if (child := os.fork()) == 0:
            helper(ready, go, over)
            os._exit(0)
        return lambda: os.waitpid(child, 0)
    process = multiprocessing.get_context(method).Process(target=opened, args=(ready, go, over))
    process.start()
    return process.join


def opened(ready: int, go: int, over: int) -> None:
    """A helper that may have been spawned, without its parent's descriptors."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    given = ((ready, os.O_WRONLY), (go, os.O_RDONLY), (over, os.O_RDONLY))
    helper(*(os.open(f"/proc/{parent.pid}/fd/{fd}", how) for fd, how in given))


def main() -> None:
    """Be the server."""
    told, ready = os.pipe()
    go, tell = os.pipe()
    over, end_all = os.pipe()
    ends = [start(sys.argv[1], ready, go, over) for _ in range(HELPERS)]
    for _ in ends:
        os.read(told, 1)
    serve()
    before = numbers()
    os.write(tell, b"." * HELPERS)
    for _ in ends:
        os.read(told, 1)
    print(json.dumps([before, numbers()]))
    os.write(end_all, b"." * HELPERS)
    for end in ends:
        end()


if __name__ == "__main__":
    main()
