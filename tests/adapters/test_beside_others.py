"""Measured beside the tools that people have around their apps, in each order, on and off again.

A tool may wrap an app, replace what the app calls, or patch the framework's class. Whatever it
does, the metrics go on counting, and so does the tool.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import werkzeug.test
from conformance.served.sites import django_asgi_site, django_site
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

TESTS = Path(__file__).resolve().parent.parent
ORDERS = (
    "wrap",
    "on wrap",
    "wrap on",
    "on wrap off",
    "wrap on off",
    "on wrap off on",
    "wrap on off on",
    "wrap on off wrap",
    "on wrap off wrap",
)


# --- hosts ----------------------------------------------------------------------------------------


def of_flask() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/hello", "hello", lambda: "hello")
    return app


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


def of_starlette() -> Starlette:
    app = Starlette()
    app.add_route("/hello", hello)
    return app


def of_fastapi() -> FastAPI:
    app = FastAPI()
    app.add_route("/hello", hello)
    return app


HOSTS: dict[str, Callable[[], Any]] = {
    "flask": of_flask,
    "starlette": of_starlette,
    "fastapi": of_fastapi,
    "django": WSGIHandler,
    "django_asgi": ASGIHandler,
}
IS_ASGI = {"starlette", "fastapi", "django_asgi"}


@contextmanager
def settings_of(host: str) -> Iterator[None]:
    site: Any = {"django": django_site, "django_asgi": django_asgi_site}.get(host)
    if site is None:
        yield
    else:
        with site.SITE.around():
            yield


def get(host: str, app: Any, path: str) -> Any:
    """Ask the app, as a server does, and return its answer."""
    if host in IS_ASGI:
        return TestClient(app).get(path)
    answer = werkzeug.test.Client(app).get(path)
    answer.close()
    return answer


# --- tools ----------------------------------------------------------------------------------------


class Tool:
    """What stands beside us; `seen` is how many requests have passed it."""

    hosts: tuple[str, ...] = tuple(HOSTS)

    def __init__(self, host: str) -> None:
        self.host = host
        self.seen = 0

    def on(self, app: Any) -> Any:
        raise NotImplementedError

    def off(self, app: Any) -> Any:
        raise NotImplementedError

    def wsgi(self, inner: Any) -> Any:
        def counting(environ: Any, start_response: Any) -> Any:
            self.seen += environ["PATH_INFO"] == "/hello"
            return inner(environ, start_response)

        return counting

    def asgi(self, inner: Any) -> Any:
        async def counting(scope: Any, receive: Any, send: Any) -> None:
            self.seen += scope.get("path") == "/hello"
            await inner(scope, receive, send)

        return counting


class OfWsgiApp(Tool):
    """Replaces `app.wsgi_app`, and puts back what it found."""

    hosts = ("flask",)

    def on(self, app: Any) -> Any:
        self.found = app.wsgi_app
        app.wsgi_app = self.wsgi(app.wsgi_app)
        return app

    def off(self, app: Any) -> Any:
        app.wsgi_app = self.found
        return app


class OfStack(Tool):
    """Replaces the hook that makes the stack of middlewares, and puts back what it found."""

    hosts = ("starlette", "fastapi")

    def on(self, app: Any) -> Any:
        build = self.found = app.build_middleware_stack
        app.build_middleware_stack = lambda: self.asgi(build())
        app.middleware_stack = None
        return app

    def off(self, app: Any) -> Any:
        app.build_middleware_stack = self.found
        app.middleware_stack = app.build_middleware_stack()
        return app


class OfClass(Tool):
    """Patches the class of the framework, and puts back what it found."""

    def on(self, app: Any) -> Any:
        kinds = {"flask": Flask, "starlette": Starlette, "fastapi": Starlette}
        self.kind: Any = kinds.get(self.host) or HOSTS[self.host]
        found = self.found = self.kind.__call__

        async def asgi(app: Any, scope: Any, receive: Any, send: Any) -> None:
            self.seen += scope.get("path") == "/hello"
            await found(app, scope, receive, send)

        def wsgi(app: Any, environ: Any, start_response: Any) -> Any:
            self.seen += environ["PATH_INFO"] == "/hello"
            return found(app, environ, start_response)

        self.kind.__call__ = asgi if self.host in IS_ASGI else wsgi
        return app

    def off(self, app: Any) -> Any:
        self.kind.__call__ = self.found
        return app


class OpenTelemetry(Tool):
    """`instrument_app` and `uninstrument_app`."""

    hosts = ("flask", "starlette", "fastapi")

    def __init__(self, host: str) -> None:
        super().__init__(host)
        trace = pytest.importorskip("opentelemetry.sdk.trace")
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        name = {"flask": "Flask", "starlette": "Starlette", "fastapi": "FastAPI"}[host]
        module = pytest.importorskip(f"opentelemetry.instrumentation.{host}")
        self.instrumentor: Any = getattr(module, f"{name}Instrumentor")
        self.exporter = memory.InMemorySpanExporter()
        self.provider = trace.TracerProvider()
        self.provider.add_span_processor(export.SimpleSpanProcessor(self.exporter))

    @property
    def seen(self) -> int:
        spans = self.exporter.get_finished_spans()
        return len([span for span in spans if span.kind.name == "SERVER"])

    @seen.setter
    def seen(self, count: int) -> None:
        if hasattr(self, "exporter"):
            self.exporter.clear()

    def on(self, app: Any) -> Any:
        self.instrumentor.instrument_app(app, tracer_provider=self.provider)
        return app

    def off(self, app: Any) -> Any:
        self.instrumentor.uninstrument_app(app)
        return app


TOOLS: list[type[Tool]] = [OfWsgiApp, OfStack, OfClass, OpenTelemetry]


@pytest.mark.parametrize(
    ("kind", "host", "order"),
    [
        (kind, host, order)
        for kind in TOOLS
        for host in kind.hosts
        for order in ORDERS
        # It takes the app for started then, also without us.
        if not (kind is OpenTelemetry and host in IS_ASGI and "off on" in order)
    ],
)
def test_both_count_in_each_order(kind: type[Tool], host: str, order: str) -> None:
    with settings_of(host), MetricsMonitor() as monitor:
        tool = kind(host)
        app = HOSTS[host]()
        is_on = False
        try:
            for step in order.split():
                if step == "wrap":
                    app = wrap(app, monitor, auth=public())
                else:
                    is_on = step == "on"
                    app = tool.on(app) if is_on else tool.off(app)
            answer = get(host, app, "/hello")
            assert answer.status_code == 200
            assert monitor.total_requests == 1
            assert monitor.get_routes()[0]["route"] == "/hello"
            assert tool.seen == is_on
            health = get(host, app, "/api/metrics/health")
            assert health.status_code == 200
            assert monitor.total_requests == 1
        finally:
            if is_on:
                tool.off(app)


@pytest.mark.parametrize("host", HOSTS)
def test_around_and_inside_of_what_wraps(host: str) -> None:
    """A tool's middleware between two of ours, and outermost: counted once."""
    with settings_of(host), MetricsMonitor() as monitor:
        tool = Tool(host)
        around = tool.asgi if host in IS_ASGI else tool.wsgi
        app = around(wrap(around(wrap(HOSTS[host](), monitor)), monitor, auth=public()))
        assert get(host, app, "/hello").status_code == 200
        assert (tool.seen, monitor.total_requests) == (2, 1)
        assert monitor.get_routes()[0]["route"] == "/hello"
        assert get(host, app, "/api/metrics/health").status_code == 200


SENTRY = """
import sentry_sdk
from sentry_sdk.transport import Transport

class Memory(Transport):
    seen = []
    def capture_envelope(self, envelope):
        self.seen.extend(item for item in envelope.items if item.type == "transaction")

def on(app):
    sentry_sdk.init("http://k@127.0.0.1:9/1", transport=Memory, traces_sample_rate=1.0)
    return app

def seen():
    sentry_sdk.flush()
    return len(Memory.seen)
"""
ELASTIC = """
from elasticapm.base import Client
settings = {"SERVICE_NAME": "s", "DISABLE_SEND": True, "INSTRUMENT": False, "CENTRAL_CONFIG": False,
            "CLOUD_PROVIDER": "none", "METRICS_INTERVAL": "0ms"}
begun = []
begin = Client.begin_transaction

def begin_transaction(*args, **kwargs):
    begun.append(args)
    return begin(*args, **kwargs)

Client.begin_transaction = begin_transaction

def on(app):
    if HOST == "flask":
        from elasticapm.contrib.flask import ElasticAPM
        ElasticAPM(app, **settings)
    else:
        from elasticapm.contrib.starlette import ElasticAPM, make_apm_client
        app.add_middleware(ElasticAPM, client=make_apm_client(settings))
    return app

def seen():
    return len(begun)
"""
PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
HOST, ORDER = sys.argv[1:]
{tool}
from test_beside_others import HOSTS, get, settings_of
from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.auth import public

monitor = MetricsMonitor()
with settings_of(HOST):
    app = HOSTS[HOST]()
    for step in ORDER.split():
        app = wrap(app, monitor, auth=public()) if step == "wrap" else on(app)
    assert get(HOST, app, "/hello").status_code == 200
    assert monitor.total_requests == 1, monitor.total_requests
    assert monitor.get_routes()[0]["route"] == "/hello", monitor.get_routes()
    assert seen() == 1, seen()
    assert get(HOST, app, "/api/metrics/health").status_code == 200
    assert monitor.total_requests == 1, monitor.total_requests
print("both count")
"""


@pytest.mark.parametrize("order", ["on wrap", "wrap on"])
@pytest.mark.parametrize(
    ("name", "host"),
    [("sentry", host) for host in HOSTS] + [("elastic", host) for host in ("flask", "fastapi")],
)
def test_tools_that_patch_the_process(name: str, host: str, order: str) -> None:
    """In a process of their own, as nothing takes their patches off again."""
    pytest.importorskip({"sentry": "sentry_sdk", "elastic": "elasticapm"}[name])
    tool = {"sentry": SENTRY, "elastic": ELASTIC}[name]
    program = PROGRAM.format(tests=str(TESTS), here=str(TESTS / "adapters"), tool=tool)
    done = subprocess.run(
        [sys.executable, "-c", program, host, order],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "both count" in done.stdout, done.stdout + done.stderr
