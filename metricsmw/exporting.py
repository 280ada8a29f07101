"""`ScheduledExport`: the numbers as files, every day or every so many minutes, by one worker.

What was exported last stands in a hidden file beside the exports, so that a server that was down
when one was due makes up for it. A file is written as a whole before an older one is removed: a
full disk costs the new export, which is tried again, and nothing else.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metricsmw.engine.files import DRAFT, write_atomically
from metricsmw.engine.workers.job import PeriodicTask
from metricsmw.engine.workers.leader import PROBLEM, LeaderLock
from metricsmw.formats import csv_text, export_document, json_text

if TYPE_CHECKING:
    from metricsmw.monitor import MetricsMonitor

logger = logging.getLogger("metricsmw")

Format = Literal["json", "csv"]
# format -> what its files' names begin with, as those of the routes do
FORMATS: dict[str, str] = {"json": "metrics_", "csv": "metrics_history_"}
TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
CHECK_SECONDS = 20.0


class ScheduledExport:
    """Write exports into ``directory``, which is made if need be; keep the newest.

    - ``at``: time of day, "HH:MM" in the machine's time zone: ``metrics_YYYYMMDD.json`` and
      ``metrics_history_YYYYMMDD.csv``.
    - ``every_minutes``: instead, every so many minutes, 1 to 1440, counted from the Unix epoch;
      the names then end in ``_YYYYMMDD_HHMM``.
    - ``keep``: so many files of each format, 1 to 100000; older ones are removed.
    - ``formats``: "json", "csv" or both.
    - ``name``: tells it from other exports of the same server; its component in `/health`.
    - ``start``: export in a daemon thread from now on; otherwise `start`, or call `check` yourself.

    All workers of a server may have one of the same settings: one of them exports. A directory is
    for one server, and in it for one daily export and one by minutes. The first export is the first
    one due after the first start.

    Raises `ValueError` or `TypeError` for bad settings, OSError where there can be no directory.
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
        start: bool = True,
    ) -> None:
        moment = TIME.fullmatch(at) if isinstance(at, str) else None
        if moment is None:
            raise ValueError(f'at must be a time from "00:00" to "23:59", got {at!r}')
        self._hour, self._minute = int(moment[1]), int(moment[2])
        _check_whole("keep", keep, 100_000)
        if every_minutes is not None:
            _check_whole("every_minutes", every_minutes, 1440)
        if isinstance(formats, str) or not formats or not set(formats) <= FORMATS.keys():
            raise ValueError(f'formats must be "json", "csv" or both, in a list; got {formats!r}')
        self._monitor = monitor
        self._keep = keep
        self._every = every_minutes
        # Of this kind of export only, as the directory may have one of the other kind, too.
        self._mark = ".metricsmw-exported-" + ("daily" if every_minutes is None else "minutes")
        self._stamp = "%Y%m%d" if every_minutes is None else "%Y%m%d_%H%M"
        self._formats = tuple(dict.fromkeys(formats))
        self._leader = LeaderLock(monitor, name)
        self._name = name
        self._failing = False
        self._lock = threading.Lock()
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._task = PeriodicTask(monitor, self.check, CHECK_SECONDS, name, self._renew)
        if start:
            self.start()

    def start(self) -> None:
        """Export in a daemon thread when it is due. May be repeated."""
        self._task.start()

    def stop(self) -> None:
        """Export no more, and leave it to another worker; may be repeated."""
        self._task.stop()
        self._leader.end()

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def check(self) -> list[Path]:
        """Export now if it is due, and this worker is the one that does; the files written."""
        with self._lock:
            if not self._leader.acquire():
                return []
            try:
                written = self._export_if_due()
            except OSError as error:
                self._report(error)
                return []
            self._report(None)
            return written

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
        written = []
        for kind in self._formats:
            path = self.directory / f"{FORMATS[kind]}{stamp}.{kind}"
            write_atomically(path, self._text(kind))
            written.append(path)
        self._note(due)
        for kind in self._formats:
            self._remove_old(kind)
        return written

    def _text(self, kind: str) -> str:
        reading = self._monitor.read()
        history = reading.history(self._monitor.settings.max_history_minutes)
        if kind == "csv":
            return csv_text(history)
        return json_text(export_document(reading.statistics, history))

    def _due(self, now: float) -> float:
        """When an export was due last, as Unix time."""
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
        """When the last export that was made was due; None where there was none."""
        try:
            return float((self.directory / self._mark).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _note(self, due: float) -> None:
        write_atomically(self.directory / self._mark, f"{due:.0f}\n")

    def _remove_old(self, kind: str) -> None:
        """Remove files beyond `keep`, and drafts of a worker that was killed as it wrote."""
        stamp = r"\d{8}" if self._every is None else r"\d{8}_\d{4}"
        ours = rf"{FORMATS[kind]}{stamp}\.{kind}"
        draft = DRAFT.format(f"({ours}|{re.escape(self._mark)})")
        names = os.listdir(self.directory)
        exports = sorted(name for name in names if re.fullmatch(ours, name))
        drafts = [name for name in names if re.fullmatch(draft, name)]
        for name in exports[: -self._keep] + drafts:
            with suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def _report(self, error: OSError | None) -> None:
        """Tell the log, once, and `/health`, whose answer is open to all and names no path."""
        if error is not None and not self._failing:
            logger.error("metricsmw: %s fails, and will be tried again: %s", self._name, error)
        if error is None and self._failing:
            logger.warning("metricsmw: %s works again", self._name)
        self._failing = error is not None
        problem = None if error is None else f"failing: {error.strerror or type(error).__name__}"
        if self._leader.read().get(PROBLEM, "") != problem:
            self._leader.write({PROBLEM: problem})


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

    write_atomically(path, text.write(exposition(monitor)).decode())


def _check_whole(name: str, value: int, highest: int) -> None:
    allowed = f"a whole number from 1 to {highest}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if not 1 <= value <= highest:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
