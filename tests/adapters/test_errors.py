"""Exceptions on their way: counted once wherever the middleware stands, and left as they are."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import a2wsgi
import bottle
import pytest
import werkzeug.test
from asgiref.wsgi import WsgiToAsgi
from fastapi import FastAPI, HTTPException
from flask import Flask, abort
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.wsgi import WSGIMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.auth import public
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.alerts import Alert, MetricsAlerter

SECRET = "correct-horse-battery"


class ShopError(Exception):
    """What the apps here raise."""


def view(*_: object, **__: object) -> Any:
    secret = SECRET
    raise ShopError(f"a message with the {secret}")


async def async_view(*_: object, **__: object) -> Any:
    view()


def counted(monitor: MetricsMonitor) -> list[tuple[str, int, str | None, list[str]]]:
    """Type, count, the innermost own function and routes of each kind."""
    return sorted(
        (
            row["type"].rpartition(".")[2],
            row["count"],
            row["where"] and row["where"]["function"],
            row["routes"],
        )
        for row in monitor.get_errors()
    )


ONCE = [("ShopError", 1, "view", ["GET /boom"])]


def ask(app: Any, path: str = "/boom", **more: Any) -> int:
    """Ask as a server does; the status, 0 where the exception escaped."""
    if isinstance(app, (Starlette, ASGIMetricsMiddleware)):
        return TestClient(app, raise_server_exceptions=False).get(path, **more).status_code
    with suppress(ShopError):
        return werkzeug.test.Client(app).get(path, buffered=True, **more).status_code
    return 0


# --- where the middleware stands, and who makes the answer ----------------------------------------


def starlette(**settings: Any) -> Starlette:
    return Starlette(routes=[Route("/boom", async_view), Route("/sync", view)], **settings)


def outside(monitor: MetricsMonitor) -> Any:
    return ASGIMetricsMiddleware(starlette(), monitor)


def added(monitor: MetricsMonitor) -> Any:
    app = starlette()
    app.add_middleware(ASGIMetricsMiddleware, monitor=monitor)
    return app


def twice(monitor: MetricsMonitor) -> Any:
    return wrap(added(monitor), monitor)


def debug(monitor: MetricsMonitor) -> Any:
    return wrap(starlette(debug=True), monitor)


def in_tasks(monitor: MetricsMonitor) -> Any:
    """Starlette runs what stands behind such a middleware in a task of its own."""

    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = starlette()
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    return wrap(app, monitor)


def handled(monitor: MetricsMonitor) -> Any:
    """The app answers by itself, with a status of its own."""

    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", 503)

    return wrap(starlette(exception_handlers={ShopError: answer}), monitor)


def handled_for_all(monitor: MetricsMonitor) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", 500)

    return wrap(starlette(exception_handlers={Exception: answer}), monitor)


def escaping(monitor: MetricsMonitor) -> Any:
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.add_url_rule("/boom", "boom", view)
    return wrap(app, monitor)


def flask_by_hand(monitor: MetricsMonitor) -> Any:
    app = Flask(__name__)
    app.add_url_rule("/boom", "boom", view)
    app.wsgi_app = WSGIMetricsMiddleware(app.wsgi_app, monitor)  # type: ignore[method-assign]
    return app


def bottle_app(monitor: MetricsMonitor) -> Any:
    app = bottle.Bottle()
    app.route("/boom", callback=view)
    return wrap(app, monitor)


@pytest.mark.parametrize(
    "make",
    [
        outside,
        added,
        twice,
        debug,
        in_tasks,
        handled,
        handled_for_all,
        escaping,
        flask_by_hand,
        bottle_app,
    ],
)
def test_counted_once(make: Callable[[MetricsMonitor], Any]) -> None:
    with MetricsMonitor() as monitor:
        app = make(monitor)
        assert ask(app) in (0, 500, 503)
        assert counted(monitor) == ONCE
        assert ask(app, "/none") == 404
        assert counted(monitor) == ONCE
        assert monitor.get_health()["faults"] == 0


def test_what_fails_as_an_exception_is_answered_counts_as_that() -> None:
    with MetricsMonitor() as monitor:
        app = Flask(__name__)
        app.add_url_rule("/boom", "boom", view)

        def failing_page(error: Exception) -> Any:
            raise KeyError("the page of errors fails, too")

        app.register_error_handler(500, failing_page)
        wrap(app, monitor)
        with suppress(KeyError):
            ask(app)
        assert counted(monitor) == ONCE


def test_what_fails_as_falcon_handles_it_counts_on_its_route() -> None:
    falcon = pytest.importorskip("falcon")

    class Boom:
        def on_get(self, *_: object) -> None:
            view()

    def failing(*_: object) -> None:
        raise KeyError("the handler fails, too")

    with MetricsMonitor() as monitor:
        app = falcon.App()
        app.add_route("/boom", Boom())
        app.add_error_handler(ShopError, failing)
        with suppress(KeyError):
            ask(wrap(app, monitor))
        assert counted(monitor) == ONCE
        assert [row["route"] for row in monitor.get_routes()] == ["/boom"]


@pytest.mark.parametrize("bridge", [WSGIMiddleware, WsgiToAsgi, a2wsgi.WSGIMiddleware])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_behind_a_bridge(bridge: Any) -> None:
    with MetricsMonitor() as monitor:
        app = Flask(__name__)
        app.add_url_rule("/boom", "boom", view)
        outer = wrap(Starlette(routes=[Mount("/old", app=bridge(wrap(app, monitor)))]), monitor)
        assert ask(outer, "/old/boom") == 500
        assert counted(monitor) == [("ShopError", 1, "view", ["GET /old/boom"])]


def test_what_gives_no_5xx_is_none_and_a_5xx_by_hand_is() -> None:
    with MetricsMonitor() as monitor:
        flask = Flask(__name__)
        flask.add_url_rule("/boom", "boom", view)
        flask.add_url_rule("/abort/<int:code>", "abort", lambda code: abort(code))
        flask.add_url_rule("/said", "said", lambda: ("no", 502))
        flask.register_error_handler(ShopError, lambda error: ("fine", 200))
        wrap(flask, monitor)
        fast = FastAPI()

        @fast.get("/denied/{code}")
        async def denied(code: int) -> None:
            raise HTTPException(code)

        wrap(fast, monitor)
        for app, path in (
            (flask, "/boom"),
            (flask, "/abort/404"),
            (fast, "/denied/403"),
            (fast, "/denied/nonumber"),
        ):
            ask(app, path)
        assert counted(monitor) == []
        ask(flask, "/said")
        assert counted(monitor) == [("HTTP 502", 1, None, ["GET /said"])]
        ask(fast, "/denied/503")
        assert ("HTTPException", 1, "denied") in [row[:3] for row in monitor_rows(monitor)]
        assert ask(flask, "/abort/503") == 503
        assert sum(row["count"] for row in monitor.get_errors()) == 3


def monitor_rows(monitor: MetricsMonitor) -> list[tuple[str, int, str | None]]:
    return [
        (name, count, function and function.rpartition(".")[2])
        for name, count, function, _ in counted(monitor)
    ]


async def passing(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def refuse(*_: object, **__: object) -> Any:
    abort(503)


async def async_refuse(*_: object, **__: object) -> Any:
    refuse()


def of_flask(monitor: MetricsMonitor) -> Any:
    app = Flask(__name__)
    app.add_url_rule("/boom", "boom", refuse)
    return wrap(app, monitor)


def of_quart(monitor: MetricsMonitor) -> Any:
    app = pytest.importorskip("quart").Quart(__name__)
    app.add_url_rule("/boom", "boom", async_refuse)
    return TestClient(wrap(app, monitor))


def of_bottle(monitor: MetricsMonitor) -> Any:
    app = bottle.Bottle()

    def refuse() -> Any:
        bottle.abort(503)

    app.route("/boom", callback=refuse)
    return wrap(app, monitor)


def of_bottles_stream(monitor: MetricsMonitor) -> Any:
    app = bottle.Bottle()

    def refuse() -> Iterator[bytes]:
        raise ShopError
        yield b""

    app.route("/boom", callback=refuse)
    return wrap(app, monitor)


def of_starlette(monitor: MetricsMonitor, kind: type[Starlette] = Starlette) -> Any:
    async def refuse(request: Request) -> Any:
        raise HTTPException(503)

    app = kind(routes=[Route("/boom", refuse)])
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    return wrap(app, monitor)


def of_fastapi(monitor: MetricsMonitor) -> Any:
    return of_starlette(monitor, FastAPI)


def of_a_handler(monitor: MetricsMonitor) -> Any:
    async def refuse(request: Request) -> Any:
        raise ShopError

    def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", 502)

    app = Starlette(routes=[Route("/boom", refuse)], exception_handlers={ShopError: answer})
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    return wrap(app, monitor)


@pytest.mark.parametrize(
    "make",
    [of_flask, of_quart, of_bottle, of_bottles_stream, of_starlette, of_fastapi, of_a_handler],
)
def test_what_a_framework_answers_leads_to_the_line(make: Callable[[MetricsMonitor], Any]) -> None:
    with MetricsMonitor() as monitor:
        app = make(monitor)
        for _ in range(2):
            code = app.get("/boom").status_code if isinstance(app, TestClient) else ask(app)
            assert code in (500, 502, 503)
        (row,) = monitor.get_errors()
        assert (row["count"], row["routes"], row["status"]) == (2, ["GET /boom"], code)
        assert row["where"] is not None
        assert row["where"]["function"].endswith("refuse")
        assert monitor.get_statistics()["totals"]["total_errors"] == 2
        assert monitor.get_health()["faults"] == 0


def test_what_comes_after_the_answer_is_a_kind_and_no_failed_request() -> None:
    async def later(request: Request) -> Response:
        return PlainTextResponse("fine", background=BackgroundTask(view))

    async def parts() -> Any:
        yield b"one"
        view()

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    async def client(request: Request) -> Response:
        return PlainTextResponse("no", 404, background=BackgroundTask(view))

    routes = [Route("/later", later), Route("/stream", stream), Route("/client", client)]
    for number, route in enumerate(routes):
        with MetricsMonitor() as monitor:
            app = Starlette(routes=routes)
            app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
            assert ask(wrap(app, monitor), route.path) == (404 if number == 2 else 200)
            assert counted(monitor) == [("ShopError", 1, "view", [f"GET {route.path}"])]
            totals = monitor.get_statistics()["totals"]
            assert (totals["total_requests"], totals["total_errors"]) == (1, number // 2)


def test_a_stream_that_breaks_is_one_whatever_was_sent() -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        view()

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    with MetricsMonitor() as monitor:
        app = wrap(Starlette(routes=[Route("/boom", stream)]), monitor)
        with suppress(ShopError):
            ask(app)
        flask = Flask(__name__)
        flask.add_url_rule("/boom", "boom", lambda: flask.response_class(parts()))
        with suppress(ShopError):
            werkzeug.test.Client(wrap(flask, monitor)).get("/boom", buffered=True)
        assert [(name, count) for name, count, *_ in counted(monitor)] == [("ShopError", 2)]


@pytest.mark.parametrize("is_async", [False, True])
def test_djangos_own_middleware(is_async: bool) -> None:
    from conformance.served.sites import django_asgi_site, django_site

    site = (django_asgi_site if is_async else django_site).SITE
    with site.around(), MetricsMonitor() as monitor:
        from asgiref.sync import async_to_sync
        from django.test import AsyncRequestFactory, RequestFactory, override_settings

        from metricsmw.adapters.django import MetricsMiddleware

        class Measured(MetricsMiddleware):
            pass

        Measured.monitor = monitor
        globals()["Measured"] = Measured
        with override_settings(MIDDLEWARE=[f"{__name__}.Measured"]):
            from django.core.handlers.asgi import ASGIHandler
            from django.core.handlers.wsgi import WSGIHandler

            if is_async:
                request = AsyncRequestFactory().get("/raise")
                answer = async_to_sync(ASGIHandler().get_response_async)(request)
            else:
                answer = WSGIHandler().get_response(RequestFactory().get("/raise"))
            assert answer.status_code == 500
        assert [row[:3] for row in counted(monitor)] == [("OnPurposeError", 1, "raise_")]


# --- what others see, and what is kept -----------------------------------------------------------


def test_nothing_of_a_request_is_held() -> None:
    """Neither the exception nor a local variable outlives it."""

    class Local:
        pass

    seen: list[weakref.ref[Local]] = []

    def failing() -> None:
        local = Local()
        seen.append(weakref.ref(local))
        raise ShopError(local)

    with MetricsMonitor() as monitor:
        app = Flask(__name__)
        app.logger.disabled = True
        app.add_url_rule("/boom", "boom", failing)
        ask(wrap(app, monitor))
        gc.collect()
        assert seen[0]() is None
        assert [row[:2] for row in counted(monitor)] == [("ShopError", 1)]


Report = tuple[str, list[tuple[str, str, int]]]


def reports_of_sentry(make: Callable[[], Any]) -> list[Report]:
    """What Sentry reports of a request: exceptions by type, with their frames."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    events: list[Any] = []

    class Memory(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            events.append(envelope.get_event())

    from sentry_sdk.integrations.flask import FlaskIntegration
    from sentry_sdk.integrations.starlette import StarletteIntegration

    sentry_sdk.init(
        "http://k@127.0.0.1:9/1",
        transport=Memory,
        auto_enabling_integrations=False,
        integrations=[FlaskIntegration(), StarletteIntegration()],
    )
    ask(make())
    sentry_sdk.flush()
    return [
        (
            exception["type"],
            [
                (frame["module"], frame["function"], frame["lineno"])
                for frame in exception["stacktrace"]["frames"]
                if not frame["module"].startswith("metricsmw.")
            ],
        )
        for event in events
        if event is not None
        for exception in event["exception"]["values"]
    ]


def reports_of_opentelemetry(make: Callable[[], Any]) -> list[Report]:
    """The same of OpenTelemetry's spans, with the text of the exception."""
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make()
    instrumentor: Any = FlaskInstrumentor() if isinstance(app, Flask) else StarletteInstrumentor()
    instrumentor.instrument_app(app, tracer_provider=provider)
    ask(app)
    return sorted(
        (span.name, [(event.name, str(event.attributes.get("exception.type")), 0)])
        for span in exporter.get_finished_spans()
        for event in span.events
    )


def flask_site() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/boom", "boom", view)
    return app


def compared(
    reports: Callable[[Callable[[], Any]], list[Report]], make: Callable[[], Any]
) -> tuple[list[Report], list[Report], list[Any]]:
    """The reports on the bare app and on the wrapped one, and what was counted."""
    with MetricsMonitor() as monitor:
        bare = reports(make)
        return bare, reports(lambda: wrap(make(), monitor)), counted(monitor)


@pytest.mark.parametrize("reports", [reports_of_sentry, reports_of_opentelemetry])
@pytest.mark.parametrize("make", [flask_site, starlette])
def test_the_reports_of_other_tools_are_the_same(
    reports: Callable[[Callable[[], Any]], list[Report]], make: Callable[[], Any]
) -> None:
    """In a process of their own: Sentry patches the frameworks for good."""
    for name in ("sentry_sdk", "opentelemetry.instrumentation.flask"):
        pytest.importorskip(name)
    code = (
        "import json, runpy, sys\n"
        "here = runpy.run_path(sys.argv[1])\n"
        "print(json.dumps(here['compared'](here[sys.argv[2]], here[sys.argv[3]])))"
    )
    words = [sys.executable, "-c", code, __file__, reports.__name__, make.__name__]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    bare, measured, kinds = json.loads(said.splitlines()[-1])
    assert bare == measured
    assert any("ShopError" in str(report) for report in bare)
    assert kinds == json.loads(json.dumps(ONCE))


def test_no_secret_leaves_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of path, query, headers, cookies, body, message and variables: by the default settings."""
    monkeypatch.setenv("METRICSMW_DIR", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir(mode=0o700)
    caplog.set_level(logging.DEBUG, "metricsmw")
    told: list[Alert] = []
    with MetricsMonitor(shared=True) as monitor:
        app = Flask(__name__)
        app.add_url_rule("/boom/<name>", "boom", view, methods=["POST"])
        app.logger.disabled = True
        wrap(app, monitor, auth=public())
        one = MetricsAlerter(
            monitor, rules=["new errors > 0", "error_rate > 1 at least 1"], notify=told.append,
            start=False,
        )  # fmt: skip
        client = werkzeug.test.Client(app)
        client.set_cookie("session", SECRET)
        answer = client.post(
            f"/boom/{SECRET}?token={SECRET}",
            data=io.BytesIO(SECRET.encode()),
            headers={"X-Api-Key": SECRET, "Authorization": f"Bearer {SECRET}"},
        )
        assert answer.status_code == 500
        one.check()
        assert one.flush()
        assert [alert.type for alert in told] == ["NEW_ERRORS", "ERROR_RATE"]
        texts = [str(alert) + json.dumps(alert.to_dict()) for alert in told]
        for path in ("errors", "routes", "slowest", "events", "alerts", "alerts/history", "health",
                     "statistics", "prometheus", "export/json", "workers"):  # fmt: skip
            told_by = client.get(f"/api/metrics/{path}")
            assert told_by.status_code == 200, path
            texts.append(told_by.text)
        assert "ShopError" in texts[2]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) > 2
        data = b"".join(path.read_bytes() for path in files)
        assert b"ShopError" in data
        assert SECRET.encode() not in data
        for text in (*texts, *(record.getMessage() for record in caplog.records)):
            assert SECRET not in text
        one.stop(0.1)
    assert os.listdir(tmp_path / "shared")
