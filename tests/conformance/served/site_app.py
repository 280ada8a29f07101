"""All sites of a kind in one server, each with a monitor of its own and in every form.

A request says by X-Site which one it means, a module of `sites`, and by X-Form in which form: bare
and measured, a client can compare their answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

from sites import FORMS, Site

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.types import Receive, Scope, Send


@cache
def monitor_of(site: str) -> MetricsMonitor:
    return MetricsMonitor()


@cache
def app_of(site: str, form: str) -> Any:
    made: Site = import_module(f"sites.{site}").SITE
    return FORMS[form](made, partial(wrap, monitor=monitor_of(site)))


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    site = environ.get("HTTP_X_SITE", "raw_wsgi")
    app = app_of(site, environ.get("HTTP_X_FORM", "measured"))
    body: Iterable[bytes] = app(environ, start_response)
    return body


validated = validator(wsgi)


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    headers = dict(scope.get("headers", ()))
    site = headers.get(b"x-site", b"raw_asgi").decode()
    app = app_of(site, headers.get(b"x-form", b"measured").decode())
    await app(scope, receive, send)
