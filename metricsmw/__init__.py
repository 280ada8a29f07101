"""metricsmw: live request metrics inside any Python web app, across all workers of its server.

The core engine, usable by itself: it needs psutil and never imports a web package. The adapters
for WSGI, ASGI and the frameworks live in ``metricsmw.adapters``.
"""

from metricsmw.monitor import MetricsMonitor, get_metrics_monitor
from metricsmw.snapshot import MetricsSnapshot

__all__ = ["MetricsMonitor", "MetricsSnapshot", "__version__", "get_metrics_monitor"]

__version__ = "1.0.0"
