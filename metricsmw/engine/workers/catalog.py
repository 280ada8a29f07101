"""The servers of a user on this machine, found by their directories, from outside.

A server is listed while one of its workers lives, or while the process that names it runs. What
dead servers have left is for the next start to clear, and is not shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metricsmw.engine.storage.layout import Owner
from metricsmw.engine.workers.outside import Folder, OutsideGroup
from metricsmw.engine.workers.processes import Process
from metricsmw.engine.workers.surroundings import HERE, Surroundings

NAMESPACE_FOLDER = re.compile(r"([0-9a-f]{12})-([0-9]+)")
SERVER_FOLDER = re.compile(r"([0-9]+)-([0-9]+)(-[0-9a-f]{8})?")
SHARED_MEMORY = Path("/dev/shm")
INTERPRETER = re.compile(r"(python|pypy)[0-9.]*[a-z]?")


class FoundServer(NamedTuple):
    """A server of this machine.

    Attributes:
        path: The directory of its workers.
        uid: The user that it runs as.
        pid: The process that names it, its master where it has one; 0: not known.
        workers: The process ids of the living workers.
        command: The command line of the master, or else of a worker; empty where it is not shown.
        is_here: Whether its process ids are those of this process's namespace.
        by_hand: Whether it is of a `METRICSMW_DIR`.
    """

    path: Path
    uid: int
    pid: int
    workers: tuple[int, ...]
    command: str
    is_here: bool
    by_hand: bool

    def open(self) -> Folder:
        """Open the directory. Raises OSError."""
        return _open_path(self.path, self.uid, 1 if self.by_hand else 3)

    @property
    def reason(self) -> str:
        """Why the workers share the directory."""
        return "METRICSMW_DIR" if self.by_hand else "workers of one server"


def folders_of(uid: int) -> list[Path]:
    """Return where a user's servers may have their directories, each place once."""
    return [base / f"metricsmw-{uid}" for base in places()]


def places() -> list[Path]:
    """Return the folders that users' directories may be in, each once."""
    from tempfile import gettempdir  # here, as it loads a random generator

    found: dict[tuple[int, int], Path] = {}
    for base in (SHARED_MEMORY, Path(gettempdir()), Path("/tmp"), Path("/var/tmp")):
        with contextlib.suppress(OSError):
            status = os.stat(base)
            found.setdefault((status.st_dev, status.st_ino), base)
    return list(found.values())


def users_with_servers() -> list[int]:
    """Return the users whose servers this process may read."""
    names = (path for base in places() for path in base.glob("metricsmw-*"))
    numbers = (path.name.removeprefix("metricsmw-") for path in names)
    uids = {int(number) for number in numbers if number.isdecimal()}
    found = []
    for uid in sorted(uids):
        with contextlib.suppress(PermissionError):
            if any(server.workers for server in find_servers(uid)):
                found.append(uid)
    return found


def find_servers(
    uid: int, by_hand: Sequence[Path] = (), here: Surroundings = HERE
) -> list[FoundServer]:
    """Return the servers of a user on this machine, those of the lowest process id first.

    Args:
        uid: The user.
        by_hand: Folders that `METRICSMW_DIR` names.
        here: The system's facts about this process.

    Raises:
        PermissionError: This process may not look into the user's directories.
    """
    found = [server for path in folders_of(uid) for server in _servers_in(path, uid, here)]
    for folder in by_hand:
        path = folder.absolute() / f"metricsmw-{uid}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            server = _look(Folder(path, uid), uid, Process(0, 0), here, by_hand=True)
            if server is not None:
                found.append(server)
    return sorted(found, key=lambda server: (server.pid, server.path))


def _servers_in(path: Path, uid: int, here: Surroundings) -> Iterator[FoundServer]:
    try:
        if path.lstat().st_uid != uid:
            return  # somebody else made it in a folder for all: that user's workers refuse it, too
        user = Folder(path, uid)
    except (FileNotFoundError, NotADirectoryError):
        return
    boot = here.boot
    for name in user.names():
        match = NAMESPACE_FOLDER.fullmatch(name)
        if match is None or (boot and int(match[1], 16) not in (0, boot)):
            continue
        is_here = int(match[2]) == here.pid_namespace
        with contextlib.suppress(OSError):  # it has just been cleared
            for folder in _inner(user.inner(name)):
                pid, start = map(int, folder.path.name.split("-")[:2])
                root = Process(pid, start) if is_here else Process(0, 0)
                server = _look(folder, uid, root, here)
                if server is not None:
                    yield server


def _inner(namespace: Folder) -> Iterator[Folder]:
    for name in namespace.names():
        if SERVER_FOLDER.fullmatch(name):
            with contextlib.suppress(OSError):
                yield namespace.inner(name)


def _look(
    folder: Folder, uid: int, root: Process, here: Surroundings, *, by_hand: bool = False
) -> FoundServer | None:
    """Return the server in a directory; None where it has ended."""
    now = time.monotonic()
    group = OutsideGroup(folder, now, "", here)
    living = [segment for segment in group.segments.values() if segment.alive]
    owners = [segment.owner for segment in living if segment.owner is not None]
    if not living and not (root.pid and root.is_running(here)):
        return None
    newest = max(living, key=lambda segment: segment.created, default=None)
    owner = newest.owner if newest is not None else None
    is_here = owner is None or owner.pid_namespace == here.pid_namespace
    if by_hand and owner is not None:
        root = Process(owner.root_pid, owner.root_start)
    return FoundServer(
        folder.path,
        uid,
        root.pid,
        tuple(sorted(one.pid for one in owners)),
        _command(root, owner, here) if is_here else "",
        is_here,
        by_hand,
    )


def _command(root: Process, owner: Owner | None, here: Surroundings) -> str:
    if root.pid and root.is_running(here):
        words = here.command(root.pid)
    else:
        words = here.command(owner.pid) if owner is not None else []
    return shorten(words)


def shorten(words: Sequence[str]) -> str:
    """Return a command line for people: without the interpreter, and folders of the program."""
    if not words:
        return ""
    rest = list(words)
    if INTERPRETER.fullmatch(os.path.basename(rest[0])):
        rest = _behind_options(rest[1:]) or rest
    return " ".join([os.path.basename(rest[0]), *rest[1:]])


def _behind_options(words: list[str]) -> list[str]:
    """Return a program and its arguments, of an interpreter's; nothing where it has only code."""
    while words and words[0].startswith("-"):
        if words[0] == "-m":
            return words[1:]
        if words[0] == "-c":
            return []
        words = words[2:] if words[0] in ("-X", "-W") else words[1:]
    return words


def _open_path(path: Path, uid: int, depth: int) -> Folder:
    """Open a directory of a user through the folders that hold it, which are that user's, too."""
    names = path.parts[-depth:]
    folder = Folder(path.parents[depth - 1] / names[0], uid)
    for name in names[1:]:
        folder = folder.inner(name)
    return folder


def processes_user(pid: int) -> int | None:
    """Return the user that a process runs as; None where it is not shown, or there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
