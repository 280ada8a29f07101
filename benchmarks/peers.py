"""The hosts (web frameworks and raw apps) and, on each, the peers that measure requests there.

Every host serves one route with a parameter, `/items/<id>`. A peer is a function that builds the
host's app with that peer on it, in the peer's default settings and with its own registry. An
`ImportError` while building means "not installed". The OpenTelemetry middlewares run with the
SDK's meter provider and an in-memory reader, so that they record, and without tracing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from described import DescribedASGI, DescribedMonitor, DescribedWSGI, instrument_flask
from raw import Requests, asgi_app, drive_asgi, drive_wsgi, wsgi_list_app

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask
    from opentelemetry.sdk.metrics import MeterProvider
    from starlette.applications import Starlette

    App = Any  # a WSGI or an ASGI callable: the host's driver knows which

PATH = "/items/7"
SESSION_KEY = "not a secret: the sessions of a benchmark"


@dataclass(frozen=True)
class Host:
    """One kind of app: how to build it, how to drive it, and who else measures it."""

    name: str
    build: Callable[[], App]
    drive: Callable[..., Requests]  # drive_asgi or drive_wsgi
    peers: Mapping[str, Callable[[], App]]


def hosts() -> list[Host]:
    return [
        Host(
            "raw ASGI",
            lambda: asgi_app,
            drive_asgi,
            {
                "starlette-exporter": _starlette_exporter_on_raw,
                "opentelemetry asgi": _opentelemetry_asgi,
                "described way": lambda: DescribedASGI(asgi_app, DescribedMonitor()),
            },
        ),
        Host(
            "Starlette",
            _starlette,
            drive_asgi,
            {
                "starlette-exporter": _starlette_exporter_on_starlette,
                "fastapi-instrumentator": _instrumentator_on_starlette,
            },
        ),
        Host(
            "FastAPI",
            _fastapi,
            drive_asgi,
            {
                "fastapi-instrumentator": _instrumentator_on_fastapi,
                "starlette-exporter": _starlette_exporter_on_fastapi,
                "opentelemetry fastapi": _opentelemetry_fastapi,
            },
        ),
        Host(
            "raw WSGI",
            lambda: wsgi_list_app,
            drive_wsgi,
            {
                "opentelemetry wsgi": _opentelemetry_wsgi,
                "described way": lambda: DescribedWSGI(wsgi_list_app, DescribedMonitor()),
            },
        ),
        Host(
            "Flask",
            _flask,
            drive_wsgi,
            {
                "prometheus-flask-exporter": _prometheus_flask_exporter,
                "opentelemetry flask": _opentelemetry_flask,
                "described way": _described_flask,
            },
        ),
        Host(
            "Django",
            django_handler,
            drive_wsgi,
            {
                "django-prometheus": _django_prometheus,
                "opentelemetry django": _opentelemetry_django,
            },
        ),
    ]


# --- Starlette and FastAPI ------------------------------------------------------------------------


def _starlette() -> Starlette:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def item(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["item_id"])

    return Starlette(routes=[Route("/items/{item_id}", item)])


def _fastapi() -> FastAPI:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        return item_id

    return app


_prefixes = (f"bench{n}" for n in itertools.count())  # starlette-exporter has one registry for all


def _starlette_exporter_on_raw() -> App:
    from starlette_exporter import PrometheusMiddleware

    # Without this it would record nothing: a raw app has no routes.
    return PrometheusMiddleware(asgi_app, prefix=next(_prefixes), filter_unhandled_paths=False)


def _starlette_exporter_on_starlette() -> App:
    from starlette_exporter import PrometheusMiddleware

    app = _starlette()
    app.add_middleware(PrometheusMiddleware, prefix=next(_prefixes))
    return app


def _starlette_exporter_on_fastapi() -> App:
    from starlette_exporter import PrometheusMiddleware

    app = _fastapi()
    app.add_middleware(PrometheusMiddleware, prefix=next(_prefixes))
    return app


def _instrumentator_on_starlette() -> App:
    return _instrumentator(_starlette())


def _instrumentator_on_fastapi() -> App:
    return _instrumentator(_fastapi())


def _instrumentator(app: Starlette) -> App:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app


# --- Flask ----------------------------------------------------------------------------------------


def _flask() -> Flask:
    from flask import Flask

    app = Flask(__name__)
    app.secret_key = SESSION_KEY

    @app.route("/items/<item_id>")
    def item(item_id: str) -> str:
        return item_id

    return app


def _prometheus_flask_exporter() -> App:
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app = _flask()
    PrometheusMetrics(app, group_by="url_rule", registry=CollectorRegistry())
    return app


def _described_flask() -> App:
    app = _flask()
    instrument_flask(app, DescribedMonitor())
    return app


# --- Django ---------------------------------------------------------------------------------------


def django_handler(*middleware: str) -> App:
    """Return a Django handler of its own: it reads the list of middlewares when it is made."""
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.test.utils import override_settings

    if not settings.configured:
        import django
        from django.urls import path

        def item(request: HttpRequest, item_id: str) -> HttpResponse:
            return HttpResponse(item_id)

        settings.configure(
            ROOT_URLCONF=(path("items/<item_id>", item),),
            ALLOWED_HOSTS=["*"],
            SECRET_KEY=SESSION_KEY,
        )
        django.setup(set_prefix=False)
    with override_settings(MIDDLEWARE=list(middleware)):
        return WSGIHandler()


def _django_prometheus() -> App:
    import django_prometheus.middleware

    module = django_prometheus.middleware.__name__
    return django_handler(
        f"{module}.PrometheusBeforeMiddleware", f"{module}.PrometheusAfterMiddleware"
    )


# --- OpenTelemetry --------------------------------------------------------------------------------


def _meter_provider() -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    return MeterProvider([InMemoryMetricReader()])


def _opentelemetry_asgi() -> App:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(asgi_app, meter_provider=_meter_provider())


def _opentelemetry_wsgi() -> App:
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(wsgi_list_app, meter_provider=_meter_provider())


def _opentelemetry_fastapi() -> App:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    app = _fastapi()
    FastAPIInstrumentor.instrument_app(app, meter_provider=_meter_provider())
    return app


def _opentelemetry_flask() -> App:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    app = _flask()
    FlaskInstrumentor().instrument_app(  # type: ignore[no-untyped-call]
        app, meter_provider=_meter_provider()
    )
    return app


def _opentelemetry_django() -> App:
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    with _instrumented(DjangoInstrumentor()) as middleware:
        return django_handler(*middleware)


@contextmanager
def _instrumented(instrumentor: Any) -> Iterator[list[str]]:
    """Return OpenTelemetry's middlewares in Django's settings, which are then put back."""
    django_handler()  # settings must be there
    from django.conf import settings

    before = list(settings.MIDDLEWARE)
    instrumentor.instrument(meter_provider=_meter_provider())
    try:
        yield [name for name in settings.MIDDLEWARE if name not in before]
    finally:
        instrumentor.uninstrument()
