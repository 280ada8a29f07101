"""The token of a server: random, for the server's life, in a file that only its user can read.

Workers that share a directory have one token. A private worker has one of its own, in memory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from metricsmw.engine.files import open_own
from metricsmw.engine.fork import on_fork

TOKEN = "token"
_TOKEN_BYTES = 24
_MAX_LENGTH = 256


def server_token(directory: Path, *, create: bool = True) -> str | None:
    """Return the token of the server whose workers share a directory.

    Args:
        directory: The directory of the server's workers.
        create: Make a token where there is none yet; else the answer is None.

    Raises:
        OSError: The file cannot be read or made, or is no regular file of this user.
    """
    path = directory / TOKEN
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    if not create:
        return None
    # Complete before it has its name, which only the first worker to come can give it.
    draft = directory / f".{TOKEN}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    return _read(path)


def _read(path: Path) -> str:
    file = open_own(path, os.O_RDONLY)
    text = os.read(file.fileno(), _MAX_LENGTH).decode("ascii", "replace").strip()
    if not text:
        raise OSError("the server's token is empty")
    return text


def first_to(directory: Path, what: str) -> bool:
    """Return whether this call is the first of the server's life that asks for this.

    Args:
        directory: The directory of the server's workers.
        what: The name of a file that then stands for it.

    Raises:
        OSError: It cannot be told.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(directory / what, flags, 0o600))
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
