"""The events that `GET /events` and the stream tell: those of the server, and its alerts."""

from __future__ import annotations

from typing import TypedDict

from metricsmw import MetricsMonitor
from metricsmw.alerts import get_past_alerts
from metricsmw.alerts.alert import unit_of
from metricsmw.engine.workers.events import MAX_EVENTS
from metricsmw.snapshot import iso_timestamp


class EventRow(TypedDict):
    """An event; ``id`` stays the same while more becomes known of it."""

    id: str
    timestamp: str
    type: str
    text: str
    pid: int | None
    by: str | None


def event_rows(monitor: MetricsMonitor, most: int = MAX_EVENTS) -> list[EventRow]:
    """Return what happened to the server, oldest first.

    Args:
        monitor: The monitor of a worker.
        most: How many events at most, the latest.
    """
    rows = _server_rows(monitor) + _alert_rows(monitor)
    return sorted(rows, key=lambda row: row["timestamp"])[-most:]


def _server_rows(monitor: MetricsMonitor) -> list[EventRow]:
    state = monitor.events.read(monitor.opened())
    if state is None:
        return []
    return [
        {
            "id": f"{state['epoch']}-{event['number']}",
            "timestamp": iso_timestamp(event["at"]),
            "type": event["type"],
            "text": event["text"],
            "pid": event["pid"],
            "by": event["by"],
        }
        for event in state["events"]
    ]


def _alert_rows(monitor: MetricsMonitor) -> list[EventRow]:
    rows: list[EventRow] = []
    for past in get_past_alerts(monitor):
        of = f" of {past['route']}" if past["route"] else ""
        unit = unit_of(past["field"])
        value = "has no value" if past["value"] is None else f"is {past['value']:.6g}{unit}"
        threshold = f"(threshold {past['comparison']} {past['threshold']:.6g}{unit})"
        said = f"{past['type']}, {past['field']}{of} {value} {threshold}"
        key = f"{past['type']}-{past['noticed']}"
        rows.append(_alert_row(f"alert-{key}", past["noticed"], "alert", f"Alert: {said}"))
        if past["ended"] is not None:
            text = f"Alert over: {past['type']}"
            rows.append(_alert_row(f"over-{key}", past["ended"], "alert_over", text))
    return rows


def _alert_row(id: str, timestamp: str, type: str, text: str) -> EventRow:
    return {
        "id": id, "timestamp": timestamp, "type": type, "text": text, "pid": None, "by": None,
    }  # fmt: skip
