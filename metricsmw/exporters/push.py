"""`OTLPExport`: one worker pushes the numbers of the whole server to an OpenTelemetry receiver.

Time is cut into intervals from the Unix epoch on, and each is exported once at most: its number is
saved before it is sent, so that a worker which takes the lead from one that died goes on with the
next. With cumulative numbers, the default, nothing is missing then; a delta that was being sent as
its leader died is lost.

It all happens in a thread of its own, over a connection of its own: a receiver that hangs or is
away costs an export and nothing else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metricsmw.engine.workers.job import PROBLEM, ServerJob
from metricsmw.engine.workers.notes import CorruptNoteError
from metricsmw.exporters.deltas import Sent, since
from metricsmw.exporters.model import Exposition
from metricsmw.exporters.server import exposition
from metricsmw.extras import require
from metricsmw.validation import number

if TYPE_CHECKING:
    from metricsmw.exporters.otlp import OTLPSender
    from metricsmw.monitor import MetricsMonitor

logger = logging.getLogger("metricsmw")

INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
DEFAULT_INTERVAL = 60.0
MAX_INTERVAL = 86_400.0
TIMEOUT_VARIABLES = "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"
DEFAULT_TIMEOUT, MAX_TIMEOUT = 10.0, 600.0
# How much later than it promised a leader may be, beside the time that an export may take.
PATIENCE_SECONDS = 15.0
# Keys of the job's note, beside that of its problem.
INTERVAL, FAILURES = "interval", "failures"
# Of the file of the last export; a larger one is damaged.
MAX_SENT_BYTES = 64 << 20


class OTLPExport:
    """Push the numbers of the whole server to an OpenTelemetry receiver, again and again.

    All workers of a server may have one: one of them exports. Needs ``metricsmw[otlp]``. All that
    OpenTelemetry's exporters read from the environment is honoured: OTEL_EXPORTER_OTLP_… for
    endpoint, headers, compression, timeout, certificates and temporality, and
    OTEL_METRIC_EXPORT_INTERVAL.

    Args:
        monitor: Whose server's numbers.
        endpoint: The receiver's full URL, as ``http://localhost:4318/v1/metrics``; None: that of
            the environment.
        interval: Seconds from one export to the next, 0.1 to 86400; None: that of the environment,
            else 60.
        headers: Sent with each export; None: those of the environment.
        timeout: Seconds for one export, retries included, 0.1 to 600; None: that of the
            environment, else 10.
        name: Tells this export from others of the same server; its component in `/health`.
        start: None: export in a daemon thread, once this process serves or records. True: also
            where it does neither. False: not before `start`; or call `check` yourself.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is of another type.
        ModuleNotFoundError: OpenTelemetry's exporter is not installed.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        endpoint: str | None = None,
        interval: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        name: str = "otlp_export",
        start: bool | None = None,
    ) -> None:
        if interval is not None:
            number("interval", interval, 0.1, MAX_INTERVAL)
        if timeout is not None:
            number("timeout", timeout, 0.1, MAX_TIMEOUT)
        self._monitor = monitor
        self._interval = _interval() if interval is None else float(interval)
        self._settings = endpoint, headers, timeout
        self._name = name
        self._sent: Sent | None = None  # of a monitor that is private to its process
        self._sender: OTLPSender | None = self._connect()
        self._job: ServerJob[bool] = ServerJob(
            monitor,
            name,
            self._export_if_due,
            False,
            interval=min(self._interval / 4, 5.0),
            title="the OTLP export",
            patience=PATIENCE_SECONDS + (timeout or _timeout()),
            renew=self._renew,
        )
        if start is not False:
            self._job.start(everywhere=bool(start))

    def start(self) -> None:
        """Export in a daemon thread, whatever this process does; may be repeated."""
        self._job.start(everywhere=True)

    def stop(self) -> None:
        """Export no more, and leave it to another worker; may be repeated."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()
        self._job.stop()

    def check(self) -> bool:
        """Export now if it is due, and this worker is the one that does.

        Returns:
            Whether the receiver has taken an export.

        Raises:
            OSError: The server's own directory cannot be used.
        """
        return self._job.run()

    def _connect(self) -> OTLPSender:
        require("OTLPExport", "otlp")
        from metricsmw.exporters.otlp import OTLPSender

        return OTLPSender(*self._settings)

    def _renew(self) -> None:
        self._sender = None  # the connection is the parent's

    def _export_if_due(self) -> bool:
        now = self._monitor.clock.time()
        this = int(now // self._interval)
        leader = self._job.leader
        try:
            note = dict(leader.read())
        except CorruptNoteError:
            note = {}
        last = note.get(INTERVAL)
        if isinstance(last, int) and this <= last <= this + 1:
            return False
        is_first = not isinstance(last, int) or last > this + 1  # or the clock was set back
        if not leader.write({**note, INTERVAL: this}) or is_first:
            return False
        error = self._export(exposition(self._monitor), now)
        self._report(note, this, error)
        return error is None

    def _export(self, numbers: Exposition, now: float) -> Exception | None:
        """Send the numbers; return what went wrong."""
        if self._sender is None:
            self._sender = self._connect()
        sender = self._sender
        from metricsmw.exporters.otlp import ExportError

        before = None
        if sender.deltas:
            before = self._read_sent()
            self._write_sent(Sent.of(numbers, now))
            if before is not None:
                numbers = since(numbers, before)
        try:
            sender.send(numbers, now)
        except Exception as error:
            # The next export is to have it all, unless this worker has hung and another one leads.
            if sender.deltas and self._job.leader.is_leader:
                self._write_sent(before)
            if not isinstance(error, ExportError):
                raise
            return error
        return None

    def _report(self, note: Mapping[str, object], this: int, error: Exception | None) -> None:
        """Save how it went, for `/health` and for the next leader; tell the log of changes only."""
        was_failing = note.get(PROBLEM) is not None
        failures = _count(note)
        problem = None
        if error is not None:
            failures += 1
            # Without the reason, which names the receiver; anybody may see `/health`.
            problem = f"failing: the receiver does not take what is sent; {failures} so far"
            if not was_failing:
                logger.error("metricsmw: the OTLP export fails, and goes on trying: %s", error)
        elif was_failing:
            logger.warning("metricsmw: the OTLP export works again")
        self._job.leader.write({INTERVAL: this, FAILURES: failures, PROBLEM: problem})

    @property
    def failures(self) -> int:
        """How many exports of the server its receiver did not take."""
        try:
            return _count(self._job.leader.read())
        except CorruptNoteError:
            return 0

    @property
    def _sent_name(self) -> str:
        return f"sent-{self._name}.json"

    def _read_sent(self) -> Sent | None:
        directory = self._monitor.shared_directory
        if directory is None:
            return self._sent
        try:
            return Sent.from_json(directory.read(self._sent_name, MAX_SENT_BYTES).decode())
        except (OSError, UnicodeDecodeError):
            return None

    def _write_sent(self, sent: Sent | None) -> None:
        directory = self._monitor.shared_directory
        if directory is None:
            self._sent = sent
        else:
            directory.replace(self._sent_name, b"" if sent is None else sent.to_json().encode())


def _count(note: Mapping[str, object]) -> int:
    kept = note.get(FAILURES)
    return kept if isinstance(kept, int) else 0


def _interval() -> float:
    """Return the interval of the environment in seconds; it is in milliseconds there."""
    text = os.environ.get(INTERVAL_VARIABLE, "").strip()
    if not text:
        return DEFAULT_INTERVAL
    try:
        seconds = float(text) / 1000
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= MAX_INTERVAL:
        logger.warning(
            "metricsmw: %s must be from 100 to 86400000 milliseconds, got %r: it is taken as 60000",
            INTERVAL_VARIABLE,
            text,
        )
        return DEFAULT_INTERVAL
    return seconds


def _timeout() -> float:
    """Return how many seconds an export may take, by the environment, retries included."""
    text = next(filter(None, map(os.environ.get, TIMEOUT_VARIABLES)), "")
    try:
        seconds = float(text)
    except ValueError:  # the library says so
        seconds = 0.0
    return seconds if 0 < seconds <= MAX_TIMEOUT else DEFAULT_TIMEOUT
