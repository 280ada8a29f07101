"""What is done to files of a server, and what its workers say of it then."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import metricsmw.engine.workers.shared
from kits.crew import Worker
from metricsmw import MetricsMonitor
from metricsmw.engine.storage.layout import (
    Field,
)
from metricsmw.snapshot import NUMERIC_FIELDS

ROOT = os.geteuid() == 0
STEP = 5.0
NOBODY = 65534

R = TypeVar("R")

Numbers = tuple[int, dict[str, int], list[str]]


def record(monitor: MetricsMonitor, name: str, times: int) -> None:
    """In a worker: so many requests of one user to one route."""
    for _ in range(times):
        monitor.record_request(10.0, user_id=name, method="GET", route=f"/{name}", status=200)


def numbers(monitor: MetricsMonitor) -> Numbers:
    """In a worker: requests, routes and users, out of an answer that is one."""
    snapshot = monitor.get_current_snapshot().to_dict()
    statistics = monitor.get_statistics()
    values = [float(snapshot[name]) for name in NUMERIC_FIELDS]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    json.dumps([statistics, monitor.get_metrics_history(), monitor.get_health()], allow_nan=False)
    routes = {row["route"]: row["requests"] for row in monitor.get_routes()}
    return monitor.total_requests, routes, monitor.get_active_user_ids()


def segment_path(monitor: MetricsMonitor) -> str:
    """In a worker: its file."""
    group = monitor.membership.group
    assert isinstance(group, metricsmw.engine.workers.shared.SharedGroup)
    return str(group.directory.path / group.name)


def expected(**counts: int) -> Numbers:
    return sum(counts.values()), {f"/{name}": n for name, n in counts.items()}, sorted(counts)


def truncate(length: int) -> Callable[[Path], None]:
    """Cut off at that length; from the end where it is negative."""

    def do(path: Path) -> None:
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)

    return do


def overwrite(
    offset: int, size: int | None, fill: Callable[[int], bytes]
) -> Callable[[Path], None]:
    """Fill so many bytes; to the end where there is no size."""

    def do(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(fill(path.stat().st_size - offset if size is None else size))

    return do


def replace(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put something else in its place."""

    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


def write_text(path: Path) -> None:
    path.write_text("no segment\n" * 1000)


def set_field(field: Field, value: float) -> Callable[[Path], None]:
    return overwrite(field * 8, 8, lambda size: struct.pack("d", value))


zeros = bytes
noise = random.Random(11).randbytes


def ones(size: int) -> bytes:
    return b"\xff" * size


def left_out(worker: Worker) -> int:
    """How many segments that worker says it leaves out."""
    health = worker.do(MetricsMonitor.get_health)
    assert (health["status"] == "degraded") == (health["segments_left_out"] > 0), health
    return health["segments_left_out"]
