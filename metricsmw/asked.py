"""What a later `get_metrics_monitor` asks for that the monitor of this process does not have."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def warn_of_others(
    window: int,
    asked_window: int | None,
    history: Path | None,
    asked_history: str | os.PathLike[str] | None,
) -> None:
    """Warn where another window or history is asked for than the monitor has.

    Args:
        window: The monitor's window in seconds.
        asked_window: The window that is asked for; None: any.
        history: The file of the monitor's lasting history; None: it has none.
        asked_history: The file that is asked for; None: any.
    """
    if asked_window is not None and asked_window != window:
        warnings.warn(
            f"get_metrics_monitor(window_seconds={asked_window!r}): the monitor of this process "
            f"has a window of {window} s already, which stays",
            RuntimeWarning,
            stacklevel=3,
        )
    if asked_history is not None and not _is_same(history, asked_history):
        warnings.warn(
            f"get_metrics_monitor(history={os.fspath(asked_history)!r}): the monitor of this "
            f"process is there already and has {'none' if history is None else 'another one'}, "
            "which stays so",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_same(history: Path | None, asked: str | os.PathLike[str]) -> bool:
    from pathlib import Path  # here, as importing the package is to cost next to nothing

    return history == Path(asked).absolute()
