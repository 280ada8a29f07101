"""The latencies of the window in one line of `metricsmw top`: a bar for each of their buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metricsmw.cli.text import number, sparkline

# No bucket of a latency is beyond these, in any scale.
MOST_SCALE, MOST_BUCKET = 8, 10_000


def check_distribution(told: object) -> None:
    """Raise `ValueError` for what is no distribution as `GET /heatmap` has it."""
    if not isinstance(told, dict):
        raise ValueError("distribution is no object")
    if not _is_whole(told.get("scale"), 0, MOST_SCALE):
        raise ValueError("scale is no scale")
    buckets = told.get("buckets")
    if not isinstance(buckets, list) or not all(
        isinstance(one, list)
        and len(one) == 2
        and _is_whole(one[0], -MOST_BUCKET, MOST_BUCKET)
        and _is_whole(one[1], 1, 2**62)
        for one in buckets
    ):
        raise ValueError("buckets are none")


def _is_whole(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def bars(told: Mapping[str, object], width: int) -> tuple[str, str]:
    """Return the distribution as bars, at most so many, and from what to what they reach.

    Args:
        told: A distribution; an empty one has no buckets.
        width: At least 1.
    """
    buckets, scale = told.get("buckets"), told.get("scale")
    if not isinstance(buckets, Sequence) or not isinstance(scale, int) or not buckets:
        return "", "none"
    low, high = min(bucket for bucket, _ in buckets), max(bucket for bucket, _ in buckets)
    each = -(-(high - low + 1) // width)
    counts = [0] * -(-(high - low + 1) // each)
    for bucket, count in buckets:
        counts[(bucket - low) // each] += count
    known = [count or None for count in counts]
    ends = (_time(low - 1, scale), _time(high, scale))
    return sparkline(known, width), f"{ends[0]} to {ends[1]}"


def _time(bucket: int, scale: int) -> str:
    """Return the largest latency of a bucket."""
    milliseconds = 1000 * 2.0 ** (bucket / 2**scale)
    if milliseconds >= 1000:
        return f"{number(round(milliseconds / 1000, 1))} s"
    return f"{number(float(f'{milliseconds:.2g}'))} ms"
