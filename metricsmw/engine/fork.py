"""One ordered list of hooks that run in each forked child.

A forked child has only the thread that forked: a lock that another thread held stays locked for
ever. So each object with locks, files or threads renews them in the child.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType

logger = logging.getLogger("metricsmw")

_forked = os.getpid()  # the process whose hooks have run
_is_installed = False


class Stage(IntEnum):
    """The order of the hooks; hooks of one stage run in the order of their registration."""

    FILES = 0  # the parent's descriptors are closed: no lock outlives its owner
    LOCKS = 1  # locks that other threads of the parent may have held are made anew
    MEMBER = 2  # the parent's segment is released; the child may become a worker
    JOBS = 3  # threads are started, in which all of the above is used


_hooks: dict[Stage, list[Callable[[], None]]] = {stage: [] for stage in Stage}


def on_fork(function: Callable[[], None], stage: Stage = Stage.JOBS) -> None:
    """Call the function in every child that is forked from now on, once.

    Args:
        function: what to call. If it raises, that is logged, and the others are called all the
            same.
        stage: when it is called, among the others.
    """
    global _is_installed
    _hooks[stage].append(function)
    if _is_installed:
        return
    _is_installed = True
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    if uwsgi := sys.modules.get("uwsgi"):
        _on_uwsgi_fork(uwsgi, _after_fork)


def _after_fork() -> None:
    global _forked
    if _forked == os.getpid():  # uWSGI's hook and Python's may both call
        return
    _forked = os.getpid()
    for stage in Stage:
        for function in _hooks[stage]:
            try:
                function()
            except Exception:
                logger.exception("metricsmw: a hook failed after a fork")


def _on_uwsgi_fork(uwsgi: ModuleType, function: Callable[[], None]) -> None:
    """Have uWSGI call the function: it forks its workers past Python's hooks."""
    earlier: Callable[[], None] | None = getattr(uwsgi, "post_fork_hook", None)
    if earlier is None:
        try:
            # It keeps a list for that hook, which would take the place of a hook set here.
            importlib.import_module("uwsgidecorators").postfork(function)
            return
        except Exception:
            pass  # without a master, its import fails

    def hook() -> None:
        if earlier is not None:
            earlier()
        function()

    vars(uwsgi)["post_fork_hook"] = hook
