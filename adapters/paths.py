"""Paths of requests: the sub-app's mount, the rest below a mount, and excluded paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .types import Exclude


# A text that is in no path of an app: what holds it all the same is looked at twice.
NOWHERE = "\0"


def mount_path(path: str) -> str:
    """Return the path that a sub-app is served at, without a slash at its end.

    Args:
        path: As the user gave it.

    Raises:
        ValueError: It does not start with a slash, or is nothing but slashes.
    """
    mount = path.rstrip("/") if isinstance(path, str) else ""
    if not mount.startswith("/"):
        raise ValueError(
            f"path must start with a slash and go on, like '/api/metrics', got {path!r}"
        )
    return mount


def split(path: str, root: str) -> tuple[str, str]:
    """Return the path that an ASGI app is mounted at, and the path below it.

    Args:
        path: The scope's `path`, which includes the mount under some servers and not under others.
        root: The scope's `root_path`.
    """
    root = root.rstrip("/")
    below = path[len(root) :] if path.startswith(root + "/") or path == root else path
    return root, below


def is_below(path: str, mount: str | None) -> bool:
    """Return whether a path is a mount's or below it; False where there is no mount (None)."""
    return mount is not None and (path == mount or path.startswith(mount + "/"))


def as_wsgi(path: str) -> str:
    """Return a path as WSGI passes it: its UTF-8 bytes decoded as Latin-1."""
    return path.encode().decode("latin-1")


def as_text(path: str) -> str:
    """Return a path of WSGI as text; bytes that are not UTF-8 become replacement characters."""
    return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")


def as_exclusions(exclude: Iterable[Exclude]) -> tuple[Exclude, ...]:
    """Return what is left out of the numbers, where it may also be a single prefix or pattern."""
    if isinstance(exclude, (str, re.Pattern)):
        return (exclude,)
    try:
        return tuple(exclude)
    except TypeError:
        raise _no_exclusion(exclude) from None


def _no_exclusion(given: object) -> TypeError:
    return TypeError(
        f"exclude must hold path prefixes (str) or compiled patterns of str, got {given!r}"
    )


def excluder(exclude: Iterable[Exclude]) -> Callable[[str], bool] | None:
    """Return a test of whether a path is left out of the numbers; None where no path is.

    Args:
        exclude: Path prefixes, or compiled patterns to search the path for.

    Raises:
        TypeError: One is neither a str nor a compiled pattern of str.
    """
    prefixes: list[str] = []
    patterns: list[re.Pattern[str]] = []
    for each in as_exclusions(exclude):
        if isinstance(each, str):
            prefixes.append(each)
        elif isinstance(each, re.Pattern) and isinstance(each.pattern, str):
            patterns.append(each)
        else:
            raise _no_exclusion(each)
    if not prefixes and not patterns:
        return None
    starts = tuple(prefixes)

    def excluded(path: str) -> bool:
        return path.startswith(starts) or any(pattern.search(path) for pattern in patterns)

    return excluded
