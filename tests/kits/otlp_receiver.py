"""A receiver of OTLP over HTTP on loopback: keeps what came, and can hang or refuse."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)


@dataclass(frozen=True)
class Export:
    """One request that was taken."""

    path: str
    headers: Mapping[str, str]
    request: Any

    @property
    def resource(self) -> dict[str, str]:
        (resource,) = self.request.resource_metrics
        return {pair.key: pair.value.string_value for pair in resource.resource.attributes}

    def metric(self, name: str) -> Any:
        """The metric of that name."""
        (resource,) = self.request.resource_metrics
        (scope,) = resource.scope_metrics
        (found,) = [metric for metric in scope.metrics if metric.name == name]
        return found

    @property
    def requests(self) -> int:
        """The count of all requests that it says."""
        (point,) = self.metric("metricsmw.requests").sum.data_points
        return int(point.as_int)

    @property
    def time(self) -> float:
        (point,) = self.metric("metricsmw.requests").sum.data_points
        return float(point.time_unix_nano) / 1e9


class OTLPReceiver:
    """What was taken, and how it answers: `status`, or not before `go_on` while `hang` is set."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/metrics"
        self.status = 200
        self.hang = threading.Event()
        self.go_on = threading.Event()
        self.asked = 0
        self.exports: list[Export] = []


@contextmanager
def otlp_receiver() -> Iterator[OTLPReceiver]:
    """A receiver for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.asked += 1
            headers = {name.lower(): value for name, value in self.headers.items()}
            if receiver.status < 400:
                request = ExportMetricsServiceRequest.FromString(body)
                receiver.exports.append(Export(self.path, headers, request))
            if receiver.hang.is_set():
                receiver.go_on.wait(60)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = OTLPReceiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
