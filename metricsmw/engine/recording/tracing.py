"""The trace that a request belongs to: of OpenTelemetry where that is loaded, else of its caller.

OpenTelemetry is never imported here.

Source: W3C Trace Context, "traceparent".
"""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

# Later versions may have more behind these parts; ff is no version.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


class Trace(NamedTuple):
    """A span of a trace.

    Attributes:
        trace_id: 16 bytes.
        span_id: 8 bytes.
    """

    trace_id: bytes
    span_id: bytes


def trace_of_header(traceparent: str) -> Trace | None:
    """Return the caller's span, by the header; None where that is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    return None if match is None else _valid(*map(bytes.fromhex, match.groups()))


def trace_of_span(span: Any) -> Trace | None:
    """Return what a span of OpenTelemetry says of itself; None for what is none, or not valid."""
    try:
        context = span.get_span_context()
        return _valid(context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"))
    except Exception:
        return None


def current_trace() -> Trace | None:
    """Return OpenTelemetry's current span; None where there is none, or it is not loaded."""
    module = sys.modules.get("opentelemetry.trace")
    try:
        return None if module is None else trace_of_span(module.get_current_span())
    except Exception:
        return None


def _valid(trace_id: bytes, span_id: bytes) -> Trace | None:
    return Trace(trace_id, span_id) if any(trace_id) and any(span_id) else None
