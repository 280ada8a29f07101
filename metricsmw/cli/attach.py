"""Where `metricsmw top` gets its numbers: from a URL, or the shared memory of a server here."""

from __future__ import annotations

import argparse
import re
from concurrent.futures import Future

from metricsmw.alerts import get_alerts
from metricsmw.cli.client import (
    REFUSED,
    UNREACHABLE,
    MetricsClient,
    ServerAnswers,
    Source,
    TopError,
)
from metricsmw.cli.locate import locate
from metricsmw.cli.servers import choose, quiet_log, title
from metricsmw.cli.tokens import token_in
from metricsmw.engine.reading.attached import AttachedServer, UnreadableServerError
from metricsmw.engine.reading.heatmap import distribution_of
from metricsmw.engine.workers.catalog import FoundServer

# What is taken for an address without a scheme: host:port, a path behind a host, this machine.
ADDRESS = re.compile(r"localhost|[^/\s]+:[0-9]+|(\[[^/\s]*\]|[^/\s]*)(:[0-9]*)?/.*")


MOST_CHARACTERS = 44


def shortened(text: str) -> str:
    """Return a text that leaves room for others in its line."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


class LocalServer:
    """A server of this machine, read from its shared memory."""

    def __init__(self, found: FoundServer) -> None:
        self.base = shortened(title(found))
        self._server = AttachedServer(found)

    def fetch(self) -> ServerAnswers:
        """Read everything. Raises `TopError`."""
        try:
            with quiet_log():
                return self._read()
        except FileNotFoundError as error:
            raise TopError(f"{self.base} has ended", UNREACHABLE) from error
        except PermissionError as error:
            raise TopError(f"{self.base} may not be read by this user", REFUSED) from error
        except (OSError, UnreadableServerError) as error:
            raise TopError(f"{self.base} cannot be read: {error}", UNREACHABLE) from error

    def _read(self) -> ServerAnswers:
        reading = self._server.read()
        return ServerAnswers(
            metrics=reading.snapshot.to_dict() | reading.first_bytes_ms,
            routes=reading.routes,
            series=reading.series()["series"],
            alerts=get_alerts(self._server)[0],
            workers=reading.workers,
            slowest=reading.slowest(),
            custom=[one.as_row("") for one in reading.server.instruments()],
            health=self._server.health(reading),
            errors=reading.errors(),
            distribution=distribution_of(reading.server.window),
        )

    def fetch_aside(self) -> Future[ServerAnswers]:
        """Read everything at once: there is nobody to wait for."""
        future: Future[ServerAnswers] = Future()
        try:
            future.set_result(self.fetch())
        except TopError as error:
            future.set_exception(error)
        return future


def source_of(options: argparse.Namespace) -> Source:
    """Return what the command line names. Raises `TopError`."""
    target: str | None = options.target
    if target is not None and ("://" in target or ADDRESS.fullmatch(target)):
        return _client(options, target)
    try:
        return LocalServer(choose(target, options.user, options.dir))
    except TopError:
        if target is None or "." not in target:
            raise
        return _client(options, target)


def _client(options: argparse.Namespace, url: str) -> MetricsClient:
    return MetricsClient(locate(url), token_in(options))
