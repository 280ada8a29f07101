"""`HostUser`: the user whom the host says is logged in, and how that is read off its own object.

Where a host has a verdict of its own (Django's `request.user`, Flask-Login's `current_user`,
Starlette's `request.user`), that decides, and not what the session names.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from dataclasses import dataclass

# Where the object of a user has its name, the first that is there.
_NAMES = ("pk", "id", "identity", "username", "display_name", "name")


@dataclass(frozen=True)
class HostUser:
    """A user who is logged in to the host.

    Attributes:
        name: Tells users apart, and stands in the log.
        account: The host's own object of the user; where it has none, what its session names.
    """

    name: str
    account: object

    @property
    def is_staff(self) -> bool:
        """Whether the host counts the user among its staff; False where it has no such notion."""
        return says(self.account, "is_staff", default=False)


def logged_in(account: object, name: object = None) -> HostUser | None:
    """Return the user of a host's own object; None: it is not logged in, or not active.

    Args:
        account: The object; None where there is none.
        name: The user's name; None: the object has it.
    """
    if account is None or not says(account, "is_authenticated", default=False):
        return None
    if not says(account, "is_active", default=True):
        return None
    return HostUser(_name_of(account) if name is None else str(name), account)


def lacks_second_factor(account: object) -> bool:
    """Return whether django-otp still waits for the second factor of a user who is logged in."""
    otp = sys.modules.get("django_otp")
    if otp is None or not hasattr(account, "otp_device"):
        return False
    return not says(account, "is_verified", default=False) and bool(otp.user_has_device(account))


def is_django_account(account: object) -> bool:
    """Return whether an object is a user of Django's, which says who is of its staff."""
    kinds = getattr(account, "__class__", type(account)).__mro__
    return any(kind.__module__.startswith("django.contrib.auth") for kind in kinds)


def says(account: object, question: str, *, default: bool) -> bool:
    """Return what an object answers by an attribute or a method.

    Raises:
        TypeError: The answer would have to be awaited.
    """
    answer = getattr(account, question, default)
    if callable(answer):
        answer = answer()
    if isinstance(answer, Awaitable):
        close = getattr(answer, "close", None)
        if close is not None:
            close()
        raise TypeError(f"{question} is asynchronous, and nothing here can await it")
    return bool(answer)


def _name_of(account: object) -> str:
    for name in _NAMES:
        try:
            value = getattr(account, name, None)
        except Exception:  # an abstract property, as Starlette's `identity`
            continue
        if value is not None and value != "" and not callable(value):
            return str(value)
    return type(account).__name__
