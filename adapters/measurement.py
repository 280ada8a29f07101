"""What stands for a request that is being measured, in environ or scope."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from .resolvers.base import MEASUREMENT_PREFIX


def exclude_request(carrier: MutableMapping[str, Any]) -> None:
    """Exclude this request (environ or scope) from measurement by all outer middlewares."""
    for key, measurement in list(carrier.items()):
        if key.startswith(MEASUREMENT_PREFIX) and measurement is not None:
            measurement.cancel()
            carrier[key] = None
