"""`metricsmw top http://host/prefix`: where the metrics of a site are found."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from metricsmw.cli.locate import locate

HEALTH = json.dumps({"success": True, "status": "healthy", "components": {}}).encode()


class Site(BaseHTTPRequestHandler):
    """A site with metrics at some paths, and pages at others."""

    metrics: ClassVar[set[str]] = set()
    pages: ClassVar[dict[str, bytes]] = {}
    moved: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[tuple[str, Any]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        body, status = b"not found", 404
        if self.path.removesuffix("/health") in self.metrics and self.path.endswith("/health"):
            body, status = HEALTH, 503
        elif self.path in self.pages:
            body, status = self.pages[self.path], 200
        elif self.path in self.moved:
            status = 308
        self.send_response(status)
        if status == 308:
            self.send_header("Location", self.moved[self.path])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


WIDGET = b'<metrics-widget fields="cpu_usage_pct" href="/shop/numbers/"></metrics-widget>'
SCRIPT = b'<p><script type="module" src="numbers/widget.js"></script><metrics-widget>'
LINK = b'<a href="/ops/api/metrics/">numbers</a>'


@pytest.mark.parametrize(
    ("given", "metrics", "pages", "moved", "found"),
    [
        ("/shop", "/shop/api/metrics", {}, {}, "/shop/api/metrics"),
        ("/shop/", "/shop/api/metrics", {}, {}, "/shop/api/metrics"),
        ("/numbers", "/numbers", {}, {}, "/numbers"),
        ("/shop", "/shop/numbers", {"/shop": WIDGET}, {}, "/shop/numbers"),
        ("/shop", "/shop/numbers", {"/shop": SCRIPT}, {}, "/shop/numbers"),
        ("/shop", "/ops/api/metrics", {"/shop": LINK}, {}, "/ops/api/metrics"),
        ("/old", "/shop/api/metrics", {}, {"/old": "/shop/?from=old"}, "/shop/api/metrics"),
        ("/shop", "/elsewhere", {}, {}, "/shop"),
        ("/shop", "/x", {"/shop": b"<a href='http://[::1'><metrics-widget href='//e.org/x'>"}, {},
         "/shop"),
        ("/shop", "/x", {"/shop/health": b'{"components": 1}'}, {}, "/shop"),
        ("/shop", "/x", {"/shop/health": b"[" * 100_000}, {}, "/shop"),
        ("", "/shop/api/metrics", {}, {}, "/api/metrics"),
    ],
)  # fmt: skip
def test_where_they_are(
    origin: str,
    given: str,
    metrics: str,
    pages: dict[str, bytes],
    moved: dict[str, str],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("metrics", {metrics}), ("pages", pages), ("moved", moved), ("asked", [])):
        monkeypatch.setattr(Site, name, value)
    assert locate(origin + given) == origin + found
    assert {token for _, token in Site.asked} <= {None}


def test_another_origin_is_not_followed(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as other:
        away = f"http://127.0.0.1:{other.server_port}/shop"
        monkeypatch.setattr(Site, "moved", {"/shop": away})
        monkeypatch.setattr(Site, "metrics", {"/away"})
        assert locate(f"{origin}/shop") == f"{origin}/shop"


def test_nobody_there() -> None:
    assert locate("http://127.0.0.1:1/shop") == "http://127.0.0.1:1/shop"
