"""Packages that an extra brings: one sentence, the same everywhere, where one of them is missed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

# extra -> the modules that it brings and the package cannot do without
MODULES: dict[str, tuple[str, ...]] = {
    "wsgi": ("werkzeug", "itsdangerous"),
    "asgi": ("starlette", "anyio", "itsdangerous"),
    "cli": ("rich",),
    "alerts": ("apprise",),
    "otlp": ("opentelemetry.sdk.metrics", "opentelemetry.exporter.otlp.proto.http"),
    "demo": ("httpx", "itsdangerous", "rich", "starlette", "uvicorn", "websockets"),
}
# What no package index brings: a part of Python that some builds leave out.
PARTS_OF_PYTHON = {"history": ("sqlite3", "_sqlite3")}


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that an extra brings; the message says how to install it."""


def require(what: str, extra: str, modules: Iterable[str] | None = None) -> None:
    """Raise `MissingExtraError` unless what an extra brings is installed.

    Args:
        what: What needs it, as its user knows it: the sentence begins with it.
        extra: The extra's name.
        modules: The modules of it that are needed; None: all.

    Raises:
        MissingExtraError: One of them is missing.
    """
    if extra in PARTS_OF_PYTHON:
        lacking = [name for name in PARTS_OF_PYTHON[extra] if not is_there(name)]
        way_out = "this Python was built without it; install one that has it"
    else:
        lacking = [name for name in modules or MODULES[extra] if not is_there(name)]
        way_out = f'install with: pip install "metricsmw[{extra}]"'
    if lacking:
        names = ", ".join(dict.fromkeys(name.partition(".")[0] for name in lacking))
        raise MissingExtraError(f"{what} needs {names}; {way_out}", name=lacking[0])


def is_there(name: str) -> bool:
    """Return whether a module can be imported, as far as that is known without doing so."""
    if sys.modules.get(name) is not None:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a package around it is missing, or none
        return False
