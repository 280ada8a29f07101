"""A server that is told what to do: a master, and the workers that it forks.

    family.py <name of a socket> [--preload] [--daemonise] [--settings JSON]

The master connects to the socket, and each worker does; over its connection a process gets one
order a line, ``["name", argument, …]``, and answers each with one line of JSON. Unless told to
`--preload`, the master never imports the package, as gunicorn's does not. With `--daemonise` it
leaves its parents behind once it has (or has not) imported it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

path = sys.argv[1]
settings: dict[str, Any] = {}
if "--settings" in sys.argv:
    settings = json.loads(sys.argv[sys.argv.index("--settings") + 1])
held: list[Any] = []


def monitor() -> Any:
    from metricsmw import get_metrics_monitor

    return get_metrics_monitor(**settings)


def announce() -> None:
    monitor().recorder.register_worker()


def record(number: int = 1, user: str | None = None) -> None:
    for _ in range(number):
        monitor().record_request(5.0, user_id=user)


def route(number: int, method: str = "GET") -> None:
    for k in range(number):
        monitor().record_request(5.0, method=method, route=f"/route/{k}", status=200)


def read() -> dict[str, Any]:
    snapshot: dict[str, Any] = monitor().get_current_snapshot().to_dict()
    return snapshot


def health() -> Any:
    return monitor().get_health()


def statistics() -> Any:
    return monitor().get_statistics()


def routes() -> Any:
    return monitor().get_routes()


def history() -> Any:
    return monitor().get_metrics_history()


def directory() -> str:
    return str(monitor().directory)


def reset() -> None:
    monitor().reset_statistics()


def close() -> None:
    monitor().close()


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def pretend(module: str, attributes: dict[str, Any]) -> None:
    """Have a module of that name, as an embedding server puts one there."""
    import types

    sys.modules[module] = types.ModuleType(module)
    vars(sys.modules[module]).update(attributes)


def chdir(to: str) -> None:
    os.chdir(to)


def limit_files(spare: int) -> None:
    """Leave this process so many descriptors that it may still open."""
    monitor()  # with all that is loaded for it
    most = open_files() + spare if spare else 3
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def allow_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def hold_memory(mebibytes: int) -> None:
    held.append(bytearray(os.urandom(1024)) * (1024 * mebibytes))


def pid() -> int:
    return os.getpid()


def run(code: str) -> Any:
    """Run some lines; what they leave as ``answer``."""
    names: dict[str, Any] = {"monitor": monitor, "held": held}
    exec(code, names)
    return names.get("answer")


def fork(preparation: list[list[Any]]) -> None:
    """Fork a worker, which does what is in the list first."""
    if os.fork() == 0:
        connection.close()
        for name, *arguments in preparation:
            ORDERS[name](*arguments)
        sys.exit(obey())


def execute() -> None:
    """Start this very command line again, as an upgrade does."""
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, *sys.argv])


ORDERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        announce, record, route, read, health, statistics, routes, history, directory, reset,
        close, become, pretend, chdir, limit_files, allow_files, open_files, burn, hold_memory,
        pid, run, fork, execute,
    )
}  # fmt: skip

connection = socket.socket(socket.AF_UNIX)


def obey() -> int:
    global connection
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{path}")
    orders = connection.makefile("r", encoding="utf-8")
    for line in orders:
        name, *arguments = json.loads(line)
        if name == "exit":
            return 0
        try:
            answer = {"answer": ORDERS[name](*arguments)}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        connection.sendall(json.dumps(answer).encode() + b"\n")
    return 0


def main() -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are buried at once
    if "--preload" in sys.argv:
        announce()
    if "--daemonise" in sys.argv:
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
    return obey()


if __name__ == "__main__":
    sys.exit(main())
