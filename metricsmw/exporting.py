"""`ScheduledExport`: the numbers as files, every day or every so many minutes, by one worker.

The time of the last export stands in a hidden file beside the exports, so that a server that was
down when one was due makes up for it. A file is written as a whole before an older one is removed:
a full disk costs the new export, which is tried again, and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metricsmw.engine.files import DRAFT, EXPORT_FOLDER_MODE, make_folders, open_own, replace_file
from metricsmw.engine.workers.job import ServerJob
from metricsmw.exporters.push import OTLPExport as OTLPExport
from metricsmw.formats import csv_text, export_document, json_text
from metricsmw.validation import whole

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

Format = Literal["json", "csv"]
# format -> what its files' names begin with, as those of the routes do
FORMATS: dict[str, str] = {"json": "metrics_", "csv": "metrics_history_"}
TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class ScheduledExport:
    """Write exports into a directory, which is made if need be; keep the newest.

    All workers of a server may have one of the same settings: one of them exports. A directory is
    for one server, and in it for one daily export and one by minutes. The first export is the first
    one due after the first start.

    Args:
        monitor: Whose numbers.
        directory: Where to.
        at: The time of day, "HH:MM" in the machine's time zone, for files named
            ``metrics_YYYYMMDD.json`` and ``metrics_history_YYYYMMDD.csv``.
        keep: How many files of each format are kept, 1 to 100000; older ones are removed.
        every_minutes: Export every so many minutes instead, 1 to 1440, counted from the Unix epoch;
            the names then end in ``_YYYYMMDD_HHMM``.
        formats: "json", "csv" or both.
        name: Tells this export from others of the same server; its component in `/health`.
        start: None: export in a daemon thread, once this process serves or records. True: also
            where it does neither. False: not before `start`; or call `check` yourself.
        check_interval: Seconds between two looks whether an export is due.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is of another type.
        OSError: There can be no directory.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        directory: str | os.PathLike[str],
        at: str = "00:00",
        keep: int = 30,
        *,
        every_minutes: int | None = None,
        formats: Sequence[Format] = ("json", "csv"),
        name: str = "scheduled_export",
        start: bool | None = None,
        check_interval: float = 20.0,
    ) -> None:
        moment = TIME.fullmatch(at) if isinstance(at, str) else None
        if moment is None:
            raise ValueError(f'at must be a time from "00:00" to "23:59", got {at!r}')
        self._hour, self._minute = int(moment[1]), int(moment[2])
        whole("keep", keep, 1, 100_000)
        if every_minutes is not None:
            whole("every_minutes", every_minutes, 1, 1440)
        if isinstance(formats, str) or not formats or not set(formats) <= FORMATS.keys():
            raise ValueError(f'formats must be "json", "csv" or both, in a list; got {formats!r}')
        self._monitor = monitor
        self._keep = keep
        self._every = every_minutes
        # Of this kind of export only, as the directory may have one of the other kind, too.
        self._mark = ".metricsmw-exported-" + ("daily" if every_minutes is None else "minutes")
        self._stamp = "%Y%m%d" if every_minutes is None else "%Y%m%d_%H%M"
        self._formats = tuple(dict.fromkeys(formats))
        self._job: ServerJob[list[Path]] = ServerJob(
            monitor, name, self._export_if_due, [], interval=check_interval, expected=(OSError,)
        )
        self.directory = Path(directory).absolute()
        make_folders(self.directory, EXPORT_FOLDER_MODE)
        if start is not False:
            self._job.start(everywhere=bool(start))

    def start(self) -> None:
        """Export in a daemon thread when it is due, whatever this process does; may be repeated."""
        self._job.start(everywhere=True)

    def stop(self) -> None:
        """Export no more, and leave it to another worker; may be repeated."""
        self._job.stop()

    def check(self) -> list[Path]:
        """Export now if it is due, and this worker is the one that does; return what was written.

        What goes wrong with the files is logged and shown in `/health`.

        Raises:
            OSError: The server's own directory cannot be used.
        """
        return self._job.run()

    def _export_if_due(self) -> list[Path]:
        now = self._monitor.clock.time()
        due = self._due(now)
        last = self._exported()
        if last is None or last > now:  # the first start, or the clock was set back
            self._note(due)
            return []
        if last >= due:
            return []
        stamp = datetime.fromtimestamp(due).strftime(self._stamp)
        written: list[Path] = []
        for kind in self._formats:
            path = self.directory / f"{FORMATS[kind]}{stamp}.{kind}"
            text = self._text(kind)
            if not self._job.leader.is_leader:  # it has hung, and another one exports
                return written
            replace_file(path, text)
            written.append(path)
        self._note(due)
        for kind in self._formats:
            self._remove_old(kind, stamp)
        return written

    def _text(self, kind: str) -> str:
        reading = self._monitor.read()
        history = reading.history(self._monitor.settings.max_history_minutes)
        if kind == "csv":
            return csv_text(history)
        return json_text(export_document(reading.statistics, history))

    def _due(self, now: float) -> float:
        """Return when an export was due last, as Unix time."""
        if self._every is not None:
            return now // (60 * self._every) * 60 * self._every
        # Without a zone, so that it is the time of day that stays where the zone's offset changes.
        due = datetime.fromtimestamp(now).replace(
            hour=self._hour, minute=self._minute, second=0, microsecond=0
        )
        if due.timestamp() > now:
            due -= timedelta(days=1)
        return due.timestamp()

    def _exported(self) -> float | None:
        """Return when the last export that was made was due; None where there was none."""
        try:
            file = open_own(self.directory / self._mark, os.O_RDONLY)
            return float(os.read(file.fileno(), 64))
        except (FileNotFoundError, ValueError):
            return None

    def _note(self, due: float) -> None:
        replace_file(self.directory / self._mark, f"{due:.0f}\n")

    def _remove_old(self, kind: str, latest: str) -> None:
        """Remove files beyond `keep`, and drafts of a worker that was killed as it wrote.

        Files of a clock that was ahead stay, and take the place of none.
        """
        stamp = r"\d{8}" if self._every is None else r"\d{8}_\d{4}"
        ours = rf"{FORMATS[kind]}{stamp}\.{kind}"
        last = f"{FORMATS[kind]}{latest}.{kind}"
        draft = DRAFT.format(f"({ours}|{re.escape(self._mark)})")
        names = os.listdir(self.directory)
        exports = sorted(name for name in names if re.fullmatch(ours, name) and name <= last)
        drafts = [name for name in names if re.fullmatch(draft, name)]
        for name in exports[: -self._keep] + drafts:
            with suppress(FileNotFoundError):
                (self.directory / name).unlink()


def write_prometheus(monitor: MetricsMonitor, path: str | os.PathLike[str]) -> None:
    """Write the numbers as Prometheus text, format 0.0.4; a reader never sees half a file.

    For node_exporter's textfile collector, say, whose files end in ``.prom``.

    Args:
        monitor: Whose server's numbers.
        path: The file, which is replaced as a whole.

    Raises:
        OSError: It cannot be written; a file that was there is then untouched.
    """
    from metricsmw.exporters import text  # here, for those who use it only
    from metricsmw.exporters.server import exposition

    replace_file(path, text.write(exposition(monitor)).decode())
