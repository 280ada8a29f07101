"""Prometheus' protobuf: each family as a length-prefixed ``io.prometheus.client.MetricFamily``.

The one format in which Prometheus scrapes native histograms. Only what is needed of the wire format
is written: varints, doubles, and length-delimited messages. Field numbers are those of
client_model's metrics.proto:

    MetricFamily    name 1, help 2, type 3, metric 4, unit 5
    Metric          label 1, gauge 2, counter 3, histogram 7
    LabelPair       name 1, value 2
    Gauge           value 1
    Counter         value 1, exemplar 2, created_timestamp 3
    Histogram       sample_count 1, sample_sum 2, bucket 3, schema 5, zero_threshold 6,
                    positive_span 12, positive_delta 13, created_timestamp 15, exemplars 16
    Bucket          cumulative_count 1, upper_bound 2
    BucketSpan      offset 1, length 2
    Exemplar        label 1, value 2, timestamp 3
    Timestamp       seconds 1, nanos 2

Populated buckets come as spans of consecutive buckets, and their counts as differences to the
bucket before. Source: Prometheus, "Native Histograms", and client_model's metrics.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import sub
from typing import Final

from metricsmw.exporters.model import (
    Attributes,
    CounterFamily,
    Exemplar,
    Exposition,
    Family,
    HistogramFamily,
    HistogramPoint,
    NumberPoint,
)
from metricsmw.exporters.names import Escaping, labels, metric_name, readable, told_unit

COUNTER, GAUGE, HISTOGRAM = 0, 1, 4  # of the enum MetricType
# Of all histograms together, in one body.
MOST_EXEMPLARS = 64
_VARINT, _DOUBLE, _BYTES = 0, 1, 2

_double: Final = struct.Struct("<d").pack


# Most numbers are small, and the same again and again.
@lru_cache(maxsize=4096)
def _varint(number: int) -> bytes:
    """Encode a whole number >= 0: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@lru_cache(maxsize=4096)
def _zigzag(number: int) -> bytes:
    """Encode a whole number of either sign, so that small ones stay short."""
    return _varint(number << 1 if number >= 0 else -(number << 1) - 1)


@lru_cache(maxsize=64)
def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _number(field: int, value: float) -> bytes:
    return _tag(field, _DOUBLE) + _double(value)


def _timestamp(field: int, seconds: float) -> bytes:
    whole = int(seconds // 1)
    nanos = min(int(seconds % 1 * 1e9), 999_999_999)
    return _message(field, _tag(1, _VARINT) + _varint(whole) + _tag(2, _VARINT) + _varint(nanos))


def _labels(attributes: Attributes, escaping: Escaping = "underscores") -> bytes:
    pairs = labels(attributes, escaping).items()
    return b"".join(_message(1, _text(1, name) + _text(2, value)) for name, value in pairs)


def _exemplar(field: int, exemplar: Exemplar) -> bytes:
    content = _labels(exemplar.attributes) + _number(2, exemplar.value)
    return _message(field, content + _timestamp(3, exemplar.time))


def _counter(point: NumberPoint) -> bytes:
    content = _number(1, float(point.value))
    if point.exemplar is not None:
        content += _exemplar(2, point.exemplar)
    if point.started is not None:
        content += _timestamp(3, point.started)
    return _message(3, content)


def _gauge(point: NumberPoint) -> bytes:
    return _message(2, _number(1, float(point.value)))


class _ExemplarWriter:
    """Writes the exemplars of histograms so that each version of Prometheus reads them all.

    Prometheus 2.53 reads on in a histogram's exemplars where it has ended in those of the histogram
    before, and 3.5 does so within a family (other versions begin anew). So before a histogram's own
    stand as many empty ones as were written before. All versions leave those out, as they have no
    timestamp. An empty one takes three bytes; `MOST_EXEMPLARS` bounds them.

    Args:
        families: All that are written, in that order.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        found = [
            point.exemplars
            for family in families
            if isinstance(family, HistogramFamily)
            for point in family.points
            if point.exemplars
        ]
        # Where there are too many: of each series the slowest, of the slowest series.
        self._each = max(1, MOST_EXEMPLARS // max(len(found), 1))
        slowest = sorted((max(one.value for one in exemplars) for exemplars in found), reverse=True)
        self._least = slowest[MOST_EXEMPLARS - 1] if len(found) > MOST_EXEMPLARS else 0.0
        self._written = 0

    def write(self, exemplars: Sequence[Exemplar]) -> bytes:
        """Return the exemplars of the next histogram."""
        if len(exemplars) > self._each:
            chosen = sorted(exemplars, key=lambda one: one.value)[-self._each :]
            exemplars = sorted(chosen, key=lambda one: one.time)
        exemplars = [one for one in exemplars if one.value >= self._least]
        exemplars = exemplars[: MOST_EXEMPLARS - self._written]
        if not exemplars:
            return b""
        empty = _message(16, b"") * self._written
        self._written += len(exemplars)
        return empty + b"".join(_exemplar(16, one) for one in exemplars)


def _histogram(point: HistogramPoint, classic: bool, exemplars: _ExemplarWriter) -> bytes:
    parts = [_tag(1, _VARINT), _varint(point.count), _number(2, point.sum)]
    if classic:
        for bound, count in point.classic():
            parts.append(_message(3, _tag(1, _VARINT) + _varint(count) + _number(2, bound)))
    parts += _tag(5, _VARINT), _zigzag(point.scale), _number(6, 0.0)
    parts += _buckets(point.spans())
    if point.started is not None:
        parts.append(_timestamp(15, point.started))
    parts.append(exemplars.write(point.exemplars))
    return _message(7, b"".join(parts))


def _buckets(spans: Sequence[tuple[int, Sequence[int]]]) -> Iterator[bytes]:
    """Yield the spans and then the deltas of populated buckets.

    Without any a span of no bucket says that this is a native histogram all the same.
    """
    end = 0
    for first, counts in spans or [(0, ())]:
        # The first offset is an index, a later one the gap to the span before.
        offset, length = _zigzag(first - end), _varint(len(counts))
        yield _message(12, _tag(1, _VARINT) + offset + _tag(2, _VARINT) + length)
        end = first + len(counts)
    populated = [count for _, counts in spans for count in counts]
    if populated:
        yield _message(13, b"".join(map(_zigzag, map(sub, populated, [0, *populated]))))


def _family(family: Family, escaping: Escaping, classic: bool, exemplars: _ExemplarWriter) -> bytes:
    metrics: list[tuple[Attributes, bytes]]
    if isinstance(family, HistogramFamily):
        kind = HISTOGRAM
        metrics = [
            (point.attributes, _histogram(point, classic, exemplars)) for point in family.points
        ]
    elif isinstance(family, CounterFamily):
        kind, metrics = COUNTER, [(point.attributes, _counter(point)) for point in family.points]
    else:
        kind, metrics = GAUGE, [(point.attributes, _gauge(point)) for point in family.points]
    name = metric_name(family, escaping)
    parts = [
        _text(1, name),
        _text(2, readable(family.help)),
        _tag(3, _VARINT) + _varint(kind),
    ]
    for attributes, value in metrics:
        parts.append(_message(4, _labels(attributes, escaping) + value))
    parts.append(_text(5, told_unit(family, name)))
    content = b"".join(parts)
    return _varint(len(content)) + content


def write(
    exposition: Exposition, escaping: Escaping = "underscores", classic: bool = False
) -> bytes:
    """Return the families in Prometheus' protobuf, native histograms included.

    Args:
        exposition: What is written; its resource becomes the gauge ``target_info``.
        escaping: How names are written.
        classic: True adds the classic buckets, whose bounds are powers of two.
    """
    families = exposition.all_families()
    exemplars = _ExemplarWriter(families)
    return b"".join(_family(family, escaping, classic, exemplars) for family in families)
