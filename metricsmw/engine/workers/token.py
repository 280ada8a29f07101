"""The token of a server: random, for the server's life, in a file that only its user can read.

Workers that share a directory have one token. A private worker has one of its own, in memory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from metricsmw.engine.directory import Directory, make_directory, open_directory
from metricsmw.engine.fork import on_fork
from metricsmw.engine.workers.directories import folder_by_hand
from metricsmw.engine.workers.surroundings import HERE

TOKEN = "token"
_TOKEN_BYTES = 24
_MAX_LENGTH = 256
# Set by a reloader for the process that it starts again and again.
RELOADED = ("WERKZEUG_RUN_MAIN", "RUN_MAIN")


def server_token(directory: Directory | Path, *, create: bool = True) -> str | None:
    """Return the token of the server whose workers share a directory.

    Args:
        directory: The directory of the server's workers, or its path.
        create: Make a token where there is none yet; else the answer is None.

    Raises:
        OSError: The file cannot be read or made, or is no regular file of this user.
    """
    place = open_directory(directory) if isinstance(directory, Path) else directory
    with contextlib.suppress(FileNotFoundError):
        return _read(place)
    if not create:
        return None
    # What a reloader starts anew keeps its token.
    home = token_home(place)
    made = _kept(home, secrets.token_urlsafe(_TOKEN_BYTES))
    return made if home is place else _kept(place, made)


def _kept(directory: Directory, token: str) -> str:
    """Return the token of a directory, this one where it had none."""
    directory.write_first(TOKEN, token.encode())
    return _read(directory)


def _read(directory: Directory) -> str:
    text = directory.read(TOKEN, _MAX_LENGTH).decode("ascii", "replace").strip()
    if not text:
        raise OSError("the server's token is empty")
    return text


def token_home(directory: Directory) -> Directory:
    """Return the directory that lives as long as the server in the eyes of who has started it.

    A reloader (Werkzeug's, Django's) starts the server anew after each change, as another server.
    Then it is the directory of the reloader itself.

    Args:
        directory: The directory of the server's workers.

    Raises:
        OSError: It cannot be made.
    """
    if folder_by_hand() is not None or not is_reloaded():
        return directory
    parent = os.getppid()
    status = HERE.status(parent)
    if status is None:
        return directory
    return make_directory(directory.path.parent / f"{parent}-{status.start}")


def is_reloaded() -> bool:
    """Return whether a reloader that starts another program has started this process."""
    return any(os.environ.get(name) == "true" for name in RELOADED)


def first_to(directory: Directory, name: str) -> bool:
    """Return whether this is the first time in the server's life that a name is asked for.

    Args:
        directory: The directory of the server's workers.
        name: The name of a file that then stands for it, one of `OUR_NAMES`.

    Raises:
        OSError: It cannot be told.
    """
    try:
        directory.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL).close()
    except FileExistsError:
        return False
    return True


_own: list[str] = []


def process_token() -> str:
    """Return the token of this process, made when it is asked for first."""
    if not _own:
        _own.append(secrets.token_urlsafe(_TOKEN_BYTES))
    return _own[0]


on_fork(_own.clear)
