"""Paths and methods of the sub-app, its page, and the files of it."""

from __future__ import annotations

import re

import pytest
from kits.handlers import (
    READABLE,
    ROUTES,
    STATUS,
    UNKNOWN,
    ask,
    assert_error,
    body_of,
    headers_of,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters import dashboard
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.engine.reading.moment import Reading


class TestMethods:
    @pytest.mark.parametrize("path", ROUTES)
    @pytest.mark.parametrize(
        "method",
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"],
    )
    def test_table(self, handlers: Handlers, path: str, method: str) -> None:
        allowed = {"GET": ["GET", "HEAD"], "POST": ["POST"]}[ROUTES[path]]
        response = ask(handlers, path, method)
        if method in allowed:
            assert response.status == STATUS.get(path, 200)
            assert "allow" not in headers_of(response)
        else:
            assert response.status == 405
            assert method == "HEAD" or body_of(response) == {"error": "Method not allowed"}
            assert headers_of(response)["allow"] == ", ".join(allowed)

    @pytest.mark.parametrize("path", [*READABLE, "/nope"])
    def test_head_is_get_without_the_body(
        self,
        handlers: Handlers,
        monitor: MetricsMonitor,
        path: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        snapshot = (
            monitor.get_current_snapshot()
        )  # numbers of one length, whatever the machine does
        monkeypatch.setattr(Reading, "snapshot", snapshot)
        frozen = {"current": snapshot.to_dict()}
        monkeypatch.setattr(Reading, "statistics", frozen)
        got, head = ask(handlers, path), ask(handlers, path, "HEAD")
        assert head.body == b""
        assert head.status == got.status
        assert int(headers_of(head)["content-length"]) == len(got.body) > 0
        names = {name: value for name, value in got.headers if name != "Content-Disposition"}
        assert names.items() <= dict(head.headers).items()
        assert dict(head.headers).keys() == dict(got.headers).keys()

    @pytest.mark.parametrize("path", UNKNOWN)
    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
    def test_unknown_path(self, handlers: Handlers, path: str, method: str) -> None:
        assert_error(ask(handlers, path, method), 404, "Not found")

    @pytest.mark.parametrize("path", [*ROUTES, "/nope"])
    def test_headers_of_every_answer(self, handlers: Handlers, path: str) -> None:
        for method in ("GET", "POST", "HEAD"):
            response = ask(handlers, path, method)
            headers = headers_of(response)
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            if method != "HEAD":
                assert headers["content-length"] == str(len(response.body))


class TestIndex:
    @pytest.mark.parametrize(
        ("mount", "path", "href"),
        [
            ("/api/metrics", "/", "./current"),
            ("/api/metrics", "", "./metrics/current"),
            ("/api/metrics/", "", "./metrics/current"),
            ("", "/", "./current"),
            ("", "", "./current"),
            ('/a/"><script>', "", "./%22%3E%3Cscript%3E/current"),
            ("/a/b:c d", "", "./b%3Ac%20d/current"),
        ],
    )
    def test_links_hold_with_and_without_a_slash(
        self, handlers: Handlers, mount: str, path: str, href: str
    ) -> None:
        response = handlers.handle(Request("GET", path, "", {}, mount=mount))
        headers = headers_of(response)
        assert response.status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        base = href.removesuffix("current")
        links = re.findall('(?:href|src|action)="([^"#]*)"', response.body.decode())
        assert href in links
        assert all(link.startswith(base) for link in links), "not relative to the mount"
        for link in links:
            path = "/" + link.removeprefix(base)
            method = "POST" if path == "/signin" else "GET"
            assert ask(handlers, path, method).status != 404 or method == "POST"

    def test_nothing_inline_and_nothing_from_elsewhere(self, handlers: Handlers) -> None:
        response = ask(handlers, "/")
        headers = headers_of(response)
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["referrer-policy"] == "no-referrer"
        page = response.body.decode()
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?://", page)
        assert "{" not in page

    def test_the_page_knows_whether_it_can_stream(self, handlers: Handlers) -> None:
        for streams, word in ((True, b"yes"), (False, b"no")):
            page = handlers.handle(Request("GET", "/", "", {}, streams=streams)).body
            assert b'data-streams="%b"' % word in page


class TestStatic:
    """What the page is made of: by content, for ever, and for everybody."""

    @pytest.fixture
    def closed(self, monitor: MetricsMonitor) -> Handlers:
        return Handlers(monitor, lambda request: None)

    @pytest.mark.parametrize("name", sorted(dashboard.files()))
    def test_files(self, closed: Handlers, name: str) -> None:
        path = f"/static/{dashboard.version()}/{name}"
        response = ask(closed, path)
        headers = headers_of(response)
        assert response.status == 200
        assert response.body
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert headers["x-content-type-options"] == "nosniff"
        again = ask(closed, path, if_none_match=f'"other", {headers["etag"]}')
        assert (again.status, again.body) == (304, b"")
        assert headers_of(again)["etag"] == headers["etag"]
        head = ask(closed, path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert headers_of(head) == headers

    @pytest.mark.parametrize(
        "path",
        [
            "/static/",
            "/static/dashboard.js",
            "/static/0123456789abcdef/dashboard.js",
            "/static/{}/nope.js",
            "/static/{}/../auth.py",
            "/static/{}/index.html",
            "/static/{}/__init__.py",
            "/static/{}/",
        ],
    )
    def test_what_is_none(self, closed: Handlers, handlers: Handlers, path: str) -> None:
        path = path.format(dashboard.version())
        assert ask(closed, path).status == 401
        assert ask(handlers, path).status == 404

    def test_the_widget(self, closed: Handlers) -> None:
        response = ask(closed, "/widget.js")
        headers = headers_of(response)
        assert response.status == 200
        assert headers["content-type"] == "text/javascript; charset=utf-8"
        assert headers["cache-control"] == "no-cache"
        assert ask(closed, "/widget.js", if_none_match=headers["etag"]).status == 304
