"""Alerts: rules over a monitor's numbers, and notifications of what changed."""

from metricsmw.alerts.alerter import AlertRow, MetricsAlerter, get_alerts
from metricsmw.alerts.delivery import Alert
from metricsmw.alerts.rules import BurnRate, Rule, parse

__all__ = ["Alert", "AlertRow", "BurnRate", "MetricsAlerter", "Rule", "get_alerts", "parse"]
