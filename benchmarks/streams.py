"""What open streams cost one worker: the CPU time of a request, and memory, with 200 and without.

A uvicorn worker serves the demo app in a process of its own. A request's cost is all the CPU time
that the worker used in a round, divided by the requests it answered, so what the streams take by
themselves is in it. Rounds with and without streams alternate, as many requests a second in each.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from statistics import median

import psutil
from demo_worker import ASK, TOKEN, answers, demo_worker
from report import Report
from timing import estimate

from metricsmw.adapters.api.sse import PACE

STREAMS = 200
RATE = 1000  # requests a second
LISTEN = (
    f"GET /api/metrics/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def streams(report: Report, quick: bool) -> None:
    """Return the cost of a request and of a stream, with 200 streams open on one worker."""
    report.section(f"{STREAMS} open streams on one uvicorn worker, {RATE} requests a second")
    with demo_worker() as (pid, port):
        without, with_, kilobytes = asyncio.run(
            _measure(psutil.Process(pid), port, 4 if quick else 12)
        )
    rounds = list(zip(without, with_, strict=True))
    report.figure(
        "a request, no stream", estimate(rounds, lambda a, b: median(a)).scaled(1e6), "µs"
    )
    report.figure(
        f"a request, {STREAMS} streams", estimate(rounds, lambda a, b: median(b)).scaled(1e6), "µs"
    )
    ratio = estimate(rounds, lambda a, b: median(b) / median(a))
    report.figure("with streams / without", ratio, "x")
    report.goal(f"a request with {STREAMS} streams / without", ratio, 1.1)
    report.figure("memory of a stream", kilobytes, "KB")
    report.goal("memory of a stream", kilobytes, 50, "KB")


async def _measure(
    worker: psutil.Process, port: int, rounds: int
) -> tuple[list[float], list[float], float]:
    await answers(port)
    await _cost(worker, port)  # warm
    without, with_ = [], []
    kilobytes = 0.0
    for _ in range(rounds):
        without.append(await _cost(worker, port))
        before = worker.memory_info().rss
        listeners = [asyncio.create_task(_listen(port)) for _ in range(STREAMS)]
        await asyncio.sleep(2.0)
        # The first opening is the dear one: later ones find the memory that it left.
        kilobytes = max(kilobytes, (worker.memory_info().rss - before) / STREAMS / 1000)
        with_.append(await _cost(worker, port))
        for listener in listeners:
            listener.cancel()
        await asyncio.wait(listeners)
        await asyncio.sleep(0.5)
    return without, with_, kilobytes


async def _cost(worker: psutil.Process, port: int, seconds: float = 4.0) -> float:
    """CPU seconds that the worker uses for each of the requests of a round."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun, used = time.monotonic(), sum(worker.cpu_times()[:2])
    asked = 0
    while (passed := time.monotonic() - begun) < seconds:
        if asked > passed * RATE:
            await asyncio.sleep(0.001)
            continue
        writer.write(ASK)
        await reader.readuntil(b"}")
        asked += 1
    spent = sum(worker.cpu_times()[:2]) - used
    writer.close()
    return spent / asked


async def _listen(port: int) -> None:
    """Listen as a browser does, which comes back each minute; all do at different moments."""
    lifetime = random.uniform(0, PACE.lifetime)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(LISTEN)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_read(reader), lifetime)
        finally:
            writer.close()
        lifetime = PACE.lifetime


async def _read(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


if __name__ == "__main__":
    shown = Report()
    streams(shown, "--quick" in sys.argv)
    shown.print_goals()
