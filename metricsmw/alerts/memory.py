"""What outlives a server: the alerts that fired when it stopped, the past ones, the errors seen.

It is a file beside the lasting history, where one is kept. Else it is one in the folder of this
user's servers, named by the server's command and working folder; it is there only while an alert
fires, or once a rule on new errors has seen some, and goes with the machine's next start.
"""

from __future__ import annotations

import os
import sys
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metricsmw.alerts.outbox import AlertState, as_alert_state, no_state
from metricsmw.alerts.seen import SeenErrors, as_saved_seen
from metricsmw.engine.directory import read_all
from metricsmw.engine.files import open_own, replace_file
from metricsmw.engine.workers.directories import folder_by_hand
from metricsmw.engine.workers.notes import (
    MAX_BYTES,
    CorruptNoteError,
    Note,
    note_text,
    parse_note,
)
from metricsmw.engine.workers.processes import server_root, site
from metricsmw.engine.workers.surroundings import HERE

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


# The key of the errors that were seen, beside those of an `AlertState`.
SEEN = "seen_errors"


class AlertMemory:
    """The file of one alerter.

    Args:
        monitor: The alerter's monitor.
        name: The alerter's name.
    """

    def __init__(self, monitor: MetricsMonitor, name: str) -> None:
        self._monitor = monitor
        self._name = name

    def _path(self) -> Path | None:
        """Return the file; None where a private monitor has no place for one."""
        lasting = self._monitor.lasting
        if lasting is not None:
            return lasting.path.with_name(f"{lasting.path.name}-{self._name}.json")
        directory = self._monitor.directory
        if directory is None:
            return None
        folder = directory.parent if folder_by_hand() else directory.parent.parent
        command = HERE.command(server_root().process.pid) or sys.argv
        server = "\0".join((*command, os.getcwd(), site()))
        return folder / f"{self._name}-{zlib.crc32(server.encode(errors='replace')):08x}.json"

    def _read(self) -> Note:
        """Return what was saved last; nothing where there is no file.

        Raises:
            OSError: The file cannot be read.
            CorruptNoteError: No alerter has written it.
        """
        path = self._path()
        if path is None:
            return {}
        try:
            file = open_own(path, os.O_RDONLY)
        except FileNotFoundError:
            return {}
        with closing(file):
            return parse_note(read_all(file, MAX_BYTES + 1))

    def seen_errors(self, wall: float) -> SeenErrors:
        """Return the kinds of error that were seen so far; never raises.

        Where that cannot be read, those of the next hour are taken as seen, too.

        Args:
            wall: Unix time.
        """
        try:
            return SeenErrors(as_saved_seen(self._read().get(SEEN)), wall)
        except Exception:
            self._monitor.faults.report("reading which errors were seen before")
            return SeenErrors(None, wall)

    def load(self, started: float) -> AlertState:
        """Return the state in which a new server's first check finds its rules.

        Args:
            started: Monotonic time of the server's start: what fires was told before.
        """
        try:
            saved = as_alert_state(self._read())
        except CorruptNoteError:
            return no_state()
        except Exception:
            self._monitor.faults.report("reading which alerts fired")
            return no_state()
        # Monotonic times may be of another boot.
        for key, status in saved["statuses"].items():
            told_at = None if status["told_at"] is None else started
            saved["statuses"][key] = {
                **status, "since": started, "told_at": told_at, "step": 0, "carried": True
            }  # fmt: skip
        return saved

    def save(self, state: AlertState, seen: SeenErrors | None = None) -> None:
        """Save which rules fire, and which errors were seen; never raises.

        Args:
            state: The outcome of a check.
            seen: The errors that were seen; None: no rule asks.
        """
        try:
            path = self._path()
            if path is None:
                return
            firing = {k: row for k, row in state["alerts"].items() if row["state"] == "firing"}
            if not firing and seen is None and self._monitor.lasting is None:
                with suppress(FileNotFoundError):
                    path.unlink()
                return
            kept: AlertState = {
                **no_state(),
                "alerts": firing,
                "statuses": {key: state["statuses"][key] for key in firing},
                "past": state["past"],
            }
            note = cast("dict[str, object]", kept)
            if seen is not None:
                note[SEEN] = seen.saved()
            open_own(path, os.O_WRONLY | os.O_CREAT).close()  # for its owner only
            replace_file(path, note_text(note))
            if seen is not None:
                seen.is_saved = True
        except Exception:
            self._monitor.faults.report("saving which alerts fire")
