"""A bare app, WSGI and ASGI, that records the latencies it is sent: `GET /sent?ms=1.5,20,3`.

So a test knows exactly what was measured, also by numbers of the app's own. Its own requests are in
no number, but for those of `GET /slow`, which takes 50 ms; each answer names the worker that gave
it. Where the environment names a receiver, the numbers are pushed to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.exporting import OTLPExport

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send

monitor = get_metrics_monitor()
if "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" in os.environ:
    OTLPExport(monitor)
orders = monitor.counter("orders", "Latencies sent.", ["shop"]).labels("north")
queue = monitor.gauge("queue", merge="last")
payment = monitor.histogram("payment")


def take(path: str, query: str) -> bytes:
    if path == "/slow":
        time.sleep(0.05)
    for text in filter(None, ",".join(parse_qs(query).get("ms", [])).split(",")):
        monitor.record_request(float(text), method="GET", route="/sent", status=200)
        orders.inc()
        queue.set(float(text))
        payment.observe(float(text) / 1000)
    return str(os.getpid()).encode()


def bare_wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [take(environ["PATH_INFO"], environ["QUERY_STRING"])]


async def bare_asgi(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    body = take(scope["path"], scope["query_string"].decode())
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


wsgi = wrap(bare_wsgi, monitor, auth=public(), exclude=["/sent"])
asgi = wrap(bare_asgi, monitor, auth=public(), exclude=["/sent"])
