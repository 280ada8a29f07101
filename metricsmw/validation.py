"""Checks of arguments: errors that name the argument, its value and the allowed range."""

from __future__ import annotations


def whole(name: str, value: int, lowest: int, highest: int | None = None) -> int:
    """Return the value if it is a whole number in its range.

    Args:
        name: the argument, as its user knows it.
        value: what was given.
        lowest: the smallest number allowed.
        highest: the largest one; None: there is none.

    Raises:
        TypeError: it is no whole number; `True` and `2.0` are none.
        ValueError: it is out of its range.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and lowest <= value and (highest is None or value <= highest):
        return value
    allowed = f">= {lowest}" if highest is None else f"from {lowest} to {highest}"
    message = f"{name} must be a whole number {allowed}, got {value!r}"
    raise ValueError(message) if is_whole else TypeError(message)


def number(name: str, value: float, lowest: float, highest: float, unit: str = "") -> float:
    """Return the value if it is a number in its range.

    Args:
        name: the argument, as its user knows it.
        value: what was given.
        lowest: the smallest number allowed.
        highest: the largest one.
        unit: what it counts, such as "seconds", for the message.

    Raises:
        TypeError: it is no number; `True` is none.
        ValueError: it is out of its range, or NaN.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and lowest <= value <= highest:
        return value
    kind = f"a number of {unit}" if unit else "a number"
    message = f"{name} must be {kind} from {lowest:g} to {highest:g}, got {value!r}"
    raise ValueError(message) if is_number else TypeError(message)


def callable_or_none(name: str, value: object, expected: str) -> None:
    """Check that the value is None, or something to call.

    Args:
        name: the argument, as its user knows it.
        value: what was given.
        expected: what is to be called, such as "a function that …".

    Raises:
        TypeError: it is something else.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
