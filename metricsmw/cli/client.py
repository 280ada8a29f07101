"""What `metricsmw top` reads of a server: its own routes, as any client would read them."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

MOUNT = "/api/metrics"
TIMEOUT_SECONDS = 10.0
# Exit codes.
UNREACHABLE, WRONG_USAGE, REFUSED = 1, 2, 3

Fields = Mapping[str, Any]


class TopError(Exception):
    """It cannot go on; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int = UNREACHABLE) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ServerAnswers:
    """What the server said at one moment; the last three are of an attached one only."""

    metrics: Fields
    routes: Sequence[Fields]
    series: Sequence[Fields]
    alerts: Sequence[Fields] = ()
    workers: Sequence[Fields] = ()
    custom: Sequence[Fields] = ()
    health: Fields = field(default_factory=dict)


class Source(Protocol):
    """Where `top` has its numbers from.

    Attributes:
        base: What to call it: the address of the metrics, or the server's process.
    """

    base: str

    def fetch(self) -> ServerAnswers:
        """Return everything, as it is now. Raises `TopError`."""

    def fetch_aside(self) -> Future[ServerAnswers]:
        """Return the same later, without holding up the caller."""


class MetricsClient:
    """The server's routes, asked with a token where there is one."""

    def __init__(self, url: str, token: str) -> None:
        self.base = base_of(url)
        self._headers = {"Accept": "application/json"}
        if token:
            # Headers take bytes: a token of any text goes as UTF-8.
            self._headers["Authorization"] = "Bearer " + token.encode().decode("latin-1")
        self._opener = urllib.request.build_opener(_NoRedirects)

    def fetch(self) -> ServerAnswers:
        """Ask for everything. Raises `TopError`."""
        return ServerAnswers(
            self._ask("/current", "metrics"),
            self._ask("/routes", "routes"),
            self._ask("/series", "series"),
            self._ask("/alerts", "alerts"),
        )

    def fetch_aside(self) -> Future[ServerAnswers]:
        """Ask in a thread that nobody has to wait for, should the server not answer."""
        future: Future[ServerAnswers] = Future()

        def ask() -> None:
            try:
                future.set_result(self.fetch())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return future

    def _ask(self, path: str, part: str) -> Any:
        request = urllib.request.Request(self.base + path, headers=self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)[part]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                reason = (
                    f"{self.base} lets nobody in without the right --token (or METRICSMW_TOKEN)"
                )
                raise TopError(reason, REFUSED) from error
            raise TopError(f"{self.base}{path} answers with status {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            raise TopError(f"cannot reach {self.base}: {cause}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise TopError(f"{self.base}{path} does not answer as metrics do") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token elsewhere."""

    def redirect_request(self, *args: Any) -> None:
        return None


def base_of(url: str) -> str:
    """Return the metrics' address, given it or the site's. Raises `TopError` for any other text."""
    if "://" not in url:
        url = "http://" + url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise TopError(
            f"URL must be like http://host:port or http://host{MOUNT}, got {url!r}", WRONG_USAGE
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or MOUNT}"
