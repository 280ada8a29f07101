"""What pollers of `/routes` cost everybody else: the median latency of other requests, in a crowd.

A uvicorn worker serves the demo app beside 15 workers of the same server, each with 200 routes that
have requests. A client asks for `/fast` over and over, alone and while three others ask for the
table of routes as fast as they get it. Rounds with and without them alternate.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from statistics import median, quantiles

from demo_worker import ASK, TOKEN, answers, demo_worker
from report import Report
from timing import estimate

from metricsmw import MetricsMonitor

WORKERS = 16
ROUTES = 200
POLLERS = 3
SECONDS = 3.0
PAUSE = 0.002  # seconds between requests: the worker is not at its limit
POLL = (
    f"GET /api/metrics/routes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def polled(report: Report, quick: bool) -> None:
    """Report the median latency of a request with three pollers of `/routes`, and without."""
    report.section(f"{POLLERS} pollers of /routes, {WORKERS} workers, {ROUTES} routes")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o700)
        os.environ["METRICSMW_DIR"] = directory
        release, held = os.pipe()
        ready, is_ready = os.pipe()
        others = [_other_worker(release, held, is_ready) for _ in range(WORKERS - 1)]
        waiting = len(others)
        while waiting:
            waiting -= len(os.read(ready, waiting))
        try:
            with demo_worker() as (_, port):
                alone, beside, polls = asyncio.run(_measure(port, 3 if quick else 10))
        finally:
            os.close(held)
            for other in others:
                os.waitpid(other, 0)
            del os.environ["METRICSMW_DIR"]
    rounds = [(median(a), median(b)) for a, b in zip(alone, beside, strict=True)]
    names = "alone", f"{POLLERS} pollers"
    report.figure(
        f"a request, {names[0]}", estimate(rounds, lambda a, b: median(a)).scaled(1e3), "ms"
    )
    report.figure(
        f"a request, {names[1]}", estimate(rounds, lambda a, b: median(b)).scaled(1e3), "ms"
    )
    for name, of_rounds in zip(names, (alone, beside), strict=True):
        ends = [quantiles(latencies, n=100)[98] for latencies in of_rounds]
        report.figure(f"its p99, {name}", median(ends) * 1e3, "ms")
    report.figure("answers to a poller a second", polls / POLLERS, "")
    ratio = estimate(rounds, lambda a, b: median(b) / median(a))
    report.goal(f"median with {POLLERS} pollers / alone", ratio, 1.25)


def _other_worker(release: int, held: int, is_ready: int) -> int:
    """Fork a worker that has recorded every route, and stays until `held` is closed."""
    pid = os.fork()
    if pid:
        return pid
    os.close(held)
    monitor = MetricsMonitor(shared=True, max_routes=ROUTES)
    chance = random.Random(os.getpid())
    for route in range(ROUTES):
        for _ in range(20):
            latency = chance.lognormvariate(3, 1)
            monitor.record_request(latency, method="GET", route=f"/section/{route}", status=200)
    os.write(is_ready, b".")
    os.read(release, 1)
    os._exit(0)


async def _measure(port: int, rounds: int) -> tuple[list[list[float]], list[list[float]], float]:
    await answers(port)
    await _latencies(port)  # warm
    alone, beside = [], []
    polls = [0]
    for _ in range(rounds):
        alone.append(await _latencies(port))
        pollers = [asyncio.create_task(_poll(port, polls)) for _ in range(POLLERS)]
        beside.append(await _latencies(port))
        for poller in pollers:
            poller.cancel()
        await asyncio.wait(pollers)
    return alone, beside, polls[0] / (rounds * SECONDS)


async def _latencies(port: int) -> list[float]:
    """Return the latencies of a round, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = time.perf_counter()
        writer.write(ASK)
        await reader.readuntil(b"}")
        found.append(time.perf_counter() - begun)
        await asyncio.sleep(PAUSE)
    writer.close()
    return found


async def _poll(port: int, polls: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(POLL)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
            polls[0] += 1
    finally:
        writer.close()


if __name__ == "__main__":
    shown = Report()
    polled(shown, "--quick" in sys.argv)
    shown.print_goals()
