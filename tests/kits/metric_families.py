"""Prometheus' protobuf read by Google's library, from a description of client_model's messages."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint32 as decode_varint

FIELD = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "string": FIELD.TYPE_STRING,
    "double": FIELD.TYPE_DOUBLE,
    "uint64": FIELD.TYPE_UINT64,
    "int64": FIELD.TYPE_INT64,
    "int32": FIELD.TYPE_INT32,
    "sint32": FIELD.TYPE_SINT32,
    "uint32": FIELD.TYPE_UINT32,
    "sint64": FIELD.TYPE_SINT64,
}
# message: its fields as (number, name, type); "*" before a type says that it repeats.
MESSAGES: dict[str, list[tuple[int, str, str]]] = {
    "Timestamp": [(1, "seconds", "int64"), (2, "nanos", "int32")],
    "LabelPair": [(1, "name", "string"), (2, "value", "string")],
    "Exemplar": [(1, "label", "*LabelPair"), (2, "value", "double"), (3, "timestamp", "Timestamp")],
    "Gauge": [(1, "value", "double")],
    "Counter": [
        (1, "value", "double"),
        (2, "exemplar", "Exemplar"),
        (3, "created_timestamp", "Timestamp"),
    ],
    "Bucket": [(1, "cumulative_count", "uint64"), (2, "upper_bound", "double")],
    "BucketSpan": [(1, "offset", "sint32"), (2, "length", "uint32")],
    "Histogram": [
        (1, "sample_count", "uint64"),
        (2, "sample_sum", "double"),
        (3, "bucket", "*Bucket"),
        (5, "schema", "sint32"),
        (6, "zero_threshold", "double"),
        (7, "zero_count", "uint64"),
        (12, "positive_span", "*BucketSpan"),
        (13, "positive_delta", "*sint64"),
        (15, "created_timestamp", "Timestamp"),
        (16, "exemplars", "*Exemplar"),
    ],
    "Metric": [
        (1, "label", "*LabelPair"),
        (2, "gauge", "Gauge"),
        (3, "counter", "Counter"),
        (7, "histogram", "Histogram"),
    ],
    "MetricFamily": [
        (1, "name", "string"),
        (2, "help", "string"),
        (3, "type", "int32"),
        (4, "metric", "*Metric"),
        (5, "unit", "string"),
    ],
}


def _family_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="client")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number)
            field.label = FIELD.LABEL_REPEATED if kind[0] == "*" else FIELD.LABEL_OPTIONAL
            bare = kind.lstrip("*")
            field.type = TYPES.get(bare, FIELD.TYPE_MESSAGE)
            if bare not in TYPES:
                field.type_name = f".client.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("client.MetricFamily"))


MetricFamily = _family_class()


def parse(body: bytes) -> list[Any]:
    """Return the families of a body; AssertionError where a message has a field of no known use."""
    families = []
    place = 0
    while place < len(body):
        size, place = decode_varint(body, place)
        family = MetricFamily()
        assert family.ParseFromString(body[place : place + size]) == size
        # What is known is all there is: written again it is as long.
        family_again = MetricFamily()
        family_again.CopyFrom(family)
        family_again.DiscardUnknownFields()
        assert family_again == family
        families.append(family)
        place += size
    return families


def buckets(histogram: Any) -> dict[int, int]:
    """Return the populated buckets of a native histogram by their index."""
    found: dict[int, int] = {}
    deltas = iter(histogram.positive_delta)
    index = count = 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += next(deltas)
            if count:
                found[index] = count
            index += 1
    assert next(deltas, None) is None
    return found


def exemplars(histogram: Any) -> list[Any]:
    """Return the exemplars that a reader takes: those with a timestamp."""
    return [one for one in histogram.exemplars if one.HasField("timestamp")]
