"""The demo app on one uvicorn worker in a process of its own, for benchmarks that ask by HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TOKEN = "benchmark"
ASK = b"GET /fast HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def demo_worker() -> Iterator[tuple[int, int]]:
    """Yield the process id of a worker and its port; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "uvicorn", "metricsmw.cli.demo_app:app", "--port", str(port)]
    worker = subprocess.Popen(
        [sys.executable, *command, "--log-level", "error", "--no-access-log"],
        env={**os.environ, "METRICSMW_TOKEN": TOKEN},
        cwd="/",
    )
    try:
        yield worker.pid, port
    finally:
        worker.terminate()
        worker.wait()


async def answers(port: int) -> None:
    """Wait until the worker takes connections."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
