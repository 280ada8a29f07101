"""`metricsmw ls` and `token`: the servers of a user on this machine, and the choice of one of them.

They are found by their directories and read from their shared memory: no server is asked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypedDict

from metricsmw.cli.client import MAX_TOKEN_BYTES, REFUSED, UNREACHABLE, WRONG_USAGE, TopError
from metricsmw.cli.output import complain, write
from metricsmw.cli.text import number, plain
from metricsmw.engine.reading.attached import AttachedServer, UnreadableServerError
from metricsmw.engine.reading.workers import STOPPED
from metricsmw.engine.workers.catalog import (
    FoundServer,
    find_servers,
    processes_user,
    users_with_servers,
)
from metricsmw.engine.workers.directories import folder_by_hand
from metricsmw.engine.workers.shared import CAN_SHARE
from metricsmw.engine.workers.token import TOKEN
from metricsmw.snapshot import iso_timestamp

MINUTE, HOUR, DAY = 60, 3600, 86_400


class ServerRow(TypedDict):
    """One server, as `ls --json` shows it. Numbers are None where ``problem`` says why."""

    pid: int | None
    name: str
    command: str
    user: str
    workers: int
    worker_pids: Sequence[int]
    stopped_workers: int | None
    since: str | None
    request_rate_rpm: float | None
    directory: str
    problem: str | None


def run(options: argparse.Namespace) -> int:
    """Run `metricsmw ls`; 0 done, 2 wrong usage, 3 not let in."""
    try:
        rows = [describe(found) for found in servers(options.user, options.dir)]
    except TopError as error:
        complain("ls", error)
        return error.code
    if options.json:
        json.dump({"servers": rows}, sys.stdout, indent=2)
        print()
    elif rows:
        write(table(rows))
    else:
        complain("ls", nothing(options.user))
    return 0


def run_token(options: argparse.Namespace) -> int:
    """Run `metricsmw token`; 0 done, 1 no such server or token, 2 wrong usage, 3 not let in."""
    try:
        write(own_token(choose(options.target, options.user, options.dir)))
    except TopError as error:
        complain("token", error)
        return error.code
    return 0


def own_token(found: FoundServer) -> str:
    """Return the token that a server has made for itself. Raises `TopError`."""
    try:
        with closing(found.open()) as folder:
            token = folder.read(TOKEN, MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise TopError(
            f"{title(found)} has made no token for itself: METRICSMW_TOKEN or auth= says what it "
            "takes, or nobody has asked it yet",
            UNREACHABLE,
        ) from None
    except PermissionError as error:
        raise TopError(f"{title(found)} may not be read by this user", REFUSED) from error
    except OSError as error:
        raise TopError(
            f"the token of {title(found)} cannot be read: {error}", UNREACHABLE
        ) from error
    return token


def servers(user: str | None = None, directory: str | None = None) -> list[FoundServer]:
    """Return the servers of a user.

    Args:
        user: A name or a number; None: the user of this process.
        directory: A folder that `METRICSMW_DIR` names, beside that of this process's environment.

    Raises:
        TopError: There is no such user or folder, or their servers may not be read.
    """
    if not CAN_SHARE:
        raise TopError("servers share no numbers on this platform: give a URL", WRONG_USAGE)
    if directory is not None and not Path(directory).is_dir():
        raise TopError(f"--dir must be a folder that is there, got {directory!r}", WRONG_USAGE)
    return _of_user(_user_id(user), directory)


def _of_user(uid: int, directory: str | None) -> list[FoundServer]:
    folders = [folder_by_hand(), Path(directory) if directory else None]
    try:
        return find_servers(uid, list(dict.fromkeys(filter(None, folders))))
    except PermissionError as error:
        raise TopError(
            f"the servers of {_user_name(uid)} can be read by that user and root only", REFUSED
        ) from error


def _user_id(user: str | None) -> int:
    import pwd

    if user is None:
        return os.geteuid()
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise TopError(f"there is no user {user!r}", WRONG_USAGE) from None


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def nothing(user: str | None) -> str:
    """Return what to say where no server was found."""
    whose = "this user" if user is None else user
    others = users_with_servers() if user is None and os.geteuid() == 0 else []
    named = f", but servers of {', '.join(map(_user_name, others))} do (--user)" if others else ""
    return f"no server of {whose} shares its numbers on this machine{named}"


def choose(target: str | None, user: str | None, directory: str | None) -> FoundServer:
    """Return the one server that is meant.

    Args:
        target: A process id of its master or a worker, or a part of its command line; None: there
            is only one.
        user: Whose servers, see `servers`.
        directory: See `servers`.

    Raises:
        TopError: None or several are meant, or it may not be read.
    """
    found = servers(user, directory)
    if target is None:
        fitting = found
        if not fitting:
            raise TopError(f"{nothing(user)}; for one elsewhere give its URL", UNREACHABLE)
    elif target.isdecimal():
        fitting = _with_process(int(target), found, user, directory)
    else:
        word = target.lower()
        fitting = [one for one in found if word in one.command.lower() or word in one.path.name]
    fitting = [one for one in fitting if one.workers] or fitting  # not a reloader's parent
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise TopError("which of these? " + _choices(fitting), WRONG_USAGE)
    known = f"there are: {_choices(found)}" if found else nothing(user)
    raise TopError(f"no server here is {target!r}; {known}", UNREACHABLE)


def _with_process(
    pid: int, found: Sequence[FoundServer], user: str | None, directory: str | None
) -> list[FoundServer]:
    """Return the servers that a process belongs to, also another user's where that is allowed."""
    fitting = [one for one in found if pid == one.pid or pid in one.workers]
    uid = processes_user(pid)
    if fitting or user is not None or uid in (None, os.geteuid()):
        return fitting
    assert uid is not None
    others = _of_user(uid, directory)
    return [one for one in others if pid == one.pid or pid in one.workers]


def _choices(found: Sequence[FoundServer]) -> str:
    return "; ".join(map(title, found))


def title(found: FoundServer) -> str:
    """Return what to call a server: its master's process id, and its command."""
    pid = str(found.pid) if found.pid and found.is_here else found.path.name
    return plain(f"{pid} {found.command}".strip())


@contextmanager
def quiet_log() -> Iterator[None]:
    """Log nothing in the block: what is wrong is shown, and a log would go across the picture."""
    logger = logging.getLogger("metricsmw")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def describe(found: FoundServer) -> ServerRow:
    """Return a server's row. A server that cannot be read has a problem in place of numbers."""
    row: ServerRow = {
        "pid": found.pid or None,
        "name": found.command.partition(" ")[0] or found.path.name,
        "command": found.command,
        "user": _user_name(found.uid),
        "workers": len(found.workers),
        "worker_pids": found.workers,
        "stopped_workers": None,
        "since": None,
        "request_rate_rpm": None,
        "directory": str(found.path),
        "problem": None,
    }
    server = AttachedServer(found)
    try:
        with quiet_log():
            reading = server.read()
    except (OSError, UnreadableServerError) as error:
        return {**row, "problem": str(error)}
    workers = reading.workers
    age = reading.server.period.now - reading.server.created
    left_out = sorted(set(reading.server.damaged.values()))
    return {
        **row,
        "stopped_workers": sum(worker["state"] in STOPPED for worker in workers),
        "since": iso_timestamp(time.time() - age) if reading.server.segments else None,
        "request_rate_rpm": reading.request_rate_rpm,
        "problem": f"segments left out: {'; '.join(left_out)}" if left_out else None,
    }


def table(rows: Sequence[ServerRow]) -> str:
    """Return the rows for people."""
    lines = [("PID", "WORKERS", "SINCE", "RATE/MIN", "COMMAND")]
    lines += [
        (
            str(row["pid"] or "-"),
            _workers(row),
            _since(row["since"]),
            number(row["request_rate_rpm"]),
            plain(f"{row['command'] or row['directory']}{_problem(row)}"),
        )
        for row in rows
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    return "\n".join(
        "  ".join(
            [*(text.rjust(width) for text, width in zip(line, widths, strict=False)), line[-1]]
        )
        for line in lines
    )


def _workers(row: ServerRow) -> str:
    stopped = row["stopped_workers"]
    return f"{row['workers']} ({stopped} stopped)" if stopped else str(row["workers"])


def _problem(row: ServerRow) -> str:
    return f"  [{row['problem']}]" if row["problem"] else ""


def _since(since: str | None) -> str:
    """Return how long ago that was, in its largest unit."""
    from datetime import datetime

    if since is None:
        return "-"
    seconds = max(time.time() - datetime.fromisoformat(since).timestamp(), 0)
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
