"""Alerts: rules over a monitor's numbers, and notifications of what changed."""

from metricsmw.alerts.alert import Alert
from metricsmw.alerts.alerter import MetricsAlerter
from metricsmw.alerts.delivery import Retry
from metricsmw.alerts.outbox import AlertRow, get_alerts
from metricsmw.alerts.rules import BurnRate, Rule, parse

__all__ = [
    "Alert",
    "AlertRow",
    "BurnRate",
    "MetricsAlerter",
    "Retry",
    "Rule",
    "get_alerts",
    "parse",
]
