"""How routes and users are named in a segment, so that all workers know them by the same key."""

from __future__ import annotations

import logging
import os
import re
import struct
from enum import IntEnum
from typing import NamedTuple

from metricsmw.engine.storage.layout import (
    ANSWER_NAME_BYTES,
    FACT_BYTES,
    MAX_ANSWERS,
    NAME_BYTES,
    TABLE_ROWS,
)

try:
    # Where hashlib has it from, without the OpenSSL that hashlib loads.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b


logger = logging.getLogger("metricsmw")

ANSWER_HEAD, FACTS_HEAD = struct.Struct("4d"), struct.Struct("2d")
OTHER, UNMATCHED, OTHER_METHOD = "<other>", "<unmatched>", "_OTHER"
# The URL schemes that are told apart; a client can have some proxies pass on any other one.
SCHEMES, OTHER_SCHEME = ("http", "https"), "_OTHER"
DEFAULT_SCHEME = "http"  # by ASGI, where a scope has none
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


def known_scheme(scheme: str) -> str:
    """Return the scheme as it is told: as it is, or "_OTHER"; "" where it is not known."""
    return scheme if scheme in SCHEMES or not scheme else OTHER_SCHEME


class Times(IntEnum):
    """Which times the histogram of a row holds."""

    ALL = 0  # of all requests that are not in a row of NOT_PLAIN: from their start to their end
    FIRST_BYTE = 1  # of streams only: from their start to their first byte
    LAST_BYTE = 2  # of streams only: from their start to their end
    NOT_PLAIN = 3  # as ALL, of answers with another status than the row's plain one


KNOWN_TIMES = frozenset(Times)


class Name(NamedTuple):
    """The name of a row.

    Stored as the length of the text (2 bytes), `times` (1 byte) and the text: method, space, route.
    """

    method: str
    route: str
    times: Times = Times.ALL

    def text(self) -> bytes:
        """Return the text; a long template is shortened and keeps apart by its hash."""
        raw = f"{self.method} {self.route}".encode("utf-8", "backslashreplace")
        room = NAME_BYTES - LENGTH_BYTES - 1
        if len(raw) > room:
            tail = f"…{user_key(self.route):016x}".encode()
            raw = raw[: room - len(tail)].decode("utf-8", "ignore").encode() + tail
        return raw

    def pack(self) -> bytes:
        """Return its stored form."""
        raw = self.text()
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

    def of_others(self) -> Name:
        """Return the name of the route's row for answers that are not plain."""
        return self._replace(times=Times.NOT_PLAIN)

    def of_all(self) -> Name:
        """Return the name of the route."""
        return self._replace(times=Times.ALL)

    def of_stream(self) -> tuple[Name, Name]:
        """Return the names of its streams' rows: of their first bytes, and of their last ones."""
        return (
            self._replace(times=Times.FIRST_BYTE),
            self._replace(times=Times.LAST_BYTE),
        )


class RouteFacts(NamedTuple):
    """What is known of a row beside its name.

    Stored as two doubles, the length of a text (2 bytes), and the text: scheme, space, method.

    Attributes:
        status: The plain status of its route; 0: the row is not in use.
        is_plain: Whether it counts the answers with that status, and not those with others.
        other: The method whose ``<other>`` has what the row counted under earlier names.
        scheme: The URL scheme of its plain answers; "": it is not known.
    """

    status: int
    is_plain: bool = True
    other: str = ""
    scheme: str = ""

    def pack(self) -> bytes:
        """Return its stored form."""
        raw = f"{self.scheme} {self.other}".encode()
        head = FACTS_HEAD.pack(self.status, self.is_plain)
        return (head + len(raw).to_bytes(LENGTH_BYTES, "little") + raw).ljust(FACT_BYTES, b"\0")

    @classmethod
    def unpack(cls, packed: bytes) -> RouteFacts:
        """Return what is stored there; of something impossible, facts of no row in use."""
        status, is_plain = FACTS_HEAD.unpack_from(packed)
        if not 0 <= status < 600 or status % 1:
            return cls(0)
        start = FACTS_HEAD.size + LENGTH_BYTES
        length = int.from_bytes(packed[FACTS_HEAD.size : start], "little")
        text = packed[start : start + length].decode("utf-8", "replace")
        scheme, _, other = text.partition(" ")
        return cls(int(status), bool(is_plain), other, scheme)


class AnswerName(NamedTuple):
    """What tells the answers of a route apart that have a row of their own.

    Attributes:
        status: Their status; 0: the row that all further ones share.
        scheme: The URL scheme; "": it is not known.
        error: The type of the exception that has escaped.
    """

    status: int
    scheme: str = ""
    error: str = ""


SHARED_ANSWER = AnswerName(0)


class AnswerRow(NamedTuple):
    """The name of a row of answers.

    Stored as four doubles (the offset of the route's table, the route's row there, the number that
    the answers have in it, the status), the length of a text (2 bytes), and the text: scheme,
    space, exception. The offset is written last: it is what makes the row count.
    """

    table: int
    row: int
    number: int
    answer: AnswerName

    def pack(self) -> bytes:
        """Return its stored form; a long name of an exception loses its beginning."""
        head = ANSWER_HEAD.pack(self.table, self.row, self.number, self.answer.status)
        scheme = self.answer.scheme.encode("ascii", "replace")[:16]
        room = ANSWER_NAME_BYTES - len(head) - LENGTH_BYTES - len(scheme) - 1
        error = self.answer.error.encode("utf-8", "replace")[-room:]
        raw = scheme + b" " + error
        return head + len(raw).to_bytes(LENGTH_BYTES, "little") + raw

    @classmethod
    def unpack(cls, packed: bytes) -> AnswerRow | None:
        """Return the name that is stored there; None for a row that is not in use, or damaged."""
        numbers = ANSWER_HEAD.unpack_from(packed)
        if not all(0 <= number < 2**52 and not number % 1 for number in numbers):
            return None
        table, row, number, status = map(int, numbers)
        if not table or row >= TABLE_ROWS or number > MAX_ANSWERS or status >= 600:
            return None
        start = ANSWER_HEAD.size + LENGTH_BYTES
        length = int.from_bytes(packed[ANSWER_HEAD.size : start], "little")
        text = packed[start : start + length].decode("utf-8", "replace")
        scheme, _, error = text.partition(" ")
        return cls(table, row, number, AnswerName(status, scheme, error))


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
