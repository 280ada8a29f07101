"""The frozen records that every reader of the metrics speaks: one moment of the whole server."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone

SnapshotDict = dict[str, str | float | int]  # a snapshot's fields by name


def iso_timestamp(unix_seconds: float) -> str:
    """ISO 8601 in UTC with its offset, e.g. ``2026-01-25T01:16:30.123456+00:00``."""
    moment = datetime.fromtimestamp(unix_seconds, timezone.utc)
    return moment.isoformat(timespec="microseconds")


@dataclass(frozen=True)
class MetricsSnapshot:
    """The numbers of one moment, over all workers of the server.

    Rates and percentiles are over the sliding window; totals are since the start or the last
    reset. Milliseconds, percentages and rates are rounded to 2 decimals.
    """

    timestamp: str
    request_rate_rpm: float
    error_rate_pct: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    active_users: int
    memory_usage_pct: float
    memory_usage_mb: float
    cpu_usage_pct: float
    websocket_connections: int
    total_requests: int
    total_errors: int
    latency_max_ms: float
    requests_in_flight: int
    workers: int
    cpu_share_pct: float
    server_error_rate_pct: float
    total_server_errors: int

    def to_dict(self) -> SnapshotDict:
        """Return the fields by name, in their documented order."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(MetricsSnapshot))
NUMERIC_FIELDS = FIELDS[1:]
INTEGER_FIELDS = frozenset(
    field.name for field in fields(MetricsSnapshot) if field.type in ("int", int)
)

# How many answers of a minute had a status of each class.
STATUS_FIELDS = tuple(f"minute_statuses_{number}xx" for number in range(1, 6))
# What a row of the minute history has behind its snapshot: what was counted in the minute itself.
MINUTE_FIELDS = (
    "minute_seconds",
    "minute_requests",
    "minute_errors",
    "minute_server_errors",
    "minute_request_rate_rpm",
    "minute_error_rate_pct",
    "minute_server_error_rate_pct",
    "minute_latency_p50_ms",
    "minute_latency_p95_ms",
    "minute_latency_p99_ms",
    "minute_latency_max_ms",
    *STATUS_FIELDS,
)
HISTORY_FIELDS = FIELDS + MINUTE_FIELDS
# The time to first byte, over the window of the per-route table: of the server, and of each route.
FIRST_BYTE_FIELDS = ("latency_ttfb_p50_ms", "latency_ttfb_p95_ms", "latency_ttfb_p99_ms")
INTEGER_FIELDS |= {"minute_requests", "minute_errors", "minute_server_errors", *STATUS_FIELDS}


def history_row(at: float, numbers: SnapshotDict) -> SnapshotDict:
    """Return a row of the minute history with its fields in their order and of their types.

    Args:
        at: Its Unix time.
        numbers: The fields behind the timestamp. The minute's own are left out where there are
            none, as in a row of the time before they were kept; so are its statuses below 0.

    Raises:
        OverflowError: There is no such time.
        ValueError: There is no such time.
    """
    row: SnapshotDict = {"timestamp": iso_timestamp(at)}
    known = HISTORY_FIELDS if numbers.get("minute_seconds") else FIELDS
    for name in known[1:]:
        value = float(numbers[name])
        if value < 0 and name in STATUS_FIELDS:
            continue
        row[name] = int(value) if name in INTEGER_FIELDS else value
    return row
