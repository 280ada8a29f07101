"""Alerts: rules over a monitor's numbers, and notifications of what changed."""

from metricsmw.alerts.alert import Alert
from metricsmw.alerts.alerter import MetricsAlerter
from metricsmw.alerts.delivery import Retry
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.outbox import AlertRow, PastAlert, get_alerts, get_past_alerts
from metricsmw.alerts.rules import BurnRate, Rule

__all__ = [
    "Alert",
    "AlertRow",
    "BurnRate",
    "MetricsAlerter",
    "PastAlert",
    "Retry",
    "Rule",
    "get_alerts",
    "get_past_alerts",
    "parse",
]
