"""An app that more than its server imports: alerts, exports and a lasting history, all often.

LETTERS is a file with a line for each alert: the process that sent it. EXPORTS is a folder, HISTORY
a file.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask

from metricsmw import get_metrics_monitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public
from metricsmw.alerts import Alert, MetricsAlerter
from metricsmw.exporting import ScheduledExport
from metricsmw.history import SQLiteHistory


def post(alert: Alert) -> None:
    with Path(os.environ["LETTERS"]).open("a") as letters:
        letters.write(f"{os.getpid()}\n")


monitor = get_metrics_monitor()
alerter = MetricsAlerter(monitor, 0.1, rules=["total_requests < 1000000"], notify=post)
export = ScheduledExport(monitor, os.environ["EXPORTS"], every_minutes=1, check_interval=0.05)
history = SQLiteHistory(monitor, os.environ["HISTORY"], row_seconds=0.25, check_interval=0.05)
app = wrap(Flask(__name__), monitor, auth=public())
