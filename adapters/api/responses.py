"""The responses of the sub-app: JSON, errors, files to be saved; nobody is to store one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from metricsmw.snapshot import iso_timestamp

from .encoding import to_json
from .messages import Response


def success(content: dict[str, object], headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that went well, with the time."""
    return json_response(200, {"success": True, **content, "timestamp": timestamp()}, headers)


def error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    *,
    ways: Sequence[str] = (),
) -> Response:
    """Return an error as JSON.

    Args:
        status: The HTTP status.
        message: What went wrong.
        headers: Further headers.
        ways: What would let in, one sentence each.
    """
    content = {"error": message, "ways_in": list(ways)} if ways else {"error": message}
    return json_response(status, content, headers)


def json_response(
    status: int, content: object, headers: Mapping[str, str] | None = None
) -> Response:
    """Return content as JSON."""
    return body_response(status, "application/json", to_json(content), headers)


def attachment(name: str, suffix: str, content_type: str, body: bytes) -> Response:
    """Return a file that is to be saved, with the time in its name."""
    file = f"{name}_{datetime.now(timezone.utc):%Y%m%d_%H%M%S}.{suffix}"
    return body_response(
        200, content_type, body, {"Content-Disposition": f'attachment; filename="{file}"'}
    )


def body_response(
    status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a body as it is."""
    common = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(status, list((common | dict(headers or {})).items()), body)


def timestamp() -> str:
    """Return the time as ISO 8601."""
    return iso_timestamp(time.time())
