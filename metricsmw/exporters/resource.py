"""The attributes of the server itself: what OpenTelemetry calls its resource.

``service.name`` comes from OTEL_SERVICE_NAME, else from OTEL_RESOURCE_ATTRIBUTES, else it is the
name that the monitor was given, else ``unknown_service:`` and the program's name, as the
specification has it. One server is one ``service.instance.id``, the same in all of its workers.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import uuid
from pathlib import Path
from urllib.parse import unquote

from metricsmw.engine.workers.processes import this_process
from metricsmw.exporters.names import readable

logger = logging.getLogger("metricsmw")

# Of the semantic conventions for service.instance.id.
NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
# A percent sign that begins no encoded byte.
_BROKEN = re.compile(r"%(?![0-9a-fA-F]{2})")

_complained: set[str] = set()


def resource_attributes(directory: Path | None, name: str = "") -> dict[str, str]:
    """Return the server's attributes.

    Args:
        directory: That of the server's workers; None for a monitor that is private to its process.
        name: The application's, as the monitor was given it; "": none.
    """
    program = os.path.basename(sys.executable or "python")
    attributes = {
        "service.name": name or f"unknown_service:{program}",
        "service.instance.id": _instance(directory),
    }
    attributes.update(parse_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    if service := os.environ.get("OTEL_SERVICE_NAME", "").strip():
        attributes["service.name"] = service
    # Names of files, and variables, are any bytes.
    return {readable(key): readable(value) for key, value in attributes.items()}


def _instance(directory: Path | None) -> str:
    """Return the id of this server: the same in all of its workers, and in no other server."""
    # The directory is named by the server's root process, or by hand.
    place = directory if directory is not None else this_process()
    return str(uuid.uuid5(NAMESPACE, readable(f"{socket.gethostname()} {place}")))


def parse_attributes(text: str) -> dict[str, str]:
    """Return the ``key=value`` pairs of OTEL_RESOURCE_ATTRIBUTES, percent-decoded.

    One that cannot be read makes all of them worthless, as the specification has it: that is logged
    once, and nothing is returned.
    """
    found = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals or _BROKEN.search(pair):
            if text not in _complained:
                _complained.add(text)
                logger.warning(
                    "metricsmw: OTEL_RESOURCE_ATTRIBUTES is left out: %r is no key=value", pair
                )
            return {}
        found[unquote(key)] = unquote(value)
    return found
