"""A site that is watched: two alert rules, and a lasting history in the file that HISTORY names.

`/ok` and `/fail` answer 200 and 500, `/raise` raises; the app itself counts those that went well.
`app` is open to all, `guarded` asks for Basic credentials.
"""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import basic, public
from metricsmw.alerts import MetricsAlerter
from metricsmw.history import SQLiteHistory

RULES = ["error_rate_pct > 50 at least 1 critical", "SLOW_FAILURE: requests > 0 on /fail for 1h"]


async def ok(request: Request) -> Response:
    orders.labels("north").inc()
    payment.observe(0.5)
    queue.set(0.007)
    return PlainTextResponse("ok")


async def fail(request: Request) -> Response:
    return PlainTextResponse("failed", 500)


async def raise_(request: Request) -> Response:
    secret = "a value of a variable"
    raise RuntimeError(f"a message with {secret}")


ROUTES = [Route("/ok", ok), Route("/fail", fail), Route("/raise", raise_)]

monitor = get_metrics_monitor(window_seconds=60)
orders = monitor.counter("orders", "Orders taken.", ["shop"])
payment = monitor.histogram("payment")
queue = monitor.gauge("queue", merge="last")
alerter = MetricsAlerter(monitor, check_interval=0.2, rules=RULES)
lasting = SQLiteHistory(monitor, os.environ["HISTORY"], days=3)
app = wrap(Starlette(routes=ROUTES), monitor, auth=public())
guarded = wrap(Starlette(routes=ROUTES), monitor, auth=basic("ann", "secret"))
