"""Health: the monitor's own components, and the user's thresholds over a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Literal, NamedTuple, TypedDict

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
