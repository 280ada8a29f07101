"""Alerts: rules over a monitor's numbers, and notifications of what changed."""

from metricsmw.alerts.alert import Alert
from metricsmw.alerts.alerter import MetricsAlerter, alerters_of
from metricsmw.alerts.asking import CheckedRule, check_now
from metricsmw.alerts.delivery import Retry
from metricsmw.alerts.grammar import parse
from metricsmw.alerts.outbox import AlertRow, PastAlert, get_alerts, get_past_alerts
from metricsmw.alerts.rules import BurnRate, CustomRule, Rule
from metricsmw.alerts.silences import Silence, read_silences, set_silence, until_time

__all__ = [
    "Alert",
    "AlertRow",
    "BurnRate",
    "CheckedRule",
    "CustomRule",
    "MetricsAlerter",
    "PastAlert",
    "Retry",
    "Rule",
    "Silence",
    "alerters_of",
    "check_now",
    "get_alerts",
    "get_past_alerts",
    "parse",
    "read_silences",
    "set_silence",
    "until_time",
]
