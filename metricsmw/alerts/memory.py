"""What outlives a server: which alerts fired when it stopped, and the past ones.

It is a file beside the lasting history, where one is kept. Else it is one in the folder of this
user's servers, named by the server's command and working folder; it is there only while an alert
fires, and goes with the machine's next start.
"""

from __future__ import annotations

import os
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metricsmw.alerts.outbox import AlertState, as_alert_state, no_state
from metricsmw.engine.directory import read_all
from metricsmw.engine.files import open_own, replace_file
from metricsmw.engine.workers.directories import folder_by_hand
from metricsmw.engine.workers.notes import MAX_BYTES, CorruptNoteError, note_text, parse_note
from metricsmw.engine.workers.processes import server_root, site
from metricsmw.engine.workers.surroundings import HERE

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor


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

    def load(self, now: float) -> AlertState:
        """Return the state in which a new server's first check finds its rules.

        Args:
            now: Monotonic time.
        """
        try:
            path = self._path()
            if path is None:
                return no_state()
            file = open_own(path, os.O_RDONLY)
            try:
                saved = as_alert_state(parse_note(read_all(file, MAX_BYTES + 1)))
            finally:
                file.close()
        except (FileNotFoundError, CorruptNoteError):
            return no_state()
        except Exception:
            self._monitor.faults.report("reading which alerts fired")
            return no_state()
        # Monotonic times may be of another boot.
        for key, status in saved["statuses"].items():
            told_at = None if status["told_at"] is None else now
            saved["statuses"][key] = {
                **status, "since": now, "told_at": told_at, "step": 0, "carried": True
            }  # fmt: skip
        return saved

    def save(self, state: AlertState) -> None:
        """Save which rules fire; never raises.

        Args:
            state: The outcome of a check.
        """
        try:
            path = self._path()
            if path is None:
                return
            firing = {k: row for k, row in state["alerts"].items() if row["state"] == "firing"}
            if not firing and self._monitor.lasting is None:
                with suppress(FileNotFoundError):
                    path.unlink()
                return
            kept: AlertState = {
                **no_state(),
                "alerts": firing,
                "statuses": {key: state["statuses"][key] for key in firing},
                "past": state["past"],
            }
            open_own(path, os.O_WRONLY | os.O_CREAT).close()  # for its owner only
            replace_file(path, note_text(cast("dict[str, object]", kept)))
        except Exception:
            self._monitor.faults.report("saving which alerts fire")
