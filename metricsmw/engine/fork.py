"""What has to happen in a child that is forked from a process of the server."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType


def on_fork(function: Callable[[], None]) -> None:
    """Have the function called in every child that is forked from now on, once."""
    forked = os.getpid()

    def child() -> None:
        nonlocal forked
        if forked != os.getpid():
            forked = os.getpid()
            function()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=child)
    if uwsgi := sys.modules.get("uwsgi"):
        _on_uwsgi_fork(uwsgi, child)


def _on_uwsgi_fork(uwsgi: ModuleType, function: Callable[[], None]) -> None:
    """uWSGI forks its workers past Python's hooks; it has one of its own."""
    earlier: Callable[[], None] | None = getattr(uwsgi, "post_fork_hook", None)
    if earlier is None:
        try:
            # It keeps a list for that hook, which would take the place of a hook set here.
            importlib.import_module("uwsgidecorators").postfork(function)
            return
        except Exception:
            pass  # it cannot be imported without a master, by whoever tries

    def hook() -> None:
        if earlier is not None:
            earlier()
        function()

    vars(uwsgi)["post_fork_hook"] = hook
