"""The routes of the sub-app, asked without any framework: shapes, order of refusals, faults."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import io
import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw import MetricsMonitor, __version__
from metricsmw.adapters import dashboard
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Identity, Request, Response
from metricsmw.adapters.auth import Policy, basic, public, session, token
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.reading.server import ServerReader

SNAPSHOT = [
    "timestamp",
    "request_rate_rpm",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "active_users",
    "memory_usage_pct",
    "memory_usage_mb",
    "cpu_usage_pct",
    "websocket_connections",
    "total_requests",
    "total_errors",
    "latency_max_ms",
    "requests_in_flight",
    "workers",
]
TOTALS = ["total_requests", "total_errors", "total_error_rate_pct"]
CONFIGURATION = ["window_seconds", "user_timeout_seconds", "max_history_minutes"]
COMPONENTS = ["metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"]
ROUTE = [
    "method",
    "route",
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "statuses",
    "latency_ttfb_p50_ms",
    "latency_ttfb_p95_ms",
    "latency_ttfb_p99_ms",
]

ROUTES = {
    "": "GET",
    "/": "GET",
    "/current": "GET",
    "/history": "GET",
    "/series": "GET",
    "/statistics": "GET",
    "/reset": "POST",
    "/export/json": "GET",
    "/export/csv": "GET",
    "/prometheus": "GET",
    "/health": "GET",
    "/routes": "GET",
    "/custom": "GET",
    "/alerts": "GET",
}
OPEN = ("/health", "/signin", "/signout", "/widget.js")
READABLE = [path for path, method in ROUTES.items() if method == "GET"]
GUARDED = [path for path in ROUTES if path not in OPEN]
UNKNOWN = [
    "/nope",
    "/current/",
    "/Current",
    "/health/",
    "/export",
    "//",
    "//current",
    "current",
    "/%63urrent",
    "/current\0",
    "/../current",
    "/caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{REPLACEMENT CHARACTER}",
    "/\udcff",
]


def ask(
    handlers: Handlers,
    path: str,
    method: str = "GET",
    query: str = "",
    identity: Identity = lambda: None,
    **headers: str,
) -> Response:
    """Ask as a host would; header names are given with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return handlers.handle(Request(method, path, query, named, identity))


def headers_of(response: Response) -> dict[str, str]:
    headers = {name.lower(): value for name, value in response.headers}
    assert len(headers) == len(response.headers), "a header came twice"
    return headers


def body_of(response: Response) -> dict[str, Any]:
    assert headers_of(response)["content-type"] == "application/json"
    body = json.loads(response.body)
    assert isinstance(body, dict)
    return body


def assert_error(response: Response, status: int, message: str) -> None:
    assert response.status == status
    assert body_of(response) == {"error": message}


def assert_utc(timestamp: object) -> None:
    assert isinstance(timestamp, str)
    assert datetime.fromisoformat(timestamp).utcoffset() == timedelta(0)


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=ManualClock()) as monitor:
        yield monitor


@pytest.fixture(scope="module")
def unchanged() -> Iterator[Handlers]:
    """For those that ask often and change nothing."""
    with MetricsMonitor() as monitor:
        yield Handlers(monitor, public())


@pytest.fixture
def handlers(monitor: MetricsMonitor) -> Handlers:
    return Handlers(monitor, public())


class TestShapes:
    """Each route's answer, key by key and in order, with numbers that were recorded."""

    @pytest.fixture(autouse=True)
    def recorded(self, monitor: MetricsMonitor) -> None:
        monitor.record_request(10.0, method="GET", route="/items/{id}", status=200)
        monitor.record_request(20.0, method="GET", route="/items/{id}", status=503, is_error=True)
        monitor.save_snapshot_to_history()

    def test_current(self, handlers: Handlers) -> None:
        response = ask(handlers, "/current")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "metrics", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        metrics = body["metrics"]
        assert isinstance(metrics, dict)
        assert list(metrics) == SNAPSHOT
        assert_utc(metrics["timestamp"])
        assert (metrics["total_requests"], metrics["total_errors"]) == (2, 1)
        assert metrics["error_rate_pct"] == 50.0

    def test_history(self, handlers: Handlers) -> None:
        response = ask(handlers, "/history", query="minutes=7")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "history", "count", "minutes", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        assert body["minutes"] == 7
        assert body["count"] == 1
        [row] = body["history"]
        assert list(row) == SNAPSHOT
        assert row["total_requests"] == 2

    def test_series(self, handlers: Handlers) -> None:
        body = body_of(ask(handlers, "/series", query="seconds=60"))
        assert list(body) == [
            "success",
            "seconds",
            "step_seconds",
            "started",
            "reset",
            "series",
            "timestamp",
        ]
        assert (body["seconds"], body["step_seconds"], body["reset"]) == (60, 5.0, None)

    def test_series_of_a_route(self, handlers: Handlers) -> None:
        body = body_of(
            ask(handlers, "/series", query=urlencode({"method": "GET", "route": "/a?&"}))
        )
        assert (body["method"], body["route"], body["step_seconds"]) == ("GET", "/a?&", 30.0)

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("seconds=0", "seconds must be a whole number from 1 to 300, not '0'"),
            ("seconds=1.5", "seconds must be a whole number from 1 to 300, not '1.5'"),
            ("seconds=", "seconds must be a whole number from 1 to 300, not ''"),
            ("route=/a", "a route's series needs both method and route"),
            ("method=GET", "a route's series needs both method and route"),
        ],
    )
    def test_series_refused(self, handlers: Handlers, query: str, message: str) -> None:
        assert_error(ask(handlers, "/series", query=query), 400, message)

    def test_statistics(self, handlers: Handlers) -> None:
        response = ask(handlers, "/statistics")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "statistics", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        self.assert_statistics(body["statistics"], ["current", "totals", "configuration"])

    def test_routes(self, handlers: Handlers) -> None:
        response = ask(handlers, "/routes")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "routes", "timestamp"]
        assert body["success"] is True
        assert_utc(body["timestamp"])
        [row] = body["routes"]
        assert list(row) == ROUTE
        assert (row["method"], row["route"], row["requests"]) == ("GET", "/items/{id}", 2)
        assert row["statuses"] == {"2xx": 1, "5xx": 1}

    def test_reset(self, handlers: Handlers, monitor: MetricsMonitor) -> None:
        response = ask(handlers, "/reset", "POST")
        body = body_of(response)
        assert response.status == 200
        assert list(body) == ["success", "message", "timestamp"]
        assert body["success"] is True
        assert body["message"] == "Metrics statistics reset successfully"
        assert_utc(body["timestamp"])
        assert monitor.total_requests == 0

    def test_export_json(self, handlers: Handlers) -> None:
        response = ask(handlers, "/export/json")
        body = body_of(response)
        assert response.status == 200
        self.assert_statistics(body, ["current", "totals", "configuration", "history"])
        [row] = body["history"]
        assert list(row) == SNAPSHOT

    @staticmethod
    def assert_statistics(statistics: object, parts: list[str]) -> None:
        assert isinstance(statistics, dict)
        assert list(statistics) == parts
        assert list(statistics["current"])[: len(SNAPSHOT)] == SNAPSHOT
        assert list(statistics["totals"])[:3] == TOTALS
        assert list(statistics["configuration"])[:3] == CONFIGURATION
        assert [statistics["totals"][name] for name in TOTALS] == [2, 1, 50.0]

    def test_export_csv(self, handlers: Handlers) -> None:
        response = ask(handlers, "/export/csv")
        assert response.status == 200
        assert headers_of(response)["content-type"] == "text/csv; charset=utf-8"
        [row] = csv.DictReader(io.StringIO(response.body.decode()))
        assert list(row) == SNAPSHOT
        assert row["total_requests"] == "2"

    def test_health(self, handlers: Handlers) -> None:
        response = ask(handlers, "/health")
        body = body_of(response)
        assert response.status == 200
        assert list(body)[:4] == ["success", "status", "version", "components"]
        assert list(body)[-2:] == ["current_rpm", "timestamp"]
        assert body["success"] is True
        assert body["status"] == "healthy"
        assert body["version"] == __version__
        assert body["components"] == dict.fromkeys(COMPONENTS, "operational")
        assert body["current_rpm"] == 2.0
        assert_utc(body["timestamp"])


def test_export_csv_without_history_is_the_header_alone(handlers: Handlers) -> None:
    rows = list(csv.reader(io.StringIO(ask(handlers, "/export/csv").body.decode())))
    assert rows == [SNAPSHOT]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/export/json", r"metrics_(\d{8}_\d{6})\.json"),
        ("/export/csv", r"metrics_history_(\d{8}_\d{6})\.csv"),
    ],
)
def test_exports_are_attachments_named_by_utc(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    monkeypatch.setenv("TZ", "XXX-11:30")
    time.tzset()
    try:
        before = datetime.now(timezone.utc).replace(microsecond=0)
        disposition = headers_of(ask(handlers, path))["content-disposition"]
        after = datetime.now(timezone.utc)
    finally:
        monkeypatch.undo()
        time.tzset()
    match = re.fullmatch(f'attachment; filename="{name}"', disposition)
    assert match is not None
    named = datetime.strptime(match[1], "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc)
    assert before <= named <= after


def test_health_of_a_degraded_monitor(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "no room in the directory"
    degraded = {
        "status": "degraded",
        "components": dict.fromkeys(COMPONENTS, "operational") | {"metrics_monitor": reason},
        "mode_reason": reason,
    }
    monkeypatch.setattr(Reading, "health", degraded)
    response = ask(Handlers(monitor, token("secret")), "/health")
    body = body_of(response)
    assert response.status == 503
    assert body["success"] is False
    assert body["status"] == "degraded"
    assert body["components"] == degraded["components"]
    assert body["mode_reason"] == reason


def test_health_of_a_monitor_that_cannot_be_read(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: object) -> object:
        raise OSError("gone")

    monkeypatch.setattr(ServerReader, "read", unreadable)
    handlers = Handlers(monitor, public())
    response = ask(handlers, "/health")
    body = body_of(response)
    assert response.status == 503
    assert body["status"] == "degraded"
    assert body["current_rpm"] is None
    assert b"gone" not in response.body
    assert_error(ask(handlers, "/current"), 500, "Internal error")


class TestMinutes:
    """`?minutes=`: a whole number from 1, held to the monitor's maximum; anything else is 400."""

    @pytest.mark.parametrize(
        ("query", "minutes"),
        [
            ("", 60),
            ("other=5", 60),
            ("minutes=1", 1),
            ("minutes=59", 59),
            ("minutes=60", 60),
            ("minutes=61", 60),
            ("minutes=007", 7),
            ("minutes=" + "0" * 5000 + "7", 7),
            ("minutes=" + "9" * 100_000, 60),
            ("minutes=%35", 5),
            ("minutes=5&minutes=6", 6),
            ("minutes=junk&minutes=6", 6),
            ("a=1&minutes=5&b=2", 5),
        ],
    )
    def test_accepted(self, handlers: Handlers, query: str, minutes: int) -> None:
        response = ask(handlers, "/history", query=query)
        assert response.status == 200
        assert body_of(response)["minutes"] == minutes

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "0",
            "000",
            "-1",
            "+5",
            " 5",
            "5 ",
            "5\n",
            "5.0",
            "1e1",
            "0x10",
            "1_0",
            "five",
            "nan",
            "5;6",
            "\N{ARABIC-INDIC DIGIT THREE}",
            "\N{SUPERSCRIPT TWO}",
            "\N{FULLWIDTH DIGIT FIVE}",
            "5\0",
        ],
    )
    def test_refused(self, handlers: Handlers, text: str) -> None:
        response = ask(handlers, "/history", query=urlencode({"minutes": text}))
        assert_error(response, 400, f"minutes must be a whole number from 1 to 60, not {text!r}")

    @pytest.mark.parametrize(
        "query", ["minutes=+5", "minutes", "minutes=6&minutes=", "minutes=%ff"]
    )
    def test_refused_as_written(self, handlers: Handlers, query: str) -> None:
        assert ask(handlers, "/history", query=query).status == 400

    def test_refusal_shortens_what_it_names(self, handlers: Handlers) -> None:
        response = ask(handlers, "/history", query="minutes=" + "x" * 100_000)
        assert response.status == 400
        assert b"xxx" in response.body
        assert len(response.body) < 200

    @pytest.mark.parametrize(("maximum", "default"), [(10, 10), (120, 60)])
    def test_default_and_maximum_are_the_monitors(self, maximum: int, default: int) -> None:
        with MetricsMonitor(max_history_minutes=maximum) as monitor:
            handlers = Handlers(monitor, public())
            assert body_of(ask(handlers, "/history"))["minutes"] == default
            assert body_of(ask(handlers, "/history", query="minutes=999"))["minutes"] == maximum
            message = str(body_of(ask(handlers, "/history", query="minutes=0"))["error"])
        assert f"from 1 to {maximum}," in message

    def test_limits_the_rows(self, handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
        # What the monitor does with the number is tested where it lives.
        monkeypatch.setattr(MetricsMonitor, "get_metrics_history", lambda self, n: [{}] * n)
        body = body_of(ask(handlers, "/history", query="minutes=3"))
        assert (body["count"], body["history"]) == (3, [{}, {}, {}])

    @given(text=st.text() | st.from_regex(r"[+-]?[0-9]{1,30}(\.0)?"))
    def test_any_text(self, unchanged: Handlers, text: str) -> None:
        response = ask(unchanged, "/history", query=urlencode({"minutes": text}))
        if re.fullmatch("0*[1-9][0-9]*", text):
            assert response.status == 200
            assert body_of(response)["minutes"] == min(int(text), 60)
        else:
            assert response.status == 400

    @given(query=st.text(st.characters(codec="latin-1")))
    def test_any_query(self, unchanged: Handlers, query: str) -> None:
        assert ask(unchanged, "/history", query=query).status in (200, 400)


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
            assert response.status == 200
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


class TestLetIn:
    """All that holds data needs it but `/health`, and nobody else learns what exists."""

    @pytest.mark.parametrize(
        ("policy", "challenge"),
        [
            (None, None),
            (session(), None),
            (token("secret"), 'Bearer realm="metrics"'),
            (basic("ann", "secret"), 'Basic realm="metrics", charset="UTF-8"'),
            (lambda request: False, None),
            (lambda request: None, None),
            (lambda request: "", None),
        ],
    )
    @pytest.mark.parametrize("path", [*GUARDED, *UNKNOWN])
    def test_refused_everywhere_alike(
        self,
        monitor: MetricsMonitor,
        monkeypatch: pytest.MonkeyPatch,
        policy: Policy | None,
        challenge: str | None,
        path: str,
    ) -> None:
        monkeypatch.delenv("METRICSMW_TOKEN", raising=False)
        handlers = Handlers(monitor, policy)
        monitor.record_request(1.0)
        for method in ("GET", "POST", "DELETE"):
            response = ask(handlers, path, method, sec_fetch_site="cross-site")
            assert_error(response, 401, "Authentication required")
            assert headers_of(response).get("www-authenticate") == challenge
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("path", ["", "/"])
    def test_a_browser_is_refused_with_the_page_to_sign_in(
        self, handlers: Handlers, monitor: MetricsMonitor, path: str
    ) -> None:
        browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        let_in = ask(handlers, path, **browser)
        refused = ask(Handlers(monitor, basic("ann", "secret")), path, **browser)
        assert (let_in.status, refused.status) == (200, 401)
        headers = headers_of(refused)
        assert headers.pop("www-authenticate") == 'Basic realm="metrics", charset="UTF-8"'
        assert headers.keys() == headers_of(let_in).keys()
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert b"<main" in refused.body
        head = ask(Handlers(monitor, token("secret")), path, "HEAD", **browser)
        assert (head.status, head.body) == (401, b"")
        assert_error(
            ask(Handlers(monitor, token("secret")), path, "POST", **browser),
            401,
            "Authentication required",
        )

    @pytest.mark.parametrize("policy", [None, token("secret"), lambda request: 1 / 0])
    def test_health_is_open(self, monitor: MetricsMonitor, policy: Policy | None) -> None:
        handlers = Handlers(monitor, policy)
        assert ask(handlers, "/health").status == 200
        assert ask(handlers, "/health", "HEAD").status == 200
        assert ask(handlers, "/health", "POST").status == 405
        assert ask(handlers, "/health/").status != 200

    @pytest.mark.parametrize("path", GUARDED)
    def test_let_in(self, monitor: MetricsMonitor, path: str) -> None:
        handlers = Handlers(monitor, token("secret"))
        response = ask(handlers, path, ROUTES[path], authorization="Bearer secret")
        assert response.status == 200
        assert "www-authenticate" not in headers_of(response)

    def test_default_takes_session_or_token(
        self, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        handlers = Handlers(monitor)
        assert ask(handlers, "/current").status == 401
        assert "www-authenticate" in headers_of(ask(handlers, "/current"))
        assert ask(handlers, "/current", authorization="Bearer secret").status == 200
        assert ask(handlers, "/current", identity=lambda: "ann").status == 200

    @pytest.mark.parametrize(
        ("policy", "path", "asked"),
        [
            (session(), "/current", 1),
            (session(), "/nope", 1),
            (None, "/current", 1),
            (lambda request: request.identity() == request.identity(), "/current", 1),
            (token("secret"), "/current", 0),
            (basic("ann", "secret"), "/current", 0),
            (public(), "/current", 0),
            (lambda request: True, "/current", 0),
            (session(), "/health", 0),
        ],
    )
    def test_identity_is_asked_only_when_needed(
        self, monitor: MetricsMonitor, policy: Policy | None, path: str, asked: int
    ) -> None:
        asks: list[bool] = []
        ask(Handlers(monitor, policy), path, identity=lambda: asks.append(True))
        assert len(asks) == asked

    @pytest.mark.parametrize(
        ("auth", "got"), [("secret", "str"), (7, "int"), (True, "bool"), ({}, "dict")]
    )
    def test_what_is_no_policy(self, monitor: MetricsMonitor, auth: Policy, got: str) -> None:
        with pytest.raises(TypeError, match=f"got {got}$") as caught:
            Handlers(monitor, auth)
        assert "secret" not in str(caught.value).replace("token(secret)", "")

    @pytest.mark.parametrize("factory", [session, token, basic, public])
    def test_a_policy_that_was_not_made(self, monitor: MetricsMonitor, factory: Policy) -> None:
        with pytest.raises(TypeError, match="make one when they are called"):
            Handlers(monitor, factory)


BY_BROWSER: dict[str, Callable[[], Policy]] = {
    "session": session,
    "public": public,
    "basic": lambda: basic("ann", "secret"),
    "callable": lambda: lambda request: True,
}
CROSS_SITE = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": ""},
    {"sec_fetch_site": "cross-site", "origin": "https://app.example"},
    {"sec_fetch_site": "same-origin", "origin": "null"},
    {"sec_fetch_site": "none", "origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "https://evil.example"},
    {"origin": "https://app.example.evil.example"},
    {"origin": "https://sub.app.example"},
    {"origin": "https://app.example:8443"},
    {"origin": "http://app.example:443"},
    {"origin": "https://app.example, https://evil.example"},
    {"origin": "app.example"},
    {"origin": "ftp://app.example"},
    {"origin": "https://[app.example"},
    {"origin": "https://app.example:x"},
    {"origin": "https://app.example", "host": ""},
    {"origin": "https://app.example", "host": "app.example:8443"},
    {"origin": "https://none", "host": ""},
    {"origin": "https://", "host": ""},
]
OWN_PAGE = [
    {},
    {"sec_fetch_site": "same-origin"},
    {"sec_fetch_site": "none"},
    {"origin": "https://app.example"},
    {"origin": "http://app.example"},
    {"origin": "https://app.example:443"},
    {"origin": "https://APP.example"},
    {"origin": "https://app.example", "host": "app.example:443"},
    {"origin": "http://app.example", "host": "APP.EXAMPLE:80"},
    {"origin": "http://app.example:8050", "host": "app.example:8050"},
    {"origin": "http://[::1]:8050", "host": "[::1]:8050"},
    {"origin": "https://app.example", "sec_fetch_site": "same-origin"},
    # Behind a proxy that asks by an address of its own.
    {"origin": "https://app.example", "sec_fetch_site": "same-origin", "host": "10.0.0.7:8000"},
]


class TestCrossSite:
    @staticmethod
    def reset(monitor: MetricsMonitor, policy: Policy | None, headers: dict[str, str]) -> Response:
        monitor.record_request(1.0)
        sent = {"host": "app.example", "authorization": "Basic YW5uOnNlY3JldA=="} | headers
        named = {name.replace("_", "-"): value for name, value in sent.items()}
        return Handlers(monitor, policy).handle(Request("POST", "/reset", "", named, lambda: "ann"))

    @pytest.mark.parametrize("policy", BY_BROWSER)
    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    def test_refused(self, monitor: MetricsMonitor, policy: str, headers: dict[str, str]) -> None:
        response = self.reset(monitor, BY_BROWSER[policy](), headers)
        assert_error(response, 403, "Cross-site request refused")
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("policy", BY_BROWSER)
    @pytest.mark.parametrize("headers", OWN_PAGE, ids=str)
    def test_own_page(self, monitor: MetricsMonitor, policy: str, headers: dict[str, str]) -> None:
        assert self.reset(monitor, BY_BROWSER[policy](), headers).status == 200
        assert monitor.total_requests == 0

    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    @pytest.mark.parametrize("policy", [token("secret"), None])
    def test_a_token_is_exempt(
        self,
        monitor: MetricsMonitor,
        monkeypatch: pytest.MonkeyPatch,
        policy: Policy | None,
        headers: dict[str, str],
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        headers = headers | {"authorization": "Bearer secret"}
        assert self.reset(monitor, policy, headers).status == 200
        assert monitor.total_requests == 0

    def test_a_wrong_token_beside_a_session_is_not(
        self, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        headers = {"authorization": "Bearer wrong", "origin": "null"}
        assert self.reset(monitor, None, headers).status == 403

    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    def test_reading_is_not_refused(self, handlers: Handlers, headers: dict[str, str]) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        assert handlers.handle(Request("GET", "/current", "", named)).status == 200


class TestFaults:
    SECRET = "the inside of the inside"

    def break_(self, *args: object) -> NoReturn:
        raise RuntimeError(self.SECRET)

    def test_of_an_answer(
        self,
        monitor: MetricsMonitor,
        handlers: Handlers,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monitor.record_request(1.0)
        monkeypatch.setattr(MetricsMonitor, "get_routes", self.break_)
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):
                assert_error(ask(handlers, "/routes"), 500, "Internal error")
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1
        assert monitor.get_health()["faults"] == 3
        assert ask(handlers, "/current").status == 200

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("path", GUARDED)
    def test_of_a_policy_lets_nobody_in(
        self, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, path: str, method: str
    ) -> None:
        monitor.record_request(1.0)
        handlers = Handlers(monitor, self.break_)
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):
                assert_error(ask(handlers, path, method), 500, "Internal error")
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1
        assert monitor.total_requests == 1

    def test_of_an_identity_lets_nobody_in(self, monitor: MetricsMonitor) -> None:
        response = ask(Handlers(monitor, session()), "/current", identity=self.break_)
        assert_error(response, 500, "Internal error")

    def test_is_logged_once_whatever_clients_ask(
        self, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        handlers = Handlers(monitor, self.break_)
        with caplog.at_level(logging.DEBUG):
            for number in range(10):
                assert ask(handlers, f"/nope/{number}").status == 500
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1

    def test_a_process_that_ends_ends(self, monitor: MetricsMonitor) -> None:
        def end(request: Request) -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask(Handlers(monitor, end), "/current")


class Wait:
    """Something to await that only an event loop can end."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def yes_at_once(request: Request) -> bool:
    return True


async def yes_later(request: Request) -> bool:
    await Wait()
    return True


async def no_later(request: Request) -> bool:
    await Wait()
    return False


async def yes_in_yes(request: Request) -> object:
    return yes_at_once(request)


async def fault_later(request: Request) -> bool:
    await Wait()
    raise RuntimeError


async def ann() -> str | None:
    await Wait()
    return "ann"


class TestWaiting:
    """Policies and identities that are `async def`: awaited under ASGI, never taken for a yes."""

    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
    @pytest.mark.parametrize(
        ("policy", "here", "awaited"),
        [
            (yes_at_once, 200, 200),
            (yes_later, 500, 200),
            (no_later, 500, 401),
            (fault_later, 500, 500),
            (yes_in_yes, 500, 500),
            (lambda request: (each for each in [True]), 500, 500),
        ],
    )
    def test_policies(
        self, monitor: MetricsMonitor, policy: Policy, here: int, awaited: int
    ) -> None:
        self.assert_statuses(Handlers(monitor, policy), lambda: None, here, awaited)

    @pytest.mark.parametrize(
        ("policy", "here", "awaited"),
        [
            (lambda request: request.identity() == "ann", 500, 200),
            (lambda request: request.identity() == "bob", 500, 401),
            (session(), 500, 200),
            (None, 500, 200),
            (token("secret"), 401, 401),
            (public(), 200, 200),
        ],
    )
    def test_identities(
        self, monitor: MetricsMonitor, policy: Policy | None, here: int, awaited: int
    ) -> None:
        self.assert_statuses(Handlers(monitor, policy), ann, here, awaited)

    @staticmethod
    def assert_statuses(handlers: Handlers, identity: Identity, here: int, awaited: int) -> None:
        def request() -> Request:
            return Request("GET", "/current", "", {}, identity)

        assert handlers.handle(request()).status == here
        assert asyncio.run(handlers.handle_async(request())).status == awaited

    def test_a_policy_that_never_gives_up_waiting(self, monitor: MetricsMonitor) -> None:
        async def stubborn(request: Request) -> bool:
            while True:
                with contextlib.suppress(RuntimeError):
                    await Wait()

        response = ask(Handlers(monitor, stubborn), "/current")
        assert_error(response, 500, "Internal error")

    def test_an_identity_that_turns_out_to_be_a_coroutine_is_nobody(
        self, monitor: MetricsMonitor
    ) -> None:
        handlers = Handlers(monitor, session())
        request = Request("GET", "/current", "", {}, lambda: ann())
        assert asyncio.run(handlers.handle_async(request)).status == 500

    def test_an_identity_is_awaited_once_and_only_if_needed(self, monitor: MetricsMonitor) -> None:
        asks: list[bool] = []

        class Host:
            async def __call__(self) -> str:
                asks.append(True)
                return "ann"

        def twice(request: Request) -> bool:
            return request.identity() == request.identity() == "ann"

        def status(policy: Policy, path: str) -> int:
            request = Request("GET", path, "", {}, functools.partial(Host()))
            return asyncio.run(Handlers(monitor, policy).handle_async(request)).status

        assert status(twice, "/current") == 200
        assert len(asks) == 1

        async def settled_twice(request: Request) -> bool:
            await request.settle()
            return request.identity() == "ann"

        assert status(settled_twice, "/current") == 200
        assert len(asks) == 2
        assert status(twice, "/health") == 200
        assert status(public(), "/current") == 200
        assert status(token("secret"), "/current") == 401
        assert len(asks) == 2
