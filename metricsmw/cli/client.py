"""A server's own routes, as commands such as `metricsmw top` ask them, and as any client would.

Nothing is taken on trust: an answer has a limit of size, all answers together have one of time, and
each is checked to have the numbers and texts that are shown of it.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from metricsmw.cli.shape import check_distribution
from metricsmw.snapshot import FIRST_BYTE_FIELDS, NUMERIC_FIELDS

MOUNT = "/api/metrics"
# For all answers together.
DEADLINE_SECONDS = 10.0
# Of one answer. 10,000 routes, the most that a server can be told to have, take a quarter of it.
MAX_BYTES = 16 * 1024 * 1024
MAX_TOKEN_BYTES = 65_536
# Exit codes.
UNREACHABLE, WRONG_USAGE, REFUSED = 1, 2, 3

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerShape:
    """What each row of an answer has, as far as it is shown."""

    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    texts_or_null: tuple[str, ...] = ()
    numbers_or_null: tuple[str, ...] = ()
    texts_by_name: tuple[str, ...] = ()
    lists_of_texts: tuple[str, ...] = ()
    lists_of_numbers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    objects_or_null: tuple[tuple[str, AnswerShape], ...] = ()

    def check(self, row: object) -> None:
        """Raise `ValueError` for a row that is not so."""
        if not isinstance(row, dict):
            raise ValueError("it has something that is no object")
        for name in self.texts:
            if not isinstance(row.get(name), str):
                raise ValueError(f"{name} is no text")
        for name in self.texts_or_null:
            if not isinstance(row.get(name), (str, type(None))):
                raise ValueError(f"{name} is no text")
        for name in self.numbers:
            if not is_number(row.get(name)):
                raise ValueError(f"{name} is no number")
        for name in self.numbers_or_null:
            if row.get(name) is not None and not is_number(row[name]):
                raise ValueError(f"{name} is no number")
        for name in self.texts_by_name:
            found = row.get(name)
            if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
                raise ValueError(f"{name} are no texts by name")
        for name in self.lists_of_texts:
            found = row.get(name)
            if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
                raise ValueError(f"{name} are no texts")
        for name in self.lists_of_numbers:
            found = row.get(name)
            if not isinstance(found, list) or not all(map(is_number, found)):
                raise ValueError(f"{name} are no numbers")
        for name in self.flags:
            if not isinstance(row.get(name), bool):
                raise ValueError(f"{name} is neither true nor false")
        for name, shape in self.objects_or_null:
            if row.get(name) is not None:
                shape.check(row[name])


METRICS = AnswerShape(texts=("timestamp",), numbers=NUMERIC_FIELDS)
ROUTES = AnswerShape(
    texts=("method", "route"),
    numbers=(
        "requests",
        "error_rate_pct",
        "server_error_rate_pct",
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "latency_max_ms",
    ),
)
SERIES = AnswerShape(numbers_or_null=("request_rate_rpm", "error_rate_pct", "latency_p95_ms"))
ALERTS = AnswerShape(
    texts=("type", "state", "field", "comparison"),
    numbers=("threshold",),
    texts_or_null=("route", "since"),
    numbers_or_null=("value",),
)
CUSTOM = AnswerShape(
    texts=("name", "unit"),
    numbers_or_null=("value", "count", "sum", "p50", "p95", "p99"),
    texts_by_name=("labels",),
)
SLOWEST = AnswerShape(
    texts=("timestamp", "method", "route"),
    numbers=("latency_ms", "latency_ttfb_ms", "pid"),
    numbers_or_null=("status", "requests_in_flight"),
    texts_or_null=("trace_id", "request_id", "error", "path", "query", "user"),
)
WORKERS = AnswerShape(
    texts=("state", "since"),
    numbers=(
        "pid",
        "requests",
        "request_rate_rpm",
        "error_rate_pct",
        "server_error_rate_pct",
        "requests_in_flight",
    ),
    numbers_or_null=(
        "latency_p95_ms",
        "cpu_pct",
        "memory_mb",
        "last_request_seconds",
        "seen_seconds",
    ),
    lists_of_texts=("differs",),
)
ERRORS = AnswerShape(
    texts=("type", "last_seen"),
    numbers=("count",),
    lists_of_texts=("routes",),
    lists_of_numbers=("bars",),
    flags=("new",),
    objects_or_null=(("where", AnswerShape(texts=("module", "function"), numbers=("line",))),),
)


class TopError(Exception):
    """It cannot go on; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int = UNREACHABLE) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ServerAnswers:
    """What the server said at one moment; health is of an attached one only."""

    metrics: Fields
    routes: Sequence[Fields]
    series: Sequence[Fields]
    alerts: Sequence[Fields] = ()
    custom: Sequence[Fields] = ()
    workers: Sequence[Fields] = ()
    slowest: Sequence[Fields] = ()
    health: Fields = field(default_factory=dict)
    errors: Sequence[Fields] = ()
    distribution: Fields = field(default_factory=dict)


def late(base: str, seconds: float) -> TopError:
    """Return what to say of a server that does not answer in time."""
    return TopError(f"{base} has not answered in full within {seconds:g} s")


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

    def __init__(self, url: str, token: str, deadline: float = DEADLINE_SECONDS) -> None:
        self.base = base_of(url)
        self.has_token = False
        self._deadline = deadline
        self._headers = {"Accept": "application/json"}
        self._opener = urllib.request.build_opener(NoRedirects)
        if token:
            self.use(token)

    def use(self, token: str) -> None:
        """Ask with this token from now on. Raises `TopError` for one that no header can carry."""
        self._headers["Authorization"] = "Bearer " + _header(token)
        self.has_token = True

    def fetch(self) -> ServerAnswers:
        """Ask for everything. Raises `TopError`."""
        try:
            return self.fetch_aside().result(self._deadline)
        except FutureTimeoutError:
            raise late(self.base, self._deadline) from None

    def ask(self, path: str, part: str, post: bool = False, seconds: float | None = None) -> Any:
        """Return a part of an answer.

        Args:
            path: The route, with its query.
            part: The field of the answer.
            post: Ask by POST.
            seconds: How long the answer may take; None: the client's deadline.

        Raises:
            TopError: There is no such answer.
        """
        deadline = self._deadline if seconds is None else seconds
        return self._ask(path, part, monotonic() + deadline, "POST" if post else "GET")

    def ask_rows(self, path: str, part: str, shape: AnswerShape) -> list[Fields]:
        """Return the rows of an answer. Raises `TopError` where it has none, or of another shape.

        Args:
            path: The route.
            part: The field of the answer.
            shape: What each row has.
        """
        return self._rows(path, part, shape, monotonic() + self._deadline)

    def fetch_aside(self) -> Future[ServerAnswers]:
        """Ask in a thread that nobody has to wait for, should the server not answer."""
        future: Future[ServerAnswers] = Future()

        def ask() -> None:
            try:
                future.set_result(self._fetch())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return future

    def _fetch(self) -> ServerAnswers:
        end = monotonic() + self._deadline
        metrics = self._ask("/current", "metrics", end)
        self._check("/current", METRICS, [metrics])
        routes = self._answer("/routes", "routes", end)
        return ServerAnswers(
            {**metrics, **_first_bytes(routes)},
            self._rows_of(routes, "/routes", "routes", ROUTES),
            self._rows("/series", "series", SERIES, end),
            self._rows("/alerts", "alerts", ALERTS, end),
            self._rows("/custom", "custom", CUSTOM, end),
            self._rows("/workers", "workers", WORKERS, end),
            self._rows("/slowest", "slowest", SLOWEST, end),
            errors=self._rows("/errors", "errors", ERRORS, end),
            distribution=self._distribution(end),
        )

    def _distribution(self, end: float) -> Fields:
        path = "/heatmap?seconds=1"  # the steps are not shown
        told: Fields = self._ask(path, "distribution", end)
        try:
            check_distribution(told)
        except ValueError as error:
            self._refuse(path, error)
        return told

    def _rows(self, path: str, part: str, shape: AnswerShape, end: float) -> list[Fields]:
        return self._rows_of(self._answer(path, part, end), path, part, shape)

    def _rows_of(self, answer: Fields, path: str, part: str, shape: AnswerShape) -> list[Fields]:
        rows = answer[part]
        if not isinstance(rows, list):
            self._refuse(path, f"{part} is no list")
        self._check(path, shape, rows)
        return rows

    def _check(self, path: str, shape: AnswerShape, rows: Sequence[object]) -> None:
        for row in rows:
            try:
                shape.check(row)
            except ValueError as error:
                self._refuse(path, error)

    def _ask(self, path: str, part: str, end: float, method: str = "GET") -> Any:
        return self._answer(path, part, end, method)[part]

    def _answer(self, path: str, part: str, end: float, method: str = "GET") -> Fields:
        """Return an answer that has this part."""
        address = self.base + path
        request = urllib.request.Request(address, headers=self._headers, method=method)
        left = end - monotonic()
        if left <= 0:
            raise late(self.base, self._deadline)
        try:
            with self._opener.open(request, timeout=left) as answer:
                body = self._read(path, answer, end)
        except urllib.error.HTTPError as error:
            with error:
                said = _error_in(error)
            if error.code in (400, 404) and said:
                raise TopError(f"{self.base}: {said}", WRONG_USAGE) from error
            if error.code == 403 and said and method == "POST":
                raise TopError(f"{self.base}: {said}", REFUSED) from error
            if error.code in (401, 403):
                reason = (
                    f"{self.base} lets nobody in without the right token (--token-file or "
                    "METRICSMW_TOKEN)"
                )
                raise TopError(reason, REFUSED) from error
            raise TopError(f"{self.base}{path} answers with status {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            cause = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
            raise TopError(f"cannot reach {self.base}: {cause}") from error
        try:
            document = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            self._refuse(path, "it is no JSON")
        if not isinstance(document, dict) or part not in document:
            self._refuse(path, f"it has no {part}")
        return document

    def _read(self, path: str, answer: http.client.HTTPResponse, end: float) -> bytes:
        """Return a body, which may come in drops or have no end."""
        body = bytearray()
        while data := answer.read1(65_536):
            body += data
            if len(body) > MAX_BYTES:
                self._refuse(path, f"it has more than {MAX_BYTES >> 20} MB")
            if monotonic() > end:
                raise late(self.base, self._deadline)
        return bytes(body)

    def _refuse(self, path: str, reason: object) -> NoReturn:
        raise TopError(f"{self.base}{path} does not answer as metrics do: {reason}") from None


def _error_in(answer: urllib.error.HTTPError) -> str:
    """Return what an error's JSON says; "" where it says nothing."""
    try:
        document = json.loads(answer.read(65_536))
        return str(document["error"])[:1000]
    except Exception:
        return ""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token elsewhere."""

    def redirect_request(self, *args: Any) -> None:
        """Make no request of one."""
        return


def is_number(value: object) -> bool:
    """Return whether something is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def read_token(path: str) -> str:
    """Return the token that a file has. Raises `TopError`."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise TopError(f"cannot read the token in {path!r}: {reason}", WRONG_USAGE) from error
    token = text.decode("utf-8", "surrogateescape").strip()
    if not token or len(text) > MAX_TOKEN_BYTES:
        raise TopError(f"{path!r} has no token", WRONG_USAGE)
    return token


def _header(token: str) -> str:
    """Return a token as a header's value. Raises `TopError` for one that no header can carry."""
    # Headers take bytes: a token of any text goes as UTF-8.
    value = token.encode("utf-8", "surrogateescape").decode("latin-1")
    if any(character < " " or character == "\x7f" for character in value):
        raise TopError("the token has characters that no header can carry", WRONG_USAGE)
    return value


def base_of(url: str) -> str:
    """Return the metrics' address, given it or the site's. Raises `TopError` for any other text."""
    if "://" not in url:
        url = "http://" + url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not url.isprintable():
        raise TopError(
            f"URL must be like http://host:port or http://host{MOUNT}, got {url!r}", WRONG_USAGE
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or MOUNT}"


def _first_bytes(answer: Fields) -> Fields:
    """Return the time to first byte that an answer has; nothing of an older server's."""
    found = answer.get("first_bytes")
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in FIRST_BYTE_FIELDS if is_number(found.get(name))}
