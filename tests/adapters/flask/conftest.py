"""Fixtures of Flask's tests: an app, and a monitor."""

from __future__ import annotations

import pytest
from flask import Flask
from kits.flask_site import hello

from metricsmw import MetricsMonitor


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for tests"
    app.add_url_rule("/", view_func=hello, endpoint="root")
    return app
