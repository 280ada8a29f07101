"""A bare WSGI app with an alerter in each worker, as a user would write it.

RECEIVERS: whom it tells, Apprise URLs separated by spaces. `/leader` says which worker answers and
whether that is the one that checks.
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

monitor = get_metrics_monitor(window_seconds=10)
alerter = MetricsAlerter(
    monitor,
    check_interval=0.2,
    thresholds={"error_rate_pct": 50.0},
    notify=os.environ["RECEIVERS"].split(),
)


def bare(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    status = "500 Internal Server Error" if path == "/fail" else "200 OK"
    leads = alerter._once._fd >= 0
    body = json.dumps({"pid": os.getpid(), "leads": leads}).encode()
    start_response(status, [("Content-Type", "application/json")])
    return [body]


app = wrap(bare, monitor, auth=public())
