"""Where a site has its metrics: at the address given, below it, or where its page says.

Only `/health` is asked for, which is open to all, and the page itself: no token is sent before the
metrics are found, and none ever to another origin.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from time import monotonic
from typing import cast
from urllib.parse import urljoin, urlsplit

from metricsmw.cli.client import MOUNT, NoRedirects, base_of

DEADLINE_SECONDS = 5.0
MAX_BYTES = 1 << 20
MAX_HINTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


def locate(url: str) -> str:
    """Return the address of a site's metrics.

    Where they are found nowhere, or nothing answers, that is the address as it was given: asking it
    says what is wrong. Raises `TopError` for what is no address.
    """
    base = base_of(url)
    if urlsplit(base).path.endswith(MOUNT):
        return base
    return _Search().below(base) or base


class _Search:
    """A search for metrics, within one span of time."""

    def __init__(self) -> None:
        self._end = monotonic() + DEADLINE_SECONDS
        self._opener = urllib.request.build_opener(NoRedirects)

    def below(self, base: str) -> str | None:
        """Return the metrics at or below an address, or where its page leads; None: nowhere."""
        try:
            for candidate in (base, base + MOUNT):
                if self._has_metrics(candidate):
                    return candidate
            for hint in self._hints(base):
                for candidate in (hint, hint + MOUNT):
                    if self._has_metrics(candidate):
                        return candidate
        except (OSError, HTTPException):  # nobody answers, or not in time
            pass
        return None

    def _has_metrics(self, base: str) -> bool:
        _, _, body = self._ask(base + "/health", "application/json")
        try:
            health = json.loads(body)
        except (ValueError, RecursionError):
            return False
        return isinstance(health, dict) and isinstance(health.get("components"), dict)

    def _hints(self, base: str) -> Iterator[str]:
        """Yield the addresses of the same origin that a page leads to, or that it is moved to."""
        seen = {base}
        status, location, body = self._ask(base, "text/html")
        if status in REDIRECTS and location:
            found = [urljoin(base + "/", location)]
        else:
            reader = _PageReader()
            reader.feed(body.decode("utf-8", "replace"))
            found = [urljoin(base + "/", link) for link in reader.links]
        for link in found:
            address = _address(link)
            if address and _origin(address) == _origin(base) and address not in seen:
                seen.add(address)
                yield address
                if len(seen) > MAX_HINTS:
                    return

    def _ask(self, address: str, accept: str) -> tuple[int, str, bytes]:
        """Return status, `Location` and body. Raises OSError or HTTPException."""
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError
        request = urllib.request.Request(address, headers={"Accept": accept})
        try:
            with self._opener.open(request, timeout=left) as answer:
                return answer.status, "", self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                location = error.headers.get("Location", "")
                return error.code, location, self._read(cast("HTTPResponse", error.fp))

    def _read(self, answer: HTTPResponse) -> bytes:
        body = bytearray()
        while len(body) < MAX_BYTES and (data := answer.read1(65_536)):
            body += data
            if monotonic() > self._end:
                raise TimeoutError
        return bytes(body)


class _PageReader(HTMLParser):
    """Finds what a page says of its metrics: a widget's place, its script, a link to them."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        given = {name: value or "" for name, value in attrs}
        href, source = given.get("href", ""), given.get("src", "")
        if tag == "script" and source.endswith("/widget.js"):
            self.links.append(source.removesuffix("widget.js"))
        elif href and (tag == "metrics-widget" or href.rstrip("/").endswith(MOUNT)):
            self.links.append(href)


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc


def _address(link: str) -> str:
    """Return a link without its query and without a slash at its end; empty for what is none."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
