"""Where the system has no forks, no users and no file locks, as on Windows: private numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

HIDE = """
import os, sys, psutil
sys.modules["fcntl"] = None
for name in ("fork", "geteuid", "getuid", "register_at_fork", "posix_fallocate", "pread", "pwrite",
             "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG"):
    if hasattr(os, name):
        delattr(os, name)
"""


def test_each_worker_keeps_its_own_numbers(run_python: Callable[..., str]) -> None:
    found = json.loads(
        run_python(
            HIDE
            + """
import json
from metricsmw import MetricsMonitor, get_metrics_monitor
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

@WSGIMetricsMiddleware
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]

assert b"".join(app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)) == b"hello"
found = []
for monitor in (MetricsMonitor(), get_metrics_monitor()):
    monitor.record_request(5.0, user_id="ada", route="/", method="GET", status=500)
    monitor.save_snapshot_to_history()
    health = monitor.get_health()
    found.append([monitor.total_requests, monitor.get_active_user_ids(), health["status"],
                  health["mode"], health["mode_reason"], len(monitor.get_metrics_history())])
    monitor.reset_statistics()
    assert monitor.total_requests == 0
    monitor.close()
print(json.dumps(found))
"""
        )
    )
    reason = "this platform has no file locks"
    assert found == [
        [1, ["ada"], "healthy", "private", "asked for", 1],
        [2, ["ada"], "healthy", "private", reason, 1],
    ]
