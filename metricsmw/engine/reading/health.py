"""Health: the monitor's own components, and the user's thresholds over a snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Literal, NamedTuple, TypedDict

from metricsmw.engine.storage.header import OTHER_VERSION
from metricsmw.engine.workers.processes import find_root
from metricsmw.engine.workers.surroundings import HERE, Surroundings
from metricsmw.snapshot import NUMERIC_FIELDS, MetricsSnapshot

HealthStatus = Literal["healthy", "degraded"]
OPERATIONAL = "operational"


class HealthCheck(TypedDict):
    """The outcome of thresholds: for each field whether it holds."""

    status: HealthStatus
    checks: dict[str, bool]


class HealthRules(NamedTuple):
    """Thresholds that `GET /health` holds, and its HTTP status where one is exceeded."""

    thresholds: Mapping[str, float]
    status: int


class ServerHealth(TypedDict):
    """The state of the measuring itself; safe to show to anyone.

    ``measured``: whether a middleware measures in this process, or something was recorded.
    ``server_processes``: how many processes serve beside this one and with it, as far as the
    system shows them; asked in private mode only, None: not known.
    """

    status: HealthStatus
    components: dict[str, str]
    workers: int
    mode: str
    mode_reason: str
    segments_left_out: int
    faults: int
    measured: bool
    server_processes: int | None


def check_thresholds(thresholds: Mapping[str, float]) -> None:
    """Check that every threshold is a number for a numeric field of a snapshot.

    Raises:
        TypeError: a threshold is no number.
        ValueError: a snapshot does not have the field, or the threshold is NaN.
    """
    for name, threshold in thresholds.items():
        if name not in NUMERIC_FIELDS:
            raise ValueError(
                f"no snapshot field {name!r}: a threshold may name one of "
                f"{', '.join(NUMERIC_FIELDS)}"
            )
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise TypeError(f"the threshold of {name} must be a number, got {threshold!r}")
        if threshold != threshold:
            raise ValueError(f"the threshold of {name} must be a number, got {threshold!r}")


def check_health(snapshot: MetricsSnapshot, thresholds: Mapping[str, float]) -> HealthCheck:
    """Return which numeric fields of the snapshot are below their thresholds; all must be.

    Raises:
        TypeError: a threshold is no number.
        ValueError: a snapshot does not have the field, or the threshold is NaN.
    """
    check_thresholds(thresholds)
    checks = {name: getattr(snapshot, name) < limit for name, limit in thresholds.items()}
    return {"status": "healthy" if all(checks.values()) else "degraded", "checks": checks}


def left_out(reasons: Iterable[str]) -> str:
    """Return what is said of segments that are left out; "" where none is.

    Args:
        reasons: Why each of them is.
    """
    found = list(reasons)
    other = found.count(OTHER_VERSION)
    damaged = len(found) - other
    parts = [f"{damaged} damaged segments left out"] if damaged else []
    if other:
        parts.append(f"{other} segments of workers of another version left out")
    return "; ".join(parts)


def count_processes(here: Surroundings = HERE) -> int | None:
    """Return how many processes of this one's server serve; None where that is not shown."""
    root = find_root(here)
    if root.problem:
        return None
    if root.process.pid == os.getpid():
        return 1
    import psutil  # here, as importing the package is to cost next to nothing

    try:
        siblings = psutil.Process(os.getppid()).children()
        commands = [" ".join(sibling.cmdline()) for sibling in siblings]
        # multiprocessing has a helper of its own beside the workers.
        return sum("resource_tracker" not in command for command in commands) or None
    except psutil.Error:
        return None
