"""WSGI apps of frameworks with one route, `/things/{number}`, that answers its number."""

from __future__ import annotations

from typing import Any

import falcon
from pyramid.config import Configurator  # type: ignore[import-untyped]
from pyramid.response import Response  # type: ignore[import-untyped]


class Thing:
    def on_get(self, req: falcon.Request, resp: falcon.Response, number: str) -> None:
        resp.text = number


def falcon_app() -> Any:
    app = falcon.App()
    app.add_route("/things/{number}", Thing())
    return app


def pyramid_app() -> Any:
    with Configurator() as config:
        config.add_route("thing", "/things/{number}")
        config.add_view(lambda request: Response(request.matchdict["number"]), route_name="thing")
        return config.make_wsgi_app()
