"""A site whose routes, methods and users are named by somebody who means harm; open to all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NAMES = [
    "/<script>window.hacked=1</script>",
    "/<img src=x onerror=window.hacked=1>",
    "/\"'><b onmouseover=window.hacked=1>quoted",
    "/\u202egnp.exe\u202c/\u200f\u05d0",
    "/{{constructor.constructor('window.hacked=1')()}}",
    "/" + "long/" * 2000,
]


def record_all() -> str:
    """Record one request of each name; how many there are."""
    monitor = get_metrics_monitor()
    for name in NAMES:
        user = name[:500]
        monitor.record_request(1.0, user_id=user, method="<b>GET</b>", route=name, status=200)
        monitor.record_request(1.0, method="GET", route=name, status=500)
        try:
            raise type("Error", (Exception,), {"__module__": name + "\ud800"})(name)
        except Exception as error:
            monitor.recorder.errors.raised(error, 500, name, "GET")
    return str(len(NAMES))


async def record(request: Request) -> Response:
    return PlainTextResponse(record_all())


def bare_wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [record_all().encode()]


app = wrap(Starlette(routes=[Route("/record", record)]), get_metrics_monitor(60), auth=public())
wsgi_app = wrap(bare_wsgi, get_metrics_monitor(60), auth=public())
