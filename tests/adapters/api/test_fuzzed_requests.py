"""Whatever a client sends, the sub-apps answer it: never by a 500, and no count changes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kits.handlers import ROUTES

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import metrics_app as asgi_metrics_app
from metricsmw.adapters.auth import public, token
from metricsmw.adapters.wsgi import metrics_app as wsgi_metrics_app
from metricsmw.clock import ManualClock

PATHS = [*ROUTES, "/signin", "/signout", "/widget.js", "/static/../x", "/nope", "/static/%00"]
# Query strings and headers as bytes that a server lets through.
octets = st.binary(max_size=20).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
values = octets | st.sampled_from(
    [
        *(b"1", b"-1", b"0", b"1e300", b"NaN", b"99999999999999999999", b"60", b"GET", b"%ff"),
        *(b"%ed%b0%80", b"%00", b"Bearer ", b"Bearer x", b"Basic !!", b"Basic Og==", b"gzip;q=x"),
        *(b"application/vnd.google.protobuf;q=2", b"a=b; c=", b'W/"', b"evil.example:99999"),
        *(b"p95+<+300", b"burn_rate(99,60m,5m)+>+1", b"2h", b"2026-01-25T08:00:00Z"),
    ]
)
parameters = st.sampled_from(
    [
        *(b"minutes", b"step_minutes", b"summary", b"seconds", b"route", b"method", b"limit"),
        *(b"rule", b"type", b"for", b"until", b"classic"),
    ]
)
queries = st.lists(st.tuples(parameters | octets, values), max_size=4).map(
    lambda pairs: b"&".join(name + b"=" + value for name, value in pairs)
)
header_names = st.sampled_from(
    [
        *(b"accept", b"accept-encoding", b"authorization", b"cookie", b"host", b"origin"),
        *(b"if-none-match", b"content-type", b"x-forwarded-for", b"sec-fetch-site", b"referer"),
        *(b"content-length", b"last-event-id", b"forwarded", b"accept-language"),
    ]
)
headers = st.dictionaries(header_names, values, max_size=5)
paths = st.sampled_from(PATHS) | st.text(max_size=12).map("/{}".format)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "get"])
requests = st.tuples(methods, paths, queries, headers, st.binary(max_size=60))
fuzzed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

Sent = tuple[str, str, bytes, dict[bytes, bytes], bytes]


def monitored() -> MetricsMonitor:
    """A monitor of its own, with two requests."""
    monitor = MetricsMonitor(clock=ManualClock())
    monitor.record_request(10.0, user_id="ann", method="GET", route="/items", status=200)
    monitor.record_request(10.0, user_id="bob", method="POST", route="/items", status=500)
    return monitor


def counts(monitor: MetricsMonitor) -> Any:
    """Everything that counts."""
    routes = monitor.get_routes()
    return monitor.total_requests, monitor.get_active_user_ids(), json.dumps(routes)


def ask_wsgi(app: Any, sent: Sent) -> int:
    """Send a request as a WSGI server passes it on; the status of the answer."""
    method, path, query, named, body = sent
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode("utf-8", "surrogatepass").decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in named.items():
        key = name.decode().upper().replace("-", "_")
        prefix = "" if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_"
        environ[prefix + key] = value.decode("latin-1")
    statuses: list[str] = []

    def start_response(status: str, headers: Iterable[Any], exc_info: Any = None) -> Any:
        statuses.append(status)

    b"".join(app(environ, start_response))
    return int(statuses[-1].split()[0])


def ask_asgi(app: Any, sent: Sent) -> int:
    """Send a request as an ASGI server passes it on; the status of the answer."""
    method, path, query, named, body = sent
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query,
        "root_path": "",
        "headers": list(named.items()),
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    return statuses[-1]


@fuzzed
@given(requests, st.booleans())
def test_wsgi(sent: Sent, is_public: bool) -> None:
    monitor = monitored()
    before = counts(monitor)
    auth = public() if is_public else token("a-secret-of-some-length")
    app = wsgi_metrics_app(monitor, auth, reset=False)
    status = ask_wsgi(app, sent)
    assert status < 500 or (status == 503 and sent[1] == "/health")
    assert counts(monitor) == before
    assert monitor.get_health()["faults"] == 0


@fuzzed
@given(requests, st.booleans())
def test_asgi(sent: Sent, is_public: bool) -> None:
    monitor = monitored()
    before = counts(monitor)
    auth = public() if is_public else token("a-secret-of-some-length")
    app = asgi_metrics_app(monitor, auth, reset=False)
    status = ask_asgi(app, sent)
    assert status < 500 or (status == 503 and sent[1] == "/health")
    assert counts(monitor) == before
    assert monitor.get_health()["faults"] == 0
