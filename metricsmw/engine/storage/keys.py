"""How routes and users are named in a segment, so that all workers know them by the same key."""

from __future__ import annotations

import logging
import os
import re
from enum import IntEnum
from typing import NamedTuple

from metricsmw.engine.storage.layout import (
    NAME_BYTES,
)

try:
    # Where hashlib has it from, without the OpenSSL that hashlib loads.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b


logger = logging.getLogger("metricsmw")

OTHER, UNMATCHED, OTHER_METHOD = "<other>", "<unmatched>", "_OTHER"
STANDARD_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
METHODS_VARIABLE = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"
MAX_METHODS = 64
_METHOD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")


def known_methods(listed: str | None) -> frozenset[str]:
    """Return the methods with rows of their own: the listed ones, else the standard ones.

    A list that names what is no method, or more than 64, is logged and left out.
    """
    methods = frozenset(filter(None, (part.strip() for part in (listed or "").split(","))))
    if not methods:
        return STANDARD_METHODS
    if len(methods) > MAX_METHODS or not all(map(_METHOD.fullmatch, methods)):
        logger.warning(
            "metricsmw: %s is left out: must list up to %d HTTP methods, got %r",
            METHODS_VARIABLE,
            MAX_METHODS,
            listed,
        )
        return STANDARD_METHODS
    return methods


METHODS = known_methods(os.environ.get(METHODS_VARIABLE))


class Times(IntEnum):
    """Which times the histogram of a row holds."""

    ALL = 0  # of all requests: from their start to their end
    FIRST_BYTE = 1  # of streams only: from their start to their first byte
    LAST_BYTE = 2  # of streams only: from their start to their end


KNOWN_TIMES = frozenset(Times)


class Name(NamedTuple):
    """The name of a row.

    Stored as the length of the text (2 bytes), `times` (1 byte) and the text: method, space, route.
    """

    method: str
    route: str
    times: Times = Times.ALL

    def pack(self) -> bytes:
        """Return its stored form; a long template is shortened and keeps apart by its hash."""
        raw = f"{self.method} {self.route}".encode("utf-8", "backslashreplace")
        room = NAME_BYTES - LENGTH_BYTES - 1
        if len(raw) > room:
            tail = f"…{user_key(self.route):016x}".encode()
            raw = raw[: room - len(tail)].decode("utf-8", "ignore").encode() + tail
        return len(raw).to_bytes(LENGTH_BYTES, "little") + bytes([self.times]) + raw

    @classmethod
    def unpack(cls, packed: bytes) -> Name | None:
        """Return the name that is stored there; None for a row that is not in use, or damaged."""
        length, times = int.from_bytes(packed[:LENGTH_BYTES], "little"), packed[LENGTH_BYTES]
        if not length or times not in KNOWN_TIMES:
            return None
        text = packed[LENGTH_BYTES + 1 : LENGTH_BYTES + 1 + length].decode("utf-8", "replace")
        method, _, route = text.partition(" ")
        return cls(method, route, Times(times))

    @property
    def is_own(self) -> bool:
        """Whether it counts towards `max_routes`."""
        return self.route not in (OTHER, UNMATCHED) and self.times is Times.ALL

    def of_stream(self) -> tuple[Name, Name]:
        """Return the names of its streams' rows: of their first bytes, and of their last ones."""
        return (
            self._replace(times=Times.FIRST_BYTE),
            self._replace(times=Times.LAST_BYTE),
        )


def pack_text(text: str) -> bytes:
    """Return the stored form of a row's name that fits."""
    raw = text.encode("utf-8")
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def unpack_text(packed: bytes) -> str:
    """Return the name of a row; empty for one that is not in use."""
    length = int.from_bytes(packed[:LENGTH_BYTES], "little")
    return packed[LENGTH_BYTES : LENGTH_BYTES + length].decode("utf-8", "replace")


# The rows of all streams that have none of their own.
UNTOLD_STREAMS = Name("", "").of_stream()

KEY_BITS = 64
SHORT_TEXT, LONG_TEXT = 64, 1024
LENGTH_BYTES = 2
# One user of 2**40 is more than there will ever be; below it, a sample of none is bad luck.
MAX_SAMPLING = 40


def user_key(text: str) -> int:
    """Return the 64-bit hash by which all workers know a user."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BITS // 8).digest()
    return int.from_bytes(digest, "little")


def _tail(key: int) -> str:
    return f"…{key:016x}"


def stored_text(text: str, key: int) -> bytes:
    """Return the id as stored: whole up to 1022 bytes of UTF-8, else shortened, with its hash."""
    raw = text.encode("utf-8", "surrogatepass")
    room = LONG_TEXT - LENGTH_BYTES
    if len(raw) <= room:
        return raw
    tail = _tail(key).encode()
    return raw[: room - len(tail)].decode("utf-8", "ignore").encode() + tail


def read_text(row: bytes, key: int) -> str | None:
    """Return the id in a row's text column; None where it is not that key's.

    It may be another user's by now, half of two users', or damaged.
    """
    length = int.from_bytes(row[:LENGTH_BYTES], "little")
    try:
        text = row[LENGTH_BYTES : LENGTH_BYTES + length].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return text if user_key(text) == key or text.endswith(_tail(key)) else None
