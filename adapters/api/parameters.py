"""The parameters of a query, as the sub-app takes them."""

from __future__ import annotations

import re
import reprlib
from urllib.parse import parse_qs, unquote_to_bytes

DEFAULT_MINUTES = 60
_NUMBER = re.compile(r"[0-9]{1,10}(\.[0-9]{1,20})?")


class BadRequestError(Exception):
    """A parameter of the request is invalid; the message says why."""


def is_text(query: str) -> bool:
    """Return whether a raw query string is UTF-8, once decoded; a lone surrogate is not."""
    try:
        raw = query.encode("latin-1")
    except UnicodeError:  # the host has decoded it already, as Django does under ASGI
        raw = query.encode("utf-8", "surrogatepass")
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeError:
        return False
    return True


def minutes_in(query: str, maximum: int) -> int:
    """Return the parameter "minutes", held to the maximum; an hour where there is none."""
    return whole(query, "minutes", maximum) or min(DEFAULT_MINUTES, maximum)


def whole(query: str, name: str, maximum: int) -> int | None:
    """Return a parameter that is a whole number, held to the maximum; None: there is none.

    Raises:
        BadRequestError: It is no whole number, or 0.
    """
    text = parameter(query, name)
    if text is None:
        return None
    digits = text.lstrip("0")
    if not (digits and text.isascii() and text.isdigit()):
        raise BadRequestError(
            f"{name} must be a whole number from 1 to {maximum}, not {reprlib.repr(text)}"
        )
    # Never int() of whatever a client sends: it takes long, and past 4300 digits it raises.
    return maximum if len(digits) > len(str(maximum)) else min(int(digits), maximum)


def milliseconds(query: str, name: str) -> float | None:
    """Return a parameter that is a number of milliseconds; None: there is none.

    Raises:
        BadRequestError: It is none.
    """
    text = parameter(query, name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise BadRequestError(
            f"{name} must be a number of milliseconds up to 9999999999, not {reprlib.repr(text)}"
        )
    return float(text)


def parameter(query: str, name: str) -> str | None:
    """Return a parameter, the last one where it is repeated; None: there is none."""
    given = parse_qs(query, keep_blank_values=True).get(name)
    return None if given is None else given[-1]


def named_route(query: str, what: str) -> tuple[str, str] | None:
    """Return method and template of the one route that is asked about; None: all are.

    Raises:
        BadRequestError: One of both is missing; the message says of ``what`` of a route.
    """
    method, route = parameter(query, "method"), parameter(query, "route")
    if method is None and route is None:
        return None
    if method is None or route is None:
        raise BadRequestError(f"a route's {what} needs both method and route")
    return method, route
