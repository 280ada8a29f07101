"""The token of a server: random, for the server's life, in a file that only its user can read.

Workers that share a directory have one token. A private worker has one of its own, in memory.
"""

from __future__ import annotations

import contextlib
import secrets

from metricsmw.engine.directory import Directory
from metricsmw.engine.fork import on_fork

TOKEN = "token"
_TOKEN_BYTES = 24
_MAX_LENGTH = 256


def server_token(directory: Directory, *, create: bool = True) -> str | None:
    """Return the token of the server whose workers share a directory.

    Args:
        directory: The directory of the server's workers.
        create: Make a token where there is none yet; else the answer is None.

    Raises:
        OSError: The file cannot be read or made, or is no regular file of this user.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(directory)
    if not create:
        return None
    # Complete before it has its name, which only the first worker to come can give it.
    draft = directory.write_draft(TOKEN, secrets.token_urlsafe(_TOKEN_BYTES).encode())
    try:
        with contextlib.suppress(FileExistsError):
            directory.link(draft, TOKEN)
    finally:
        directory.remove(draft)
    return _read(directory)


def _read(directory: Directory) -> str:
    text = directory.read(TOKEN, _MAX_LENGTH).decode("ascii", "replace").strip()
    if not text:
        raise OSError("the server's token is empty")
    return text


_own: list[str] = []


def process_token() -> str:
    """Return the token of this process, made when it is asked for first."""
    if not _own:
        _own.append(secrets.token_urlsafe(_TOKEN_BYTES))
    return _own[0]


on_fork(_own.clear)
