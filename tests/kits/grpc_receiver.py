"""A receiver of OTLP by gRPC on loopback, that keeps what came."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

from kits.otlp_receiver import Export


class Service(MetricsServiceServicer):
    """Keeps what it is sent, with the call's metadata as headers."""

    def __init__(self) -> None:
        self.url = ""
        self.exports: list[Export] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # the name of the call
        headers = dict(context.invocation_metadata())
        self.exports.append(Export("", headers, request))
        return ExportMetricsServiceResponse()


@contextmanager
def grpc_receiver() -> Iterator[Service]:
    """A receiver for the time of the block."""
    server = grpc.server(ThreadPoolExecutor(1))
    receiver = Service()
    add_MetricsServiceServicer_to_server(receiver, server)
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()
