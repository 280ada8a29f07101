"""The site that SITE names, measured; and bare for requests that say X-Bare.

Both in one server, so that a client can compare their answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from sites import Site

from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from metricsmw.adapters.asgi import Receive, Scope, Send

site: Site = import_module(f"sites.{os.environ['SITE']}").SITE
bare = site.make()
measured = wrap(site.make())


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    app = bare if "HTTP_X_BARE" in environ else measured
    body: Iterable[bytes] = app(environ, start_response)
    return body


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    is_bare = scope["type"] == "http" and any(name == b"x-bare" for name, _ in scope["headers"])
    await (bare if is_bare else measured)(scope, receive, send)


app = asgi if site.is_asgi else wsgi
