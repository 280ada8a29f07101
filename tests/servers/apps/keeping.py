"""A bare app, WSGI and ASGI, that keeps its history in the file that HISTORY names.

A minute of it takes a quarter of a second, so that tests need not wait. `/leader` says which worker
answers and whether that is the one that writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.history import SQLiteHistory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send

monitor = get_metrics_monitor()
history = SQLiteHistory(
    monitor, os.environ["HISTORY"], row_seconds=0.25, check_interval=0.05, write_patience=0.2
)


def who() -> bytes:
    return json.dumps({"pid": os.getpid(), "leads": history.is_leader}).encode()


def bare_wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [who()]


async def bare_asgi(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": who()})


app = wrap(bare_wsgi, monitor, auth=public())
asgi_app = wrap(bare_asgi, monitor, auth=public())
