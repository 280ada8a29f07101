"""What the engine costs: recording, reading, memory and import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from described import DescribedMonitor
from timing import Batch, Estimate, calls, empty_loop, estimate, race, race_once

from metricsmw import MetricsMonitor

if TYPE_CHECKING:
    from report import Report

    Record = Callable[[float], object]

HERE = Path(__file__).parent
LOOP = "empty loop"
CLOCK = "one perf_counter()"
RECORD = "record_request(latency_ms)"
FULL = "record_request, all arguments"
DESCRIBED = "described way"
THREADS = 8
DEAD = 1000  # generations of workers
BURST = 80_000  # records, so many that starting the threads does not count
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


def record(report: Report, quick: bool) -> None:
    """One record, beside one reading of the clock; then on 8 threads."""
    monitor, full, described = MetricsMonitor(), MetricsMonitor(), DescribedMonitor()
    timed = race(
        {
            LOOP: empty_loop,
            CLOCK: calls(perf_counter),
            RECORD: calls(monitor.record_request, 12.5),
            FULL: calls(
                full.record_request, 12.5, False, "u", method="GET", route="/a", status=200
            ),
            DESCRIBED: calls(described.record_request, 12.5),
        },
        50 if quick else 300,
        0.002,
    )
    report.section("one record, one thread")
    for name in (CLOCK, RECORD, FULL, DESCRIBED):
        report.figure(name, timed.added(name, LOOP).scaled(1e9), "ns")
    for name in (RECORD, FULL, DESCRIBED):
        report.figure(f"{name} / {CLOCK}", timed.ratio(name, CLOCK, LOOP), "x")
    report.goal(f"{RECORD} / {CLOCK}", timed.ratio(RECORD, CLOCK, LOOP), 5)

    report.section(f"one record, {THREADS} threads that do nothing else (wall time a record)")
    monitor, alone, described = MetricsMonitor(), MetricsMonitor(), DescribedMonitor()
    timed = race_once(
        {
            LOOP: partial(empty_loop, BURST),
            "one thread": partial(calls(alone.record_request, 12.5), BURST),
            RECORD: partial(_on_threads, calls(monitor.record_request, 12.5)),
            DESCRIBED: partial(_on_threads, calls(described.record_request, 12.5)),
        },
        3 if quick else 8,
    )
    for name in ("one thread", RECORD, DESCRIBED):
        report.figure(name, timed.added(name, LOOP).scaled(1e9 / BURST), "ns")
    ratio = timed.ratio(RECORD, "one thread", LOOP)
    report.figure(f"{THREADS} threads / one thread", ratio, "x")
    report.goal(f"a record: {THREADS} threads / one thread", ratio, 3)


def readers(report: Report, quick: bool) -> None:
    """Return the tail of one record while snapshots are read, and without."""
    report.section(f"p99 of one record on {THREADS} threads, a snapshot read every 0.1 s")
    for name, monitor in (("ours", MetricsMonitor()), (DESCRIBED, DescribedMonitor())):
        rounds = []
        for _ in range(10_000):  # as many as the described way keeps
            monitor.record_request(12.5)
        for _ in range(2 if quick else 8):
            quiet = _p99(monitor.record_request, lambda: None)
            rounds.append((quiet, _p99(monitor.record_request, monitor.get_current_snapshot)))
        without = estimate(rounds, lambda quiet, _: median(quiet))
        report.figure(f"{name}, without readers", without.scaled(1e6), "us")
        read = estimate(rounds, lambda _, read: median(read))
        report.figure(f"{name}, with readers", read.scaled(1e6), "us")
        ratio = estimate(rounds, lambda quiet, read: median(read) / median(quiet))
        report.figure(f"{name}, with / without", ratio, "x")
        if name == "ours":
            report.goal("p99 of a record: with / without readers", ratio, 3)


def snapshot(report: Report, quick: bool) -> None:
    """One snapshot of 1, 8 and 64 live workers; with few and with many requests."""
    report.section("one snapshot")
    rounds = 25 if quick else 150
    cases = [(1, 1, 0.15), (1, 1_000_000, 0.15), (8, 10_000, 0.5), (64, 10_000, 4.0)]
    costs = []
    for workers, requests, limit in cases:
        name = f"{workers} segments, {requests:,} requests each"
        with tempfile.TemporaryDirectory() as directory:
            found = _child("workers.py", workers, requests, rounds, METRICSMW_DIR=directory)
        cost = Estimate(**found["ours"]).scaled(1e3)
        costs.append(cost.value)
        report.figure(name, cost, "ms")
        report.goal(f"snapshot: {name}", cost, limit, "ms")
        if workers == 1:
            report.figure("  the described way", Estimate(**found["described"]).scaled(1e3), "ms")
    report.figure("1,000,000 requests / 1 request", costs[1] / costs[0], "x")


def workers(report: Report, quick: bool) -> None:
    """One reading of a server, beside the known multi-process client's scrape; the dead too."""
    report.section("one reading of a whole server, beside a multi-process scrape")
    costs = {}
    for live, dead, rounds in ((1, 0, 50), (8, 0, 20), (64, 0, 8), (1, DEAD, 4)):
        name = f"{live} live" + (f", {dead:,} dead before" if dead else "")
        with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
            found = _child(
                "generations.py",
                *(live, dead, 2 if quick else rounds, 2000),
                METRICSMW_DIR=ours,
                PROMETHEUS_MULTIPROC_DIR=theirs,
            )
        for what, cost in found["costs"].items():
            report.figure(f"{name}: {what}", Estimate(**cost).scaled(1e3), "ms")
        for what, ratio in found["ratios"].items():
            report.figure(f"  scrape / {what}", Estimate(**ratio), "x")
        if not found["ratios"]:
            report.missing("  prometheus_client")
        costs[live, dead] = Estimate(**found["costs"]["snapshot and routes"]).value
    ratio = costs[1, DEAD] / costs[1, 0]
    report.figure(f"snapshot and routes: {DEAD:,} dead before / none", ratio, "x")
    report.goal(f"a reading: {DEAD:,} dead workers before / none", ratio, 1.2)


def custom(report: Report, quick: bool) -> None:
    """One record of the app's own numbers, beside `record_request` and the known client."""
    report.section("one record of the app's own numbers")
    with tempfile.TemporaryDirectory() as theirs:
        found = _child("custom.py", 50 if quick else 300, PROMETHEUS_MULTIPROC_DIR=theirs)
    for name, cost in found["costs"].items():
        report.figure(name, Estimate(**cost).scaled(1e9), "ns")
    for name, ratio in found["ratios"].items():
        report.goal(f"{name} / record_request", Estimate(**ratio), 1.5)
    report.figure("known client's labelled observe / ours", Estimate(**found["client"]), "x")


def scrape(report: Report, quick: bool) -> None:
    """One scrape of 8 workers with 200 routes, beside `/routes` and the known client's."""
    report.section("one scrape of 8 workers with 200 routes")
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        found = _child(
            "scrape.py",
            *(8, 200, 50 if quick else 500, 8 if quick else 40, 50 if quick else 1000),
            METRICSMW_DIR=ours,
            PROMETHEUS_MULTIPROC_DIR=theirs,
        )
    for name, cost in found["costs"].items():
        report.figure(name, Estimate(**cost).scaled(1e3), "ms")
    for name, (plain, compressed) in found["bytes"].items():
        report.figure(f"{name}: size", plain / 1024, "KiB")
        report.figure(f"{name}: size, gzip", compressed / 1024, "KiB")
    report.figure("a scrape / prometheus_client's", Estimate(**found["beside"]), "x")
    report.goal("a scrape / get_routes()", Estimate(**found["ratio"]), 1.5)
    report.goal("a scrape after dead workers / before", Estimate(**found["growth"]), 1.25)


def memory(report: Report, quick: bool) -> None:
    """Return one worker's memory after a window in which every step had requests."""
    report.section("memory of one worker, every step of the window touched")
    for routes, limit in ((0, 1.5), (50, 6), (200, 16)):
        private = _child("footprint.py", "private", routes)
        with tempfile.TemporaryDirectory() as directory:
            shared = _child("footprint.py", "shared", routes, METRICSMW_DIR=directory)
        report.figure(f"{routes} routes: private monitor, own memory", private["own"], "MiB")
        report.figure(f"{routes} routes: shared segment, size of files", shared["size"], "MiB")
        report.figure(f"{routes} routes: shared segment, blocks", shared["blocks"], "MiB")
        report.figure(f"{routes} routes: shared, all memory", shared["own"], "MiB")
        most = max(private["own"], shared["own"], shared["blocks"])
        report.goal(f"memory of a worker with {routes} routes", most, limit, "MiB")


def imports(report: Report, quick: bool) -> None:
    """Return the time of an import in a fresh interpreter, its start not counted."""
    report.section("import, in a fresh interpreter")
    modules = ["metricsmw", "metricsmw.adapters", "prometheus_client", "psutil"]
    for module in list(modules):
        if _import_seconds(module) is None:  # the first import also compiles
            report.missing(module)
            modules.remove(module)
    rounds = [
        [_import_seconds(module) or 0.0 for module in modules] for _ in range(10 if quick else 40)
    ]
    # The quietest half, as `race` has it.
    rounds = sorted(rounds, key=sum)[: len(rounds) // 2]
    for column, module in enumerate(modules):
        cost = estimate([(row[column],) for row in rounds], median)
        report.figure(module, cost.scaled(1e3), "ms")
    if "prometheus_client" in modules:
        ratio = estimate(rounds, lambda ours, _, theirs, *__: median(ours) / median(theirs))
        report.figure("metricsmw / prometheus_client", ratio, "x")
        report.goal("import: metricsmw / prometheus_client", ratio, 0.5)


def _on_threads(batch: Batch) -> None:
    """Record a burst, shared out to threads."""
    threads = [threading.Thread(target=batch, args=(BURST // THREADS,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _p99(record: Record, read: Callable[[], object]) -> float:
    """Seconds that one record in a hundred exceeds, while `read` is called every 0.1 s."""
    done = threading.Event()
    taken: list[list[float]] = [[] for _ in range(THREADS)]

    def work(mine: list[float]) -> None:
        while not done.is_set():
            for _ in repeat(None, 15):
                record(12.5)
            start = perf_counter()
            record(12.5)
            mine.append(perf_counter() - start)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for _ in range(10):
        done.wait(0.1)
        read()
    done.set()
    for thread in threads:
        thread.join()
    everything = sorted(value for mine in taken for value in mine)
    return everything[len(everything) * 99 // 100]


def _child(script: str, *arguments: object, **environment: str) -> Any:
    """Return the JSON document that a script of this folder prints."""
    answer = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(answer.stdout)


def _import_seconds(module: str) -> float | None:
    program = (
        "from time import perf_counter; start = perf_counter()\n"
        f"import {module}; print(perf_counter() - start)"
    )
    # From elsewhere: the folder of the sources would hide the installed package.
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=HERE,
        env={name: value for name, value in os.environ.items() if name != NO_BYTECODE},
        capture_output=True,
        text=True,
        check=False,
    )
    return float(answer.stdout) if answer.returncode == 0 else None
