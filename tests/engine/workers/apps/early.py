"""An app that records something while it is imported."""

from __future__ import annotations

from apps.raw_wsgi import app as app

from metricsmw import get_metrics_monitor

get_metrics_monitor().record_request(1.0)
