"""What a captured request says of itself, read from its environ or scope.

Nothing here is called for a request that is not captured. Of headers only ``traceparent`` and
``X-Request-ID`` are read; path and query only where the monitor's setting asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metricsmw.engine.recording.tracing import (
    Trace,
    current_trace,
    trace_of_header,
    trace_of_span,
)

from .paths import as_text

MOST_ID = 100
# OpenTelemetry's instrumentations of Flask, Django, Falcon and Pyramid leave a request's span in
# environ, under "opentelemetry-flask.span_key" and the like.
SPAN_PREFIX, SPAN_SUFFIX = "opentelemetry-", ".span_key"


def header_of(carrier: Mapping[str, Any], name: str) -> str:
    """Return a header of a request, given its name in small letters; empty where there is none."""
    if "headers" in carrier:
        raw = name.encode()
        for key, value in carrier["headers"]:
            if key.lower() == raw:
                return bytes(value).decode("latin-1")
        return ""
    return str(carrier.get("HTTP_" + name.upper().replace("-", "_"), ""))


def trace_of(carrier: Mapping[str, Any]) -> Trace | None:
    """Return the span of a request: its own where OpenTelemetry has one, else its caller's."""
    for key, value in carrier.items():
        if str(key).startswith(SPAN_PREFIX) and str(key).endswith(SPAN_SUFFIX):
            found = trace_of_span(value)
            if found is not None:
                return found
    return current_trace() or trace_of_header(header_of(carrier, "traceparent"))


def request_id_of(carrier: Mapping[str, Any]) -> str | None:
    """Return the X-Request-ID of a request, as far as it is printable ASCII; None for none."""
    text = header_of(carrier, "x-request-id")
    return "".join(c for c in text[: 2 * MOST_ID] if " " <= c <= "~").strip()[:MOST_ID] or None


def path_of(carrier: Mapping[str, Any]) -> str:
    """Return the path of a request, the mount that it came through included."""
    if "PATH_INFO" in carrier:
        text = str(carrier.get("SCRIPT_NAME", "")) + str(carrier["PATH_INFO"])
        try:
            return as_text(text)
        except UnicodeError:  # decoded already, by who has made it by hand
            return text
    return str(carrier.get("path", ""))


def query_of(carrier: Mapping[str, Any]) -> str:
    """Return the query string of a request, as it came."""
    if "QUERY_STRING" in carrier:
        return str(carrier["QUERY_STRING"])
    raw = carrier.get("query_string", b"")
    return raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)
