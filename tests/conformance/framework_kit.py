"""The matrix of frameworks and cases: an abstract suite for any way to serve a site.

A test class gives `FrameworkKit` a fixture `served`. A request goes to the bare site first and to
the measured one then: the answers must be the same, and the second alone is in the numbers, in the
row of its route's template. No raw path is ever in them.
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import pytest

from .outcomes import PRECISION
from .plain import Answer
from .served.sites import PREFIX, UNMATCHED, Site

SITES = (
    "raw_wsgi",
    "flask_site",
    "dispatcher_site",
    "django_site",
    "falcon_site",
    "bottle_site",
    "pyramid_site",
    "raw_asgi",
    "django_asgi_site",
    "starlette_site",
    "fastapi_site",
    "quart_site",
    "litestar_site",
    "falcon_asgi_site",
)
STREAM = b"one\nreleased\n"


def site_of(name: str) -> Site:
    """A module of `served/sites`; within this process, its package is not `sites`."""
    site: Site = import_module(f".served.sites.{name}", __package__).SITE
    return site


class Numbers(NamedTuple):
    """The totals, and the requests and status classes of each row: {"GET /x": (1, {"2xx": 1})}."""

    requests: int
    errors: int
    in_flight: int
    rows: dict[str, tuple[int, dict[str, int]]]


class Served(Protocol):
    """A site that runs."""

    site: Site

    def ask(self, method: str, path: str, body: bytes = b"", form: str = "measured") -> Answer:
        """Ask as a client does a site in that form; `path` is percent-encoded.

        Both chunks of a stream are awaited.
        """

    def ask_slowly(self) -> float:
        """Ask for the stream; for so many seconds no more is made than its first chunk."""

    def leave(self, path: str) -> None:
        """Ask, and go away once the first bytes have come."""

    def ask_all(self, paths: list[str]) -> None:
        """Ask for each, once."""

    def numbers(self, requests: int) -> Numbers:
        """The numbers once so many requests are in them."""

    def reset(self) -> None:
        """Start all counts again."""

    def read(self, path: str) -> Any:
        """The JSON that a route of the sub-app answers with, asked over HTTP."""


# Each request of the matrix, and the site's attribute with its template, or the template itself.
REQUESTS: dict[str, str] = {
    "GET /hello": "/hello",
    "HEAD /hello": "/hello",
    "GET /hello?q=1&q=%FF": "/hello",
    "GET /items/7": "{item}",
    "HEAD /items/7": "{item}",
    "OPTIONS /items/7": "{item}",
    "DELETE /items/7": "{item}",  # 405
    "PROPFIND /items/7": "{item}",
    "GET /items/x": UNMATCHED,  # not a number
    "GET /v1/users/ada": "/v1{user}",
    "GET /v2/users/ada": "/v2{user}",
    "GET /v1/users/%C3%BC%20b": "/v1{user}",
    "GET /v1/users/%FF%FE": "/v1{user}",  # no UTF-8
    "GET /v1/users/a%2Fb": UNMATCHED,  # the slash is decoded before routing
    "GET /mounted/things/7": "{thing}",
    "GET /mounted/things/x": UNMATCHED,
    "GET /mounted/none": UNMATCHED,
    "GET /none": UNMATCHED,
    "DELETE /none": UNMATCHED,
    "OPTIONS /none": UNMATCHED,
    "PROPFIND /none": UNMATCHED,
    "GET /hello/": UNMATCHED,
    "GET /%2e%2e/etc/passwd": UNMATCHED,
    "POST /upload": "/upload",
    "GET /fail": "/fail",
    "GET /raise": "/raise",
    "GET /stream": "/stream",
    "HEAD /stream": "/stream",
    "GET /broken": "/broken",
    "GET /context": "/context",
    "GET /background": "/background",
    "GET /async": UNMATCHED,
}
STANDARD = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}


def row_of(site: Site, request: str, route: str | None = None) -> str:
    """The row that a request belongs to: "GET /items/<int:id>"."""
    method = request.split()[0]
    route = route or site.routes.get(request, REQUESTS[request])
    if not site.has_router:
        route = UNMATCHED
    elif route not in site.routes.values():
        for name in ("item", "user", "thing"):
            route = route.replace(f"{{{name}}}", getattr(site, name))
    return f"{method if method in STANDARD else '_OTHER'} {route}"


def assert_unmatched(served: Served, requests: int) -> None:
    """They are all that there is in the numbers, in one row."""
    row = {f"GET {UNMATCHED}": (requests, {"4xx": requests})}
    assert served.numbers(requests) == Numbers(requests, requests, 0, row)


def ask_both(served: Served, request: str) -> tuple[str, str, bool]:
    """Ask the bare site and the measured one, which answer alike.

    The row of that request, its class of status, and whether it is an error.
    """
    method, path = request.split()
    body = b"x" * 10_000 if method == "POST" else b""
    bare = served.ask(method, path, body, "bare")
    answer = served.ask(method, path, body)
    assert answer.comparable() == bare.comparable(), request
    broken = path == "/broken" and not served.site.ends_broken
    is_error = answer.status >= 400 or path == "/raise" or broken
    return row_of(served.site, request), f"{answer.status // 100}xx", is_error


class FrameworkKit:
    """What holds for every site, however it is served."""

    raising: tuple[str, ...] = ("measured",)  # the forms of a site that are asked to raise

    def test_all_requests(self, served: Served) -> None:
        served.reset()
        counts: dict[str, Counter[str]] = {}
        errors = 0
        for request in REQUESTS:
            row, status, is_error = ask_both(served, request)
            counts.setdefault(row, Counter())[status] += 1
            errors += is_error
        rows = {row: (statuses.total(), dict(statuses)) for row, statuses in counts.items()}
        assert served.numbers(len(REQUESTS)) == Numbers(len(REQUESTS), errors, 0, rows)

    @pytest.mark.parametrize("form", ["twice", "mounted", "around"])
    def test_wrapped_as_it_may_be(self, served: Served, form: str) -> None:
        """Twice, below a prefix, around what is mounted there and wrapped: counted once."""
        served.reset()
        is_below = form != "twice"
        asked = ["GET /items/7", "GET /none"]
        if served.site.mounts_below or not is_below:
            asked.append("GET /mounted/things/7")
        for request in asked:
            method, path = request.split()
            answer = served.ask(method, PREFIX * is_below + path, form=form)
            assert answer.status == served.ask(method, path, form="bare").status
        rows = [row_of(served.site, request) for request in asked]
        if is_below:
            rows = [row.replace(" /", f" {PREFIX}/") for row in rows]
        numbers = served.numbers(len(asked))
        assert (numbers.errors, numbers.in_flight) == (1, 0)
        counted = {row: requests for row, (requests, _) in numbers.rows.items()}
        assert counted == Counter(rows)

    def test_what_is_raised_is_counted_once(self, served: Served) -> None:
        """By whatever hooks it is seen, with the view that raised it; what is no error is not."""
        served.reset()
        for path in ("/hello", "/none"):
            served.ask("GET", path)
        asked = 2
        is_below = ("mounted", "around")
        forms = [form for form in self.raising if served.site.has_router or form not in is_below]
        for form in forms:
            for _ in range(2):
                served.ask("GET", PREFIX * (form in is_below) + "/raise", form=form)
                asked += 1
        served.numbers(asked)
        (row,) = served.read("/errors")["errors"]
        assert row["type"].endswith(".OnPurposeError")
        assert (row["count"], row["status"], row["message"]) == (2 * len(forms), 500, None)
        view = row["where"]["function"].rpartition(".")[2]
        assert view in ("raise_", "on_get", "app")  # Falcon's views are methods of that name
        assert row["traceback"][-1] == row["where"]
        if served.site.has_router:
            below = [f"GET {PREFIX}/raise"] * any(form in is_below for form in forms)
            assert row["routes"] == ["GET /raise", *below]

    def test_the_first_chunk_is_there_before_the_last_is_made(self, served: Served) -> None:
        assert served.ask("GET", "/stream").body == STREAM

    def test_paths_that_are_not_there_share_a_row(self, served: Served) -> None:
        served.reset()
        served.ask_all([f"/none/{number}?x={number}" for number in range(30)])
        assert_unmatched(served, 30)

    def test_latency_covers_a_stream_to_its_last_byte(self, served: Served) -> None:
        """And its first byte is not taken for the last."""
        served.reset()
        seconds = served.ask_slowly()
        served.numbers(1)
        current = served.read("/statistics")["statistics"]["current"]
        latency = current["latency_p50_ms"]
        assert latency >= seconds * 1000 * (1 - PRECISION)
        assert current["latency_ttfb_p50_ms"] < latency

    def test_a_client_that_leaves_in_the_middle_of_a_body(self, served: Served) -> None:
        """It is in the total, and nowhere else: no error, no status, no latency."""
        served.reset()
        served.leave("/endless")
        row = row_of(served.site, "GET /endless", "/endless")
        assert served.numbers(1) == Numbers(1, 0, 0, {row: (1, {})})
        current = served.read("/statistics")["statistics"]["current"]
        assert (current["latency_max_ms"], current["latency_ttfb_p50_ms"]) == (0, 0)

    def test_the_table_is_in_the_order_of_requests(self, served: Served) -> None:
        served.reset()
        for path, times in (("/none", 2), ("/hello", 5), ("/items/7", 3)):
            for _ in range(times):
                served.ask("GET", path)
        served.numbers(10)
        table = served.read("/routes")["routes"]
        counts = [row["requests"] for row in table]
        assert counts == ([5, 3, 2] if served.site.has_router else [10])
        for row in table:
            assert (
                0
                <= row["latency_p50_ms"]
                <= row["latency_p95_ms"]
                <= row["latency_p99_ms"]
                <= row["latency_max_ms"] * 1.022
            )
