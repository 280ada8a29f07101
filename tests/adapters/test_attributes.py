"""Attributes of a measured app are read as quickly as before, and so are those of a middleware."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from typing import Any

import flask
import pytest
from starlette.applications import Starlette

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython",
    reason="the names of specialised instructions are those of CPython 3.11",
)


def instruction(read: Callable[[Any], object], owner: object) -> str:
    """Return the instruction that a read of an attribute has become after many."""
    for _ in range(1000):
        read(owner)
    (found,) = (
        each.opname
        for each in dis.get_instructions(read, adaptive=True)
        if each.opname.startswith("LOAD_ATTR")
    )
    return found


def test_what_starlette_keeps() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(Starlette(), monitor)
    assert instruction(lambda app: app.middleware_stack, app) == "LOAD_ATTR_WITH_HINT"
    assert instruction(lambda router: router.routes, app.router) == "LOAD_ATTR_WITH_HINT"
    assert not [name for name in vars(app) if name == "_metricsmw"]


def test_the_middleware_of_a_flask_app() -> None:
    with MetricsMonitor() as monitor:
        app = wrap(flask.Flask(__name__), monitor)
        app.test_client().get("/")  # the first request looks for what is inside
    middleware: Any = app.wsgi_app
    found = instruction(lambda each: each.recorder, middleware.__self__)
    assert found == "LOAD_ATTR_INSTANCE_VALUE"
