"""The sub-app's routes: one table of methods and answers, and the answers themselves.

An answer is a function of the monitor and the request, and where it tells the server's numbers also
of a reading that it shares (`Shared`). Every error is JSON and says nothing of the inside.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import parse_qs, quote

from metricsmw import MetricsMonitor, __version__
from metricsmw.alerts import (
    Silence,
    alerters_of,
    check_now,
    get_alerts,
    get_past_alerts,
    read_silences,
    set_silence,
    until_time,
)
from metricsmw.config import RANGES
from metricsmw.engine.reading.captures import MAX_SLOWEST, USUAL_SLOWEST
from metricsmw.engine.reading.errors import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    MAX_NEW_SECONDS,
    NEW_SECONDS,
    SORTS,
)
from metricsmw.engine.reading.health import OPERATIONAL, ServerHealth, check_health
from metricsmw.engine.reading.instruments import as_rows
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.workers.events import MAX_EVENTS
from metricsmw.exporters import negotiation
from metricsmw.exporters.server import exposition
from metricsmw.formats import csv_text, export_document
from metricsmw.snapshot import iso_timestamp

from .. import dashboard
from ..arguments import require_serving
from . import signin
from .encoding import to_indented_json
from .events import event_rows
from .messages import Request, Response
from .parameters import (
    BadRequestError,
    milliseconds,
    minutes_in,
    named_route,
    parameter,
    whole,
)
from .policies import bears
from .responses import (
    attachment,
    body_response,
    error_response,
    json_response,
    success,
    timestamp,
)
from .summaries import route_history_of, routes_of, summary_of

require_serving()


class Shared(NamedTuple):
    """An answer that asks for the server's numbers: all who ask at once share one reading."""

    answer: Callable[[MetricsMonitor, Reading, Request], Response]


Answer: TypeAlias = Callable[[MetricsMonitor, Request], Response] | Shared

MAX_WINDOW = RANGES["window_seconds"][1]
# The parts of `/health` that a stranger is told of.
_COMPONENTS = ("metrics_monitor", "request_tracking", "resource_monitoring", "websocket_tracking")


def _current(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    return success({"metrics": reading.snapshot.to_dict()})


def _history(monitor: MetricsMonitor, request: Request) -> Response:
    longest = monitor.longest_history
    minutes = minutes_in(request.query, longest)
    # At most 1440 entries, so that no question takes long.
    step = max(whole(request.query, "step_minutes", longest) or 1, -(-minutes // 1440))
    named = named_route(request.query, "history")
    if named is not None:
        return success({**route_history_of(monitor, *named, minutes, step)})
    by = parameter(request.query, "by")
    if by == "route":
        return success({**routes_of(monitor, minutes)})
    if by is not None:
        raise BadRequestError(f'by must be "route", not {reprlib.repr(by)}')
    if monitor.lasting is None:
        history = monitor.get_metrics_history(minutes)
        return success({"history": history, "count": len(history), "minutes": minutes})
    history = monitor.get_metrics_history(minutes, step)
    answer = {"history": history, "count": len(history), "minutes": minutes, "step_minutes": step}
    if parameter(request.query, "summary") not in (None, "", "0"):
        answer["summary"] = summary_of(monitor, minutes)
    return success(answer)


def _series(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    window = monitor.window_seconds
    seconds = whole(request.query, "seconds", window)
    named = named_route(request.query, "series")
    if named is None:
        return success({**reading.series(seconds)})
    return success({**reading.route_series(*named, seconds)})


def _errors(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    limit = whole(request.query, "limit", MAX_LIMIT) or DEFAULT_LIMIT
    seconds = whole(request.query, "new_seconds", MAX_NEW_SECONDS) or NEW_SECONDS
    order = parameter(request.query, "sort")
    sort = SORTS[0] if order is None else next((name for name in SORTS if name == order), None)
    if sort is None:
        raise BadRequestError(f"sort must be one of {', '.join(SORTS)}, not {reprlib.repr(order)}")
    rows = reading.errors(limit, sort, seconds)
    return success({"errors": rows, "count": len(rows), "kinds": len(reading.server.errors)})


def _heatmap(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    seconds = whole(request.query, "seconds", monitor.window_seconds)
    method, route = (parameter(request.query, name) for name in ("method", "route"))
    if (method is None) != (route is None):
        raise BadRequestError("a route's heat map needs both method and route")
    return success({**reading.heatmap(method, route, seconds)})


def _stream(monitor: MetricsMonitor, request: Request) -> Response:
    if not request.streams:
        return error_response(
            406, "No stream here, where it would hold a worker: poll /current instead"
        )
    headers = [
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("Cache-Control", "no-store, no-transform"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Accel-Buffering", "no"),  # nginx would hold events back
    ]
    return Response(200, headers, b"", stream=True)


def _statistics(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    return success({"statistics": reading.statistics})


def _routes(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    return success({"routes": reading.routes, "first_bytes": reading.first_bytes_ms})


def _workers(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    return success({"workers": reading.workers})


def _custom(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    return success({"custom": as_rows(reading.server.instruments(), monitor.instruments.help_of)})


def _slowest(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    route, method = (parameter(request.query, name) for name in ("route", "method"))
    limit = whole(request.query, "limit", MAX_SLOWEST) or USUAL_SLOWEST
    least, most = (milliseconds(request.query, name) for name in ("least_ms", "most_ms"))
    rows = reading.slowest(route, method, limit, least or 0.0, inf if most is None else most)
    return success({"slowest": rows, "count": len(rows)})


def _alerts(monitor: MetricsMonitor, request: Request) -> Response:
    alerts, notifications = get_alerts(monitor)
    silences = _silences(read_silences(monitor, monitor.clock.time()))
    return success({"alerts": alerts, "notifications": notifications, "silences": silences})


def _past_alerts(monitor: MetricsMonitor, request: Request) -> Response:
    past = get_past_alerts(monitor)
    rows = [{name: value for name, value in row.items() if name != "key"} for row in past]
    return success({"alerts": rows, "count": len(rows)})


def _silence(monitor: MetricsMonitor, request: Request) -> Response:
    wall = monitor.clock.time()
    given = [parameter(request.query, name) for name in ("for", "until")]
    text = given[0] or given[1]
    if not text or None not in given:
        raise BadRequestError('one of for, such as "2h", and until, a time, is needed')
    name = parameter(request.query, "type")
    try:
        until = until_time(text, wall)
        rules = {row["type"] for row in get_alerts(monitor)[0]}
        if name is not None and rules and name not in rules and until > wall:
            there = ", ".join(sorted(rules))
            raise ValueError(f"no rule is named {name[:80]!r}, there are: {there}")
        silences = set_silence(monitor, name, until, wall)
    except ValueError as error:
        raise BadRequestError(str(error)) from error
    except OSError as error:  # no room, or another worker is setting one
        return error_response(503, f"Nothing was silenced: {error.strerror or error}")
    return success({"silences": _silences(silences)})


def _silences(silences: Sequence[Silence]) -> list[dict[str, str | None]]:
    return [
        {
            "type": one["type"],
            "until": iso_timestamp(one["until"]),
            "set": iso_timestamp(one["at"]),
        }
        for one in silences
    ]


def _send_test(monitor: MetricsMonitor, request: Request) -> Response:
    alerters = alerters_of(monitor)
    if not alerters:
        return error_response(404, "No alerter runs here")
    results = [
        {"receiver": name, "error": None if error is None else type(error).__name__}
        for alerter in alerters
        for name, error in alerter.send_test()
    ]
    return success({"receivers": results})


def _events(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    most = whole(request.query, "limit", MAX_EVENTS) or MAX_EVENTS
    reading.server.pids()  # by reading, what has changed is noted
    rows = event_rows(monitor, most)
    return success({"events": rows, "count": len(rows)})


def _check(monitor: MetricsMonitor, request: Request) -> Response:
    rules = parse_qs(request.query, keep_blank_values=True).get("rule", [])
    seconds = whole(request.query, "seconds", MAX_WINDOW)
    try:
        checked = check_now(monitor, rules, seconds)
    except ValueError as error:
        raise BadRequestError(str(error)) from error
    return success({"rules": checked, "step_seconds": monitor.settings.step})


def _reset(monitor: MetricsMonitor, request: Request) -> Response:
    try:
        monitor.reset_statistics()
        monitor.events.note_reset(monitor.opened(), request.asker)
    except OSError as error:  # no room, or another process holds the server's lock
        return error_response(503, f"Nothing was reset: {error.strerror or 'files cannot be used'}")
    return success({"message": "Metrics statistics reset successfully"})


def _export_json(monitor: MetricsMonitor, request: Request) -> Response:
    # A reading of its own, as a lasting history may be long in coming.
    reading = monitor.read()
    history = reading.history(monitor.settings.max_history_minutes)
    document = export_document(reading.statistics, history)
    body = to_indented_json(document)
    return attachment("metrics", "json", "application/json", body)


def _export_csv(monitor: MetricsMonitor, request: Request) -> Response:
    rows = monitor.get_metrics_history(monitor.settings.max_history_minutes)
    body = csv_text(rows).encode()
    return attachment("metrics_history", "csv", "text/csv; charset=utf-8", body)


def _prometheus(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    answer = negotiation.answer(
        exposition(monitor, reading),
        request.headers.get("accept"),
        request.headers.get("accept-encoding"),
        classic=parameter(request.query, "classic") in ("1", "true"),
    )
    headers = {"Vary": "Accept, Accept-Encoding"}
    if answer.content_encoding is not None:
        headers["Content-Encoding"] = answer.content_encoding
    return body_response(200, answer.content_type, answer.body, headers)


def _health(monitor: MetricsMonitor, reading: Reading, request: Request) -> Response:
    health: ServerHealth = {**reading.health}
    if request.unmeasured:
        tracking = f"requests are not measured: {request.unmeasured}"
        components = {**health["components"], "request_tracking": tracking}
        health = {**health, "status": "degraded", "components": components}
    status = 200 if health["status"] == "healthy" else 503
    rules = monitor.health_rules
    checked: dict[str, object] = {}
    try:
        rate = reading.request_rate_rpm
        if rules.thresholds:
            check = check_health(reading.snapshot, rules.thresholds)
            checked["checks"] = check["checks"]
            if check["status"] == "degraded":
                health["status"] = "degraded"
                status = max(status, rules.status)
    except Exception:  # what is broken shows among the components
        monitor.recorder.faults.report("reading the request rate")
        rate = None
    details: Mapping[str, object] = {**health, **checked}
    if not request.is_known:
        states = health["components"]
        details = {"components": {name: _without_reason(states[name]) for name in _COMPONENTS}}
    return json_response(
        status,
        {
            "success": status == 200,
            "status": health["status"],
            "version": __version__,
            **details,
            "current_rpm": rate,
            "timestamp": timestamp(),
        },
    )


def _without_reason(state: str) -> str:
    return state if state in (OPERATIONAL, "unavailable") else "degraded"


def is_page(request: Request) -> bool:
    """Return whether a request is for the dashboard page."""
    return request.path in ("", "/") and request.method in ("GET", "HEAD")


def page_response(monitor: MetricsMonitor, request: Request) -> Response:
    """Return the dashboard page's shell, which holds no data."""
    # Relative links hold behind a proxy that strips a prefix, too. Without a slash at the end of
    # the page's own address they start from its last segment.
    last = "" if request.path else request.mount.rstrip("/").rpartition("/")[2]
    here = f"./{quote(last, safe='')}/" if last else "./"
    body = dashboard.page(
        here,
        streams=request.streams,
        session=request.by_session,
        minutes=monitor.longest_history,
        unmeasured=request.unmeasured,
        ways=request.ways,
    )
    return body_response(200, "text/html; charset=utf-8", body, _PAGE_HEADERS)


def _widget(monitor: MetricsMonitor, request: Request) -> Response:
    return static_file(dashboard.files()["widget.js"], request, "no-cache")


def static_file(file: dashboard.File, request: Request, cache: str) -> Response:
    """Return a file of the page, or 304 where the client has it already."""
    headers = {"Cache-Control": cache, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(304, list(headers.items()), b"")
    return body_response(200, file.content_type, file.body, headers)


def _sign_in(monitor: MetricsMonitor, request: Request) -> Response:
    if request.token is None:
        return error_response(404, "No token is set that could be signed in with")
    if not bears(request, request.token):
        return error_response(401, "Wrong token")
    cookie = signin.cookie(request.token, request.headers)
    return success({}, {"Set-Cookie": cookie})


def _sign_out(monitor: MetricsMonitor, request: Request) -> Response:
    if request.token is None:
        return error_response(404, "No token is set that could be signed in with")
    # The cookie's name is made from the token: only a client with the cookie gets it.
    known = signin.is_signed_in(request.token, request.headers)
    cookie = (
        {"Set-Cookie": signin.expired_cookie(request.token, request.headers)} if known else None
    )
    return success({}, cookie)


_PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'self'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
}
ROUTES: Final[Mapping[str, Mapping[str, Answer]]] = {
    "": {"GET": page_response},
    "/": {"GET": page_response},
    "/current": {"GET": Shared(_current)},
    "/history": {"GET": _history},
    "/series": {"GET": Shared(_series)},
    "/heatmap": {"GET": Shared(_heatmap)},
    "/stream": {"GET": _stream},
    "/statistics": {"GET": Shared(_statistics)},
    "/reset": {"POST": _reset},
    "/export/json": {"GET": _export_json},
    "/export/csv": {"GET": _export_csv},
    "/prometheus": {"GET": Shared(_prometheus)},
    "/health": {"GET": Shared(_health)},
    "/routes": {"GET": Shared(_routes)},
    "/workers": {"GET": Shared(_workers)},
    "/errors": {"GET": Shared(_errors)},
    "/slowest": {"GET": Shared(_slowest)},
    "/custom": {"GET": Shared(_custom)},
    "/alerts": {"GET": _alerts},
    "/alerts/history": {"GET": _past_alerts},
    "/alerts/silence": {"POST": _silence},
    "/alerts/test": {"POST": _send_test},
    "/check": {"GET": _check},
    "/events": {"GET": Shared(_events)},
    "/signin": {"POST": _sign_in},
    "/signout": {"POST": _sign_out},
    "/widget.js": {"GET": _widget},
}
# What the page is made of holds no data.
OPEN: Final = frozenset({"/health", "/signin", "/signout", "/widget.js"})
