"""A bare app, WSGI and ASGI, with an alerter in each worker, as a user would write it.

RECEIVERS: whom it tells, Apprise URLs separated by spaces; or HOOK, the address of an HTTP server,
which takes each worker much less to start. FOR_SECONDS: after how long. PATIENCE: by how much a
check may be late. `/leader` says which worker answers and whether that is the one that checks.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterable
from typing import TYPE_CHECKING

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.alerts import Alert, MetricsAlerter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send


def post(alert: Alert) -> None:
    body = json.dumps({"title": alert.title, "message": str(alert)}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"http://{os.environ['HOOK']}/", body, headers), timeout=10
    ).close()


monitor = get_metrics_monitor(window_seconds=10)
alerter = MetricsAlerter(
    monitor,
    check_interval=0.2,
    thresholds={"error_rate_pct": 50.0},
    at_least=1,
    notify=os.environ.get("RECEIVERS", "").split() or post,
    for_seconds=float(os.environ.get("FOR_SECONDS", "0")),
    patience=float(os.environ.get("PATIENCE", "15")),
)


def who() -> bytes:
    return json.dumps({"pid": os.getpid(), "leads": alerter.is_leader}).encode()


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
