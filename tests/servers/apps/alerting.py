"""A bare app, WSGI and ASGI, with an alerter in each worker, as a user would write it.

RECEIVERS: whom it tells, Apprise URLs separated by spaces. FOR_SECONDS: after how long. `/leader`
says which worker answers and whether that is the one that checks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.alerts import MetricsAlerter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.asgi import Receive, Scope, Send

monitor = get_metrics_monitor(window_seconds=10)
alerter = MetricsAlerter(
    monitor,
    check_interval=0.2,
    thresholds={"error_rate_pct": 50.0},
    notify=os.environ["RECEIVERS"].split(),
    for_seconds=float(os.environ.get("FOR_SECONDS", "0")),
)


def who() -> bytes:
    return json.dumps({"pid": os.getpid(), "leads": alerter._once.leads}).encode()


def bare_wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    failed = environ["PATH_INFO"] == "/fail"
    start_response(
        "500 Internal Server Error" if failed else "200 OK", [("Content-Type", "application/json")]
    )
    return [who()]


async def bare_asgi(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    status = 500 if scope["path"] == "/fail" else 200
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": who()})


app = wrap(bare_wsgi, monitor, auth=public())
asgi_app = wrap(bare_asgi, monitor, auth=public())
