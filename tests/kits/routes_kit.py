"""The sub-app's promise, asked over real HTTP: the same answers whatever app, under any server.

A test module subclasses `RoutesKit` (all of it) or `RoutesSmoke` (what a further host may break)
and gives it two fixtures: `host` (a `Host`) and `server` (that host's app running, with
METRICSMW_TOKEN set to `TOKEN`), which may outlive a test. The app is one of `tests/servers/apps`,
whose routes are known.

A response reaches its client a moment before it is counted (WSGI counts at `close()`), so numbers
are read until all that was asked is in them; what they then say must be exact, and stay so.
"""

from __future__ import annotations

import csv
import io
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from kits.servers import Answer, Server, wait_until
from metricsmw.snapshot import MINUTE_FIELDS

TOKEN = "a token for tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MOUNT = "/api/metrics"

SNAPSHOT = {
    "timestamp": str,
    "request_rate_rpm": float,
    "error_rate_pct": float,
    "latency_p50_ms": float,
    "latency_p95_ms": float,
    "latency_p99_ms": float,
    "active_users": int,
    "memory_usage_pct": float,
    "memory_usage_mb": float,
    "cpu_usage_pct": float,
    "websocket_connections": int,
    "total_requests": int,
    "total_errors": int,
    "latency_max_ms": float,
    "requests_in_flight": int,
    "workers": int,
    "cpu_share_pct": float,
    "server_error_rate_pct": float,
    "total_server_errors": int,
}
TTFB = [f"latency_ttfb_p{percent}_ms" for percent in (50, 95, 99)]
ROUTE_ROW = [
    "method",
    "route",
    "requests",
    "error_rate_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "statuses",
    *TTFB,
    "status_codes",
    "server_error_rate_pct",
    "request_rate_rpm",
    "time_share_pct",
]
COMPONENTS = ["metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking"]
CONFIGURATION = {"window_seconds": 300, "user_timeout_seconds": 300, "max_history_minutes": 60}

READ_ROUTES = [
    "/current",
    "/history",
    "/statistics",
    "/export/json",
    "/export/csv",
    "/prometheus",
    "/health",
    "/routes",
    "/errors",
    "/slowest",
    "/custom",
    "/workers",
    "/alerts",
]
GUARDED = [("GET", path) for path in ["/", *READ_ROUTES] if path != "/health"] + [
    ("POST", "/reset")
]
UNMATCHED = "<unmatched>"


@dataclass(frozen=True)
class Host:
    """An app under a server, and what can be asked of it.

    item_route: the template of /items/<id>; None where there is no router, so that all requests
    share one row. session: /login gives one. websocket: there is a /ws. concurrent: answers while
    another request waits for its body.
    """

    server: str
    app: str
    args: Sequence[str] = ()
    workers: int = 1
    item_route: str | None = None
    session: bool = False
    websocket: bool = False
    concurrent: bool = True

    def __str__(self) -> str:
        options = [arg for arg in self.args if not arg.startswith("-")]
        app = self.app.split(".")[1].split(":")[0]
        return "-".join([app, self.server, *options, str(self.workers)])


class Api:
    """The sub-app of a running server, asked as somebody with the token; `headers`: of each."""

    def __init__(self, server: Server, headers: Mapping[str, str] | None = None) -> None:
        self._server = server
        self._headers = headers or {}

    def get(self, path: str, headers: Mapping[str, str] = BEARER) -> Answer:
        return self.ask("GET", path, headers)

    def post(self, path: str, headers: Mapping[str, str] = BEARER) -> Answer:
        return self._server.post(MOUNT + path, {**self._headers, **headers})

    def ask(self, method: str, path: str, headers: Mapping[str, str] = BEARER) -> Answer:
        return self._server.request(method, MOUNT + path, {**self._headers, **headers})

    def current(self) -> dict[str, Any]:
        answer = self.get("/current")
        assert answer.status == 200, answer
        metrics: dict[str, Any] = answer.json()["metrics"]
        return metrics

    def routes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.get("/routes").json()["routes"]
        return rows

    def until(self, probe: Callable[[], bool], what: str) -> None:
        """Ask until `probe` says yes.

        Once that was in vain, later waits for this server are short: a number that is stuck fails
        every test after the first, and should do so soon.
        """
        try:
            wait_until(probe, what, self._server.patience)
        except AssertionError:
            self._server.patience = 0.5
            raise

    def settled(self, requests: int) -> dict[str, Any]:
        """The numbers once `requests` requests are in them and none is under way."""
        metrics: dict[str, Any] = {}

        def complete() -> bool:
            metrics.update(self.current())
            done: bool = metrics["total_requests"] >= requests
            return done and metrics["requests_in_flight"] == 0

        self.until(complete, f"{requests} requests in the numbers")
        assert metrics["total_requests"] == requests
        return metrics


def is_utc(timestamp: str) -> bool:
    """Whether it is ISO 8601 with UTC's offset."""
    return datetime.fromisoformat(timestamp).utcoffset() == timedelta(0)


def check_snapshot(metrics: dict[str, Any]) -> None:
    """The snapshot's 16 fields, in order, each of its type and in its range."""
    assert list(metrics) == list(SNAPSHOT)
    for field, kind in SNAPSHOT.items():
        assert type(metrics[field]) is kind, (field, metrics[field])
    assert is_utc(metrics["timestamp"])
    assert all(value >= 0 for value in metrics.values() if not isinstance(value, str))
    assert metrics["memory_usage_mb"] > 0
    assert (
        metrics["latency_p50_ms"]
        <= metrics["latency_p95_ms"]
        <= metrics["latency_p99_ms"]
        <= metrics["latency_max_ms"]
    )


def check_statistics(statistics: dict[str, Any], parts: list[str]) -> None:
    """The statistics' parts, and that they agree with each other."""
    assert list(statistics) == parts
    totals, current = statistics["totals"], statistics["current"]
    extra = {name: current[name] for name in current if name not in SNAPSHOT}
    check_snapshot({name: current[name] for name in current if name not in extra})
    assert list(current)[len(SNAPSHOT) :] == list(extra) == TTFB
    assert extra["latency_ttfb_p50_ms"] <= extra["latency_ttfb_p99_ms"]
    assert list(totals) == ["total_requests", "total_errors", "total_error_rate_pct"]
    assert totals["total_requests"] == current["total_requests"]
    assert totals["total_errors"] == current["total_errors"]
    # After the settings it says what limits CPU and memory are of.
    assert dict(list(statistics["configuration"].items())[:3]) == CONFIGURATION


def check_error(answer: Answer, status: int, message: str | None = None) -> None:
    """A JSON error that says something and nothing of the inside."""
    assert answer.status == status
    body = answer.json()
    assert list(body) == (["error", "ways_in"] if status == 401 else ["error"])
    assert body["error"]
    assert message in (None, body["error"])
    assert not re.search(r"Traceback|File \"|\.py|0x[0-9a-f]+", body["error"])
    assert answer.headers["cache-control"] == "no-store"


class RoutesSmoke:
    """What each host is asked: its routes, who may ask, and that the numbers are right."""

    @pytest.fixture
    def api(self, server: Server) -> Iterator[Api]:
        """The sub-app, with all numbers at zero; whatever a test asks, no fault may be counted."""
        api = Api(server)
        assert api.post("/reset").status == 200
        api.settled(0)
        yield api
        assert api.get("/health").json()["faults"] == 0

    @pytest.fixture
    def cookie(self, host: Host, api: Api, server: Server) -> dict[str, str]:
        """A logged-in session as a request header; logging in was one request."""
        if not host.session:
            pytest.skip("this host has no session")
        answer = server.post("/login")
        assert answer.status == 200
        (cookie,) = answer.cookies
        api.settled(1)
        return {"Cookie": cookie.partition(";")[0]}

    # -- shapes ------------------------------------------------------------------------------------

    def test_current(self, api: Api) -> None:
        body = api.get("/current").json()
        assert list(body) == ["success", "metrics", "timestamp"]
        assert body["success"] is True
        assert is_utc(body["timestamp"])
        check_snapshot(body["metrics"])

    def test_statistics(self, api: Api, server: Server) -> None:
        for path in ["/hello", "/hello", "/fail"]:
            server.get(path)
        api.settled(3)
        body = api.get("/statistics").json()
        assert list(body) == ["success", "statistics", "timestamp"]
        assert body["success"] is True
        assert is_utc(body["timestamp"])
        check_statistics(body["statistics"], ["current", "totals", "configuration"])
        assert body["statistics"]["totals"] == {
            "total_requests": 3,
            "total_errors": 1,
            "total_error_rate_pct": 33.33,
        }

    def test_reset(self, api: Api, server: Server) -> None:
        for path in ["/hello", "/fail"]:
            server.get(path)
        before = api.settled(2)
        assert before["total_errors"] == 1
        body = api.post("/reset").json()
        assert list(body) == ["success", "message", "timestamp"]
        assert body["success"] is True
        assert body["message"] == "Metrics statistics reset successfully"
        assert is_utc(body["timestamp"])
        after = api.current()
        for field in [
            "total_requests",
            "total_errors",
            "request_rate_rpm",
            "error_rate_pct",
            "latency_p50_ms",
            "latency_max_ms",
            "active_users",
        ]:
            assert after[field] == 0, field
        assert api.routes() == []
        assert api.get("/history").json()["history"] == []

    def test_health_is_open_to_all(self, api: Api) -> None:
        answer = api.get("/health", {})
        assert answer.status == 200
        body = answer.json()
        assert body["success"] is True
        assert body["status"] == "healthy"
        assert body["version"] == "1.0.0"
        assert {name: body["components"][name] for name in COMPONENTS} == dict.fromkeys(
            COMPONENTS, "operational"
        )
        assert type(body["current_rpm"]) is float
        assert is_utc(body["timestamp"])
        assert list(body) == [
            "success",
            "status",
            "version",
            "components",
            "current_rpm",
            "timestamp",
        ]
        assert list(body["components"]) == COMPONENTS
        assert api.get("/health").json()["mode_reason"]  # which strangers are not told

    def test_routes(self, api: Api, server: Server) -> None:
        server.get("/hello")
        api.settled(1)
        body = api.get("/routes").json()
        assert list(body) == ["success", "routes", "first_bytes", "timestamp"]
        assert body["success"] is True
        assert is_utc(body["timestamp"])
        (row,) = body["routes"]
        assert list(row) == ROUTE_ROW

    # -- who may ask -------------------------------------------------------------------------------

    def test_a_session_is_an_identity(self, api: Api, cookie: dict[str, str]) -> None:
        assert api.get("/current", cookie).status == 200
        assert api.get("/export/csv", cookie).status == 200
        name = cookie["Cookie"].partition("=")[0]
        check_error(api.get("/current", {"Cookie": f"{name}=forged"}), 401)

    def test_the_same_site_resets_with_a_session(
        self, api: Api, cookie: dict[str, str], server: Server
    ) -> None:
        own = {"Sec-Fetch-Site": "same-origin", "Origin": server.url}
        assert api.post("/reset", cookie | own).status == 200
        api.settled(0)

    # -- numbers -----------------------------------------------------------------------------------

    def test_every_request_is_counted_once_in_its_row(
        self, host: Host, api: Api, server: Server
    ) -> None:
        asked = [
            *[("/hello", "/hello", 200)] * 5,
            *[(f"/items/{n}", host.item_route or UNMATCHED, 200) for n in (1, 2, 3)],
            *[("/fail", "/fail", 500)] * 2,
            ("/raise", "/raise", 500),
            ("/stream", "/stream", 200),
            ("/slow?ms=20", "/slow", 200),
            ("/nowhere", UNMATCHED, 404),
            ("/nor/here", UNMATCHED, 404),
        ]
        expected: dict[str, Counter[str]] = {}
        for path, route, status in asked:
            assert server.get(path).status == status, path
            statuses = expected.setdefault(route if host.item_route else UNMATCHED, Counter())
            statuses[f"{status // 100}xx"] += 1

        metrics = api.settled(len(asked))
        assert metrics["total_errors"] == 5
        assert metrics["error_rate_pct"] == 33.33
        assert metrics["request_rate_rpm"] > 0
        assert metrics["latency_max_ms"] >= 20
        assert metrics["latency_p50_ms"] > 0

        table = api.routes()
        requests = [row["requests"] for row in table]
        assert requests == sorted(requests, reverse=True)
        assert [row["method"] for row in table] == ["GET"] * len(expected)
        assert {row["route"]: Counter(row["statuses"]) for row in table} == expected
        for row in table:
            statuses = expected[row["route"]]
            assert row["requests"] == statuses.total()
            errors = statuses["4xx"] + statuses["5xx"]
            assert row["error_rate_pct"] == round(100 * errors / statuses.total(), 2)
            assert 0 < row["latency_p50_ms"] <= row["latency_p99_ms"] <= row["latency_max_ms"]
            assert 0 < row["latency_ttfb_p50_ms"] <= row["latency_ttfb_p99_ms"]
            assert row["latency_ttfb_p99_ms"] <= row["latency_max_ms"]

    def test_methods_have_rows_of_their_own(self, host: Host, api: Api, server: Server) -> None:
        server.get("/hello")
        server.request("POST", "/upload", body=b"12345")
        server.request("PROPFIND", "/nowhere")
        api.settled(3)
        hello, upload = ("/hello", "/upload") if host.item_route else (UNMATCHED, UNMATCHED)
        assert {(row["method"], row["route"]) for row in api.routes()} == {
            ("GET", hello),
            ("POST", upload),
            ("_OTHER", UNMATCHED),
        }

    def test_the_own_requests_are_in_no_number(self, api: Api) -> None:
        for _ in range(3):
            for path in READ_ROUTES:
                assert api.get(path).status == 200
            check_error(api.get("/nowhere"), 404)
            check_error(api.get("/current", {}), 401)
        metrics = api.settled(0)
        assert (
            metrics["total_errors"] == metrics["request_rate_rpm"] == metrics["active_users"] == 0
        )
        assert metrics["requests_in_flight"] == 0
        assert api.routes() == []

    def test_answers_of_the_app_are_its_own(self, api: Api, server: Server) -> None:
        assert server.get("/hello").text == "hello"
        assert server.get("/items/7").json() == {"id": 7}
        assert server.get("/stream").text == "one\ntwo\nthree\n"
        assert server.request("POST", "/upload", body=b"x" * 100_000).json() == {"bytes": 100_000}
        assert server.get("/nowhere").status == 404
        api.settled(5)

    def test_a_user_with_two_sessions_is_one(
        self, api: Api, server: Server, cookie: dict[str, str]
    ) -> None:
        assert server.post("/login").status == 200
        assert server.get("/hello", cookie).status == 200
        assert api.settled(3)["active_users"] == 1

    def test_an_open_request_is_in_flight(self, host: Host, api: Api, server: Server) -> None:
        if not host.concurrent:
            pytest.skip("one request at a time")
        head = f"POST /upload HTTP/1.1\r\nHost: {server.host}:{server.port}\r\n"
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(f"{head}Content-Length: 10\r\n\r\n12345".encode())
            api.until(lambda: api.current()["requests_in_flight"] == 1, "a request in flight")
            assert api.current()["total_requests"] == 0
            client.sendall(b"67890")
            assert client.recv(12).endswith(b"200")
            assert api.settled(1)["requests_in_flight"] == 0

    def test_web_sockets(self, host: Host, api: Api, server: Server) -> None:
        if not host.websocket:
            pytest.skip("this host has no WebSocket")
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        url = server.url.replace("http", "ws")

        def open_now(number: int) -> bool:
            return bool(api.current()["websocket_connections"] == number)

        with connect(f"{url}/ws") as one:
            one.send("ping")
            assert one.recv() == "ping"
            api.until(lambda: open_now(1), "one WebSocket")
            with connect(f"{url}/ws"):
                api.until(lambda: open_now(2), "two WebSockets")
            with pytest.raises(InvalidStatus):
                connect(f"{url}/nowhere")
            api.until(lambda: open_now(1), "one WebSocket again")
        api.until(lambda: open_now(0), "no WebSocket")
        api.settled(0)

    # -- one truth ---------------------------------------------------------------------------------

    def test_every_worker_shows_the_whole_server(
        self, host: Host, api: Api, server: Server
    ) -> None:
        asked = server.reach_all_workers()
        api.settled(asked)
        with ThreadPoolExecutor(2 * host.workers) as pool:
            reads = list(pool.map(lambda _: api.current(), range(10 * host.workers)))
        assert {read["total_requests"] for read in reads} == {asked}
        assert {read["workers"] for read in reads} == {host.workers}
        assert api.post("/reset").status == 200
        with ThreadPoolExecutor(2 * host.workers) as pool:
            reads = list(pool.map(lambda _: api.current(), range(10 * host.workers)))
        assert {read["total_requests"] for read in reads} == {0}


class RoutesKit(RoutesSmoke):
    """All that is asked: once for each adapter."""

    # -- shapes ------------------------------------------------------------------------------------

    def test_history(self, api: Api) -> None:
        body = api.get("/history").json()
        assert list(body) == ["success", "history", "count", "minutes", "timestamp"]
        assert body["success"] is True
        assert body["minutes"] == 60
        assert body["count"] == len(body["history"])
        assert is_utc(body["timestamp"])
        for snapshot in body["history"]:
            check_snapshot({name: snapshot[name] for name in SNAPSHOT})
            assert list(snapshot)[len(SNAPSHOT) :] in ([], list(MINUTE_FIELDS))

    def test_export_json(self, api: Api) -> None:
        answer = api.get("/export/json")
        assert answer.status == 200
        assert re.fullmatch(
            r'attachment; filename="?metrics_\d{8}_\d{6}\.json"?',
            answer.headers["content-disposition"],
        )
        body = answer.json()
        check_statistics(body, ["current", "totals", "configuration", "history"])
        assert isinstance(body["history"], list)

    def test_export_csv(self, api: Api) -> None:
        answer = api.get("/export/csv")
        assert answer.status == 200
        assert answer.headers["content-type"].split(";")[0] == "text/csv"
        assert re.fullmatch(
            r'attachment; filename="?metrics_history_\d{8}_\d{6}\.csv"?',
            answer.headers["content-disposition"],
        )
        header, *rows = csv.reader(io.StringIO(answer.text))
        assert header == [*SNAPSHOT, *MINUTE_FIELDS]
        assert all(len(row) == len(header) for row in rows)

    @pytest.mark.parametrize("path", READ_ROUTES)
    def test_head_is_get_without_its_body(self, api: Api, path: str) -> None:
        get, head = api.get(path), api.ask("HEAD", path)
        assert head.status == get.status == 200
        assert head.body == b""
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["cache-control"] == get.headers["cache-control"] == "no-store"

    # -- who may ask -------------------------------------------------------------------------------

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    @pytest.mark.parametrize(
        "headers",
        [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}],
        ids=["none", "wrong", "basic"],
    )
    def test_nothing_without_identity(
        self, api: Api, server: Server, method: str, path: str, headers: dict[str, str]
    ) -> None:
        server.get("/hello")
        api.settled(1)
        check_error(api.ask(method, path, headers), 401, "Authentication required")
        api.settled(1)

    @pytest.mark.parametrize(
        "origin",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "null"},
            {"Origin": "https://elsewhere.example"},
        ],
        ids=str,
    )
    def test_another_site_cannot_reset_with_a_session(
        self, api: Api, cookie: dict[str, str], origin: dict[str, str]
    ) -> None:
        check_error(api.post("/reset", cookie | origin), 403)
        api.settled(1)

    def test_a_token_is_no_cookie(self, api: Api) -> None:
        assert api.post("/reset", BEARER | {"Sec-Fetch-Site": "cross-site"}).status == 200

    # -- wrong questions ---------------------------------------------------------------------------

    @pytest.mark.parametrize("minutes", ["0", "-1", "1.5", "abc", "", "1e3", "%00"])
    def test_minutes_that_are_none(self, api: Api, minutes: str) -> None:
        check_error(api.get(f"/history?minutes={minutes}"), 400)

    @pytest.mark.parametrize(("asked", "held"), [("1", 1), ("60", 60), ("61", 60), ("9" * 30, 60)])
    def test_minutes_are_held_to_the_maximum(self, api: Api, asked: str, held: int) -> None:
        assert api.get(f"/history?minutes={asked}").json()["minutes"] == held

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            *[("POST", path, {"GET", "HEAD"}) for path in READ_ROUTES],
            *[(method, "/reset", {"POST"}) for method in ("GET", "HEAD", "DELETE")],
            ("PUT", "/current", {"GET", "HEAD"}),
        ],
    )
    def test_wrong_method(self, api: Api, method: str, path: str, allowed: set[str]) -> None:
        answer = api.ask(method, path)
        assert answer.status == 405
        # OPTIONS may be offered as well: some hosts answer it by themselves.
        assert set(re.split(r"\s*,\s*", answer.headers["allow"])) - {"OPTIONS"} == allowed
        if method != "HEAD":
            check_error(answer, 405)

    @pytest.mark.parametrize("path", ["/nowhere", "/current/more", "/export", "/export/xml"])
    def test_unknown_path(self, api: Api, path: str) -> None:
        check_error(api.get(path), 404)
