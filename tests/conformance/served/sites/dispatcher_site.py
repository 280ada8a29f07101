"""Two Flask apps mounted by Werkzeug's dispatcher, which is what gets wrapped."""

from __future__ import annotations

from dataclasses import replace

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from . import flask_site


def make() -> DispatcherMiddleware:
    return DispatcherMiddleware(flask_site.make_plain(), {"/mounted": flask_site.make_mounted()})


SITE = replace(flask_site.SITE, make=make)
