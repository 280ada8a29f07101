"""A site that mounts the metrics at their usual place, and has no middleware that measures."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from metricsmw.adapters.auth import public
from metricsmw.adapters.wsgi import metrics_app

app = DispatcherMiddleware(Flask(__name__), {"/api/metrics": metrics_app(auth=public())})
